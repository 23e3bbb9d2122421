"""Every kernel against the oracle, within its derived bound, over small shapes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.model.int4 import dequantise, quantise
from k2core.oracle import bounds
from k2core.oracle.linear import linear as linear_oracle
from k2core.oracle.mla_attention import mla_attention as attention_oracle
from k2core.oracle.moe_experts import moe_experts as experts_oracle
from k2core.oracle.moe_route import moe_route as route_oracle
from k2core.oracle.moe_route import sigmoid
from k2core.oracle.rms_norm import rms_norm as rms_norm_oracle
from k2core.oracle.rope_yarn import rope_yarn as rope_oracle
from k2core_numba.packing import round_up, tile_int4, tile_plain, tile_scales
from k2core_numba.runtime import kernels

kernels()  # sets the cache before the kernel modules are imported by name

from k2core_kernels.numba.embedding import embedding  # noqa: E402
from k2core_kernels.numba.linear import PARALLEL_WORK, linear  # noqa: E402
from k2core_kernels.numba.linear_int4 import linear_int4  # noqa: E402
from k2core_kernels.numba.mla_attention import GROUP, PAGE, RANGE, SCORES, TILE, mla_attention, state_of_head, write_latent  # noqa: E402
from k2core_kernels.numba.moe_experts import moe_experts  # noqa: E402
from k2core_kernels.numba.moe_route import moe_route  # noqa: E402
from k2core_kernels.numba.rms_norm import rms_norm  # noqa: E402
from k2core_kernels.numba.rope_yarn import rope_yarn  # noqa: E402
from k2core_kernels.numba.swiglu import swiglu  # noqa: E402

seeds = st.integers(0, 2**32 - 1)
tokens_ = st.integers(1, 10)


def padded(values, columns):
    """Flat float32 rows of *columns* values, zero beyond the given ones."""
    rows = np.zeros((len(values), columns), np.float32)
    rows[:, : values.shape[1]] = values
    return rows.reshape(-1)


def run_linear(weight, x, threads=1):
    """W x through the kernel: (tokens, rows)."""
    rows, columns = weight.shape
    stride, width = round_up(rows), round_up(columns, 2)
    y = np.full(len(x) * stride, np.nan, np.float32)
    tiles = tile_plain(weight.view(np.uint16))
    linear(tiles, width // 2, stride // 16, padded(x, width), 0, width, len(x), y, 0, stride, threads)
    return y.reshape(len(x), stride)[:, :rows]


@given(tokens_, st.integers(1, 90), st.integers(1, 90), seeds)
def test_linear(tokens, rows, columns, seed):
    """A product with bfloat16 weights keeps to its bound, and a row alone has the bits it has in the batch."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, columns)).astype(ml_dtypes.bfloat16)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    y = run_linear(weight, x)
    assert (np.abs(y - linear_oracle(x, weight)) <= bounds.linear_bound(x, weight)).all()
    for token in range(tokens):
        np.testing.assert_array_equal(run_linear(weight, x[token : token + 1])[0], y[token])


def test_linear_on_threads_has_the_same_bits():
    """A product large enough for a parallel region gives what one thread gives."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((1000, 200)).astype(ml_dtypes.bfloat16)
    x = random.standard_normal((13, 200)).astype(np.float32)
    assert weight.size * len(x) > PARALLEL_WORK
    np.testing.assert_array_equal(run_linear(weight, x, threads=2), run_linear(weight, x))


def run_int4(packed, scale, x, threads=1):
    """W x through the kernel: (tokens, rows)."""
    rows, groups = scale.shape
    stride, columns = round_up(rows), packed.shape[1] * 8
    y = np.full(len(x) * stride, np.nan, np.float32)
    words, scales = tile_int4(packed), tile_scales(scale.view(np.uint16))
    flat = np.ascontiguousarray(x).reshape(-1)
    group_words = packed.shape[1] // groups
    linear_int4(words, scales, groups, group_words, stride // 16, flat, 0, columns, len(x), y, 0, stride, threads)
    return y.reshape(len(x), stride)[:, :rows]


@given(tokens_, st.integers(1, 70), st.integers(1, 4), st.sampled_from([8, 32, 64]), seeds)
def test_linear_int4(tokens, rows, groups, group, seed):
    """A product with packed weights keeps to its bound with every code from -8 to 7, alone and in a batch."""
    random = np.random.default_rng(seed)
    packed = random.integers(-(2**31), 2**31, (rows, groups * group // 8)).astype(np.int32)
    scale = (random.random((rows, groups)) + 0.01).astype(ml_dtypes.bfloat16)
    x = random.standard_normal((tokens, groups * group)).astype(np.float32)
    weight = dequantise(packed, scale)
    y = run_int4(packed, scale, x)
    assert (np.abs(y - linear_oracle(x, weight)) <= bounds.linear_bound(x, weight)).all()
    for token in range(tokens):
        np.testing.assert_array_equal(run_int4(packed, scale, x[token : token + 1])[0], y[token])


def test_linear_int4_on_threads_has_the_same_bits():
    """A packed product large enough for a parallel region gives what one thread gives."""
    random = np.random.default_rng(0)
    packed, scale = quantise(random.standard_normal((1000, 256)).astype(np.float32))
    x = random.standard_normal((13, 256)).astype(np.float32)
    np.testing.assert_array_equal(run_int4(packed, scale, x, threads=2), run_int4(packed, scale, x))


def test_packed_weights_do_not_grow():
    """The kernels' layout takes as many bytes as the checkpoint's where rows are a multiple of 16."""
    packed, scale = quantise(np.ones((48, 64), np.float32))
    assert tile_int4(packed).nbytes == packed.nbytes
    assert tile_scales(scale.view(np.uint16)).nbytes == scale.nbytes


@given(tokens_, st.integers(1, 70), st.floats(-3, 3), seeds)
def test_rms_norm(tokens, width, magnitude, seed):
    """Normalisation keeps to its bound over sizes that fill lanes and sizes that do not."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((tokens, width)) * 10**magnitude).astype(np.float32)
    gain, y = random.standard_normal(width).astype(np.float32), np.zeros((tokens, width), np.float32)
    rms_norm(x.reshape(-1), 0, width, tokens, gain, np.float32(1e-5), y.reshape(-1), 0, width)
    expected = rms_norm_oracle(x, gain, float(np.float32(1e-5)))
    assert (np.abs(y - expected) <= bounds.rms_norm_bound(expected) + 1e-37).all()


@given(st.integers(1, 33), st.integers(0, 4000), seeds)
def test_rope_yarn(pairs, position, seed):
    """A rotation by a rounded table keeps to its bound."""
    random = np.random.default_rng(seed)
    frequency = random.random(pairs)
    angle = position * frequency
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x = random.standard_normal((1, 2 * pairs)).astype(np.float32)
    y = np.zeros(2 * pairs, np.float32)
    rope_yarn(x.reshape(-1), 0, cosine, sine, pairs, 0, y, 0)
    assert (np.abs(y - rope_oracle(x, np.array([position]), frequency)) <= bounds.rope_yarn_bound(x) + 1e-37).all()


def test_exponential_over_its_whole_range():
    """silu(g) * 1 is within its bound wherever float32 can tell, through e**x from its least to its greatest argument."""
    gate = np.concatenate([np.linspace(-120, 120, 160_000), [0, -0.0, 1e-30, -1e-30] * 4]).astype(np.float32)
    exact = gate.astype(np.float64)
    expected = exact * sigmoid(exact)
    swiglu(gate, np.ones_like(gate), len(gate))
    assert (np.abs(gate - expected) <= np.abs(expected) * bounds.gamma(bounds.EXPONENTIAL + 3) + 1e-34).all()


def test_nan_is_not_hidden():
    """A NaN that enters an activation leaves it."""
    gate = np.full(16, np.nan, np.float32)
    swiglu(gate, np.ones(16, np.float32), 16)
    assert np.isnan(gate).all()


@given(tokens_, st.integers(1, 40), st.integers(1, 8), st.booleans(), seeds)
def test_moe_route(tokens, experts, top_k, normalise, seed):
    """The choice is the oracle's wherever its margin exceeds the bound; weights keep to theirs; no expert twice."""
    top_k = min(top_k, experts)
    random = np.random.default_rng(seed)
    weight = random.standard_normal((experts, 24)).astype(ml_dtypes.bfloat16)
    x, bias = random.standard_normal((tokens, 24)).astype(np.float32), (random.standard_normal(experts) / 9).astype(np.float32)
    stride = round_up(experts)
    logits = padded(run_linear(weight, x), stride)
    ids, weights = np.zeros((tokens, top_k), np.int32), np.zeros((tokens, top_k), np.float32)
    moe_route(logits, stride, tokens, bias, top_k, normalise, np.float32(2.5), ids.reshape(-1), weights.reshape(-1), 0)
    expected_ids, expected = route_oracle(x, weight, bias, top_k, normalise=normalise, factor=2.5)
    scores = sigmoid(linear_oracle(x, weight))
    score_bound, weight_bound = bounds.moe_route_bound(x, weight, scores, expected, factor=2.5)
    for token in range(tokens):
        assert len(set(ids[token])) == top_k
        ranked = np.sort(scores[token] + bias)[::-1]
        if (-np.diff(ranked) > 2 * score_bound[token].max()).all():
            np.testing.assert_array_equal(ids[token], expected_ids[token])
            assert (np.abs(weights[token] - expected[token]) <= weight_bound[token]).all()


def test_moe_route_takes_the_lower_index_of_a_tie():
    """Experts of equal score are chosen in the order of their indices."""
    ids, weights = np.zeros(3, np.int32), np.zeros(3, np.float32)
    moe_route(np.zeros(16, np.float32), 16, 1, np.zeros(5, np.float32), 3, True, np.float32(1.5), ids, weights, 0)
    assert ids.tolist() == [0, 1, 2]
    assert weights == pytest.approx([0.5, 0.5, 0.5])


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.sampled_from([8, 32]), seeds)
def test_moe_experts(tokens, experts, hidden_groups, inner_groups, group, seed):
    """The routed sum keeps to its bound, and a token alone has the bits it has in the batch."""
    random = np.random.default_rng(seed)
    hidden, inner = hidden_groups * group, inner_groups * group
    top_k = int(random.integers(1, experts + 1))
    stored = [
        [
            quantise(random.standard_normal(shape).astype(np.float32), group)
            for shape in ((inner, hidden), (inner, hidden), (hidden, inner))
        ]
        for _ in range(experts)
    ]
    packs = []
    for projection in range(3):
        packs.append(np.concatenate([tile_int4(matrices[projection][0]) for matrices in stored]))
        packs.append(np.concatenate([tile_scales(matrices[projection][1].view(np.uint16)) for matrices in stored]))
    x = random.standard_normal((tokens, hidden)).astype(np.float32)
    ids = np.stack([random.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int32)
    weights = random.random((tokens, top_k)).astype(np.float32)

    def run(rows):
        count, stride, inner_stride = len(rows), round_up(hidden), round_up(inner)
        y = np.full(count * stride, np.nan, np.float32)
        moe_experts(
            padded(x[rows], stride), stride, count, ids[rows].reshape(-1), weights[rows].reshape(-1), 0, top_k, experts, hidden,
            inner, group, *packs, np.zeros(count * stride, np.float32), np.zeros(count * inner_stride, np.float32),
            np.zeros(count * inner_stride, np.float32), np.zeros(count * stride, np.float32),
            np.zeros(count * top_k * stride, np.float32), np.zeros(count, np.int32), y, 1,
        )  # fmt: skip
        return y.reshape(count, stride)[:, :hidden]

    def expert(index):
        return tuple(dequantise(*matrix) for matrix in stored[index])

    y = run(np.arange(tokens))
    assert (np.abs(y - experts_oracle(x, ids, weights, expert)) <= bounds.moe_experts_bound(x, ids, weights, expert)).all()
    for token in range(tokens):
        np.testing.assert_array_equal(run(np.array([token]))[0], y[token])


class Cached:
    """Latents (context, width) in the second layer of pages, and attention over them with a scale of 0.25."""

    def __init__(self, latent, rank):
        self.latent, self.rank, self.width = latent, rank, latent.shape[1]
        self.pages = [np.zeros(PAGE * self.width * 2, np.float32) for _ in range(-(-len(latent) // PAGE))]
        self.table, self.offset = np.array([page.ctypes.data for page in self.pages]), PAGE * self.width * 4
        for position in range(len(latent)):
            place = position * self.width
            write_latent(latent.reshape(-1), place, self.offset, self.width, position, self.table.ctypes.data)

    def attend(self, query, positions, threads=1):
        """(tokens, heads, rank) through the kernel."""
        tokens, heads, _ = query.shape
        y = np.zeros((tokens, heads, self.rank), np.float32)
        scores = np.full(threads * SCORES, np.nan, np.float32)
        state = np.full(threads * TILE * GROUP * state_of_head(self.rank), np.nan, np.float32)
        mla_attention(
            tokens, heads, np.ascontiguousarray(query).reshape(-1), self.width, np.full(tokens, self.table.ctypes.data),
            positions, self.offset, self.rank, self.width, np.float32(0.25), scores, state, y.reshape(-1), self.rank, threads,
        )  # fmt: skip
        return y

    def check(self, y, query, positions):
        """Assert that y is within its bound of the oracle's attention."""
        heads, rank = query.shape[1], self.rank
        identity = np.broadcast_to(np.concatenate([np.eye(rank)] * 2), (heads, 2 * rank, rank))
        keys, turned = self.latent[:, :rank], self.latent[:, rank:]
        expected = attention_oracle(query[..., :rank], query[..., rank:], keys, turned, identity, positions, 0.25)
        assert (np.abs(y - expected) <= bounds.latent_attention_bound(query, self.latent, positions, 0.25, rank)).all()


@given(st.integers(1, 90), st.integers(1, 6), st.integers(1, 20), st.integers(1, 4), seeds)
def test_mla_attention(context, heads, rank, pairs, seed):
    """Attention on cached latents keeps to its bound for any number of heads, and one head alone has the same bits."""
    random = np.random.default_rng(seed)
    width, tokens = rank + 2 * pairs, min(context, 3)
    cached = Cached(random.standard_normal((context, width)).astype(np.float32), rank)
    query = random.standard_normal((tokens, heads, width)).astype(np.float32)
    positions = np.sort(random.permutation(context)[:tokens]).astype(np.int64)
    y = cached.attend(query, positions)
    cached.check(y, query, positions)
    for head in range(heads):
        np.testing.assert_array_equal(cached.attend(query[:, head : head + 1], positions)[:, 0], y[:, head])


@pytest.mark.parametrize(("heads", "rank", "pairs"), [(5, 10, 3), (8, 8, 2), (2, 7, 1)])
def test_mla_attention_over_ranges(heads, rank, pairs):
    """Contexts of several ranges keep to the bound, scores rising or falling; threads, tiles and heads change no bit."""
    random, span = np.random.default_rng(7), RANGE * 16
    context, width = 2 * span + 300, rank + 2 * pairs
    positions = np.array([5, span - 1, span, span + 1, span + 63, 2 * span - 1, 2 * span, 2 * span + 1, context - 1])
    query = random.standard_normal((len(positions), heads, width)).astype(np.float32)
    for trend in (-6.0, 0.0, 6.0):
        latent = random.standard_normal((context, width)).astype(np.float32)
        latent += (trend * np.linspace(0, 1, context)[:, None] * query[-1, 0]).astype(np.float32)
        cached = Cached(latent, rank)
        y = cached.attend(query, positions)
        cached.check(y, query, positions)
        np.testing.assert_array_equal(cached.attend(query, positions, threads=2), y)
        for token in range(len(positions)):
            alone = cached.attend(query[token : token + 1], positions[token : token + 1])
            np.testing.assert_array_equal(alone[0], y[token])
        np.testing.assert_array_equal(cached.attend(query[:, 1:2], positions)[:, 0], y[:, 1])


@given(tokens_, st.integers(1, 40), seeds)
def test_embedding_is_exact(tokens, hidden, seed):
    """Rows of the table come out unrounded."""
    random = np.random.default_rng(seed)
    table = random.standard_normal((9, hidden)).astype(ml_dtypes.bfloat16)
    stride = round_up(hidden)
    bits = np.zeros((9, stride), np.uint16)
    bits[:, :hidden] = table.view(np.uint16)
    ids, y = random.integers(0, 9, tokens), np.full(tokens * stride, np.nan, np.float32)
    embedding(bits.reshape(-1), stride, ids, y)
    np.testing.assert_array_equal(y.reshape(tokens, stride)[:, :hidden], table[ids].astype(np.float32))
