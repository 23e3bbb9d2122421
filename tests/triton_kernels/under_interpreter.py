"""Checks of the Triton kernels against the oracle; `test_interpreted` runs this file where TRITON_INTERPRET is set.

Hypothesis draws shapes and seeds, numpy the values: what breaks a kernel is a ragged edge, not a number.
"""

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from k2core.model.int4 import dequantise, pack
from k2core.oracle.bounds import latent_attention_bound, moe_experts_bound
from k2core.oracle.mla_attention import softmax
from k2core.oracle.moe_experts import moe_experts as oracle_experts
from k2core.oracle.rounding import BFLOAT16_UNIT, rounded
from k2core_kernels.triton import numbers
from k2core_kernels.triton.mla_decode import mla_decode
from k2core_kernels.triton.moe_experts import moe_experts, sorted_blocks

BFLOAT16 = ml_dtypes.bfloat16
FEW = settings(max_examples=6, deadline=None, derandomize=True)


def torch_of(array):
    """A tensor with the array's numbers; numpy has no bfloat16 that torch takes."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class Experts:
    """Random packed experts, inputs and a routing without duplicates."""

    def __init__(self, tokens, experts, top_k, groups, inner_groups, group, seed):
        self.rng = np.random.default_rng(seed)
        hidden, inner = groups * group, inner_groups * group
        self.matrices = [self._matrix(experts, inner, hidden, group) for _ in range(2)]
        self.matrices.append(self._matrix(experts, hidden, inner, group))
        self.x = self.rng.standard_normal((tokens, hidden)).astype(np.float32)
        self.ids = np.stack([self.rng.permutation(experts)[:top_k] for _ in range(tokens)])
        self.weights = self.rng.random((tokens, top_k)).astype(np.float32)

    def _matrix(self, experts, rows, columns, group):
        codes = self.rng.integers(-8, 8, (experts, rows, columns)).astype(np.int8)
        scale = (self.rng.random((experts, rows, columns // group)) * 0.1).astype(BFLOAT16)
        return np.stack([pack(one) for one in codes]), scale

    def one(self, index):
        """An expert's three matrices, float32."""
        gate, up, down = (dequantise(packed[index], scale[index]) for packed, scale in self.matrices)
        return gate, up, down

    def run(self, exact, way, tokens=slice(None)):
        """The kernels' sum."""
        packed = [torch_of(part) for matrix in self.matrices for part in matrix]
        x, ids, weights = (torch_of(part[tokens]) for part in (self.x, self.ids, self.weights))
        return moe_experts(x, *packed, ids, weights, exact=exact, way=way).numpy()


def assert_within(got, want, bound):
    """No element is farther from the oracle than its bound."""
    excess = np.abs(got - want) - bound
    worst = np.unravel_index(np.argmax(excess), got.shape)
    assert excess[worst] <= 0, f"at {worst}: got {got[worst]}, expected {want[worst]} within {bound[worst]}"


@st.composite
def experts_cases(draw):
    """Shapes small enough for the interpreter, ragged against every tile."""
    experts = draw(st.integers(1, 5))
    return Experts(
        tokens=draw(st.integers(1, 4)),
        experts=experts,
        top_k=draw(st.integers(1, min(3, experts))),
        groups=draw(st.integers(1, 3)),
        inner_groups=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([8, 16, 24, 32, 64])),
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("way", ["decode", "grouped"])
@given(case=experts_cases(), exact=st.booleans())
@example(case=Experts(1, 4, 2, 2, 1, 32, 0), exact=True)
@example(case=Experts(19, 1, 1, 1, 1, 32, 0), exact=False)
@FEW
def test_moe_experts_keeps_the_bound(way, case, exact):
    """Either way gives the oracle's sum within the op's bound, for any sizes and groups."""
    kind = "none" if exact else "bfloat16"
    want = oracle_experts(case.x, case.ids, case.weights, case.one)
    assert_within(case.run(exact, way), want, moe_experts_bound(case.x, case.ids, case.weights, case.one, kind))


@pytest.mark.parametrize("way", ["decode", "grouped"])
@pytest.mark.parametrize("group", [8, 32])
def test_w4a16_rounds_to_nearest_and_nothing_else(way, group):
    """Beside an oracle that rounds x and the inner activations to nearest even, only float32 errors remain."""
    case = Experts(3, 5, 2, 96 // group, 64 // group, group, 3)
    want = oracle_experts(case.x, case.ids, case.weights, case.one, "bfloat16")
    assert_within(case.run(False, way), want, moe_experts_bound(case.x, case.ids, case.weights, case.one))


@pytest.mark.parametrize(("way", "tokens"), [("decode", 1), ("grouped", 40)])
def test_more_words_than_a_tile_are_all_counted(way, tokens):
    """Rows longer than a program's piece, and no multiple of it, are summed to their end; an expert may have many blocks."""
    case = Experts(tokens, 2, 1, 33, 2, 32, 5)
    want = oracle_experts(case.x, case.ids, case.weights, case.one)
    assert_within(case.run(True, way), want, moe_experts_bound(case.x, case.ids, case.weights, case.one))


def test_decode_rows_do_not_depend_on_the_batch():
    """Token by token gives the batch's rows to the bit."""
    case = Experts(3, 4, 3, 2, 2, 32, 7)
    whole = case.run(True, "decode")
    assert all(np.array_equal(whole[i : i + 1], case.run(True, "decode", slice(i, i + 1))) for i in range(3))


def test_no_tokens_give_no_rows():
    """An empty batch is not an error."""
    assert Experts(1, 2, 1, 1, 1, 8, 0).run(True, "", slice(0, 0)).shape == (0, 8)


def test_shapes_that_disagree_are_named():
    """The message says which tensor, what was found and what was expected; so are an unknown way and strides."""
    case = Experts(2, 3, 2, 2, 2, 32, 0)
    case.matrices[2] = (case.matrices[2][0][:, :-1], case.matrices[2][1])
    with pytest.raises(ValueError, match=r"down is \(3, 63, 8\), expected \(3, 64, 8\)"):
        case.run(True, "")
    with pytest.raises(ValueError, match="way is 'fast'"):
        Experts(2, 3, 2, 2, 2, 32, 0).run(True, "fast")
    case = Experts(2, 3, 2, 2, 2, 32, 0)
    case.matrices[0] = (np.repeat(case.matrices[0][0], 2, -1)[..., ::2], case.matrices[0][1])
    with pytest.raises(ValueError, match="gate is not contiguous"):
        case.run(True, "")


@given(
    experts=st.integers(1, 20),
    block=st.sampled_from([1, 3, 16]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_blocks_cover_each_pair_once(experts, block, data):
    """Every pair is in exactly one block, of its own expert; blocks are no larger than asked; unused ones say so."""
    top_k = data.draw(st.integers(1, experts))
    ids = data.draw(st.lists(st.permutations(range(experts)).map(lambda one: one[:top_k]), min_size=1, max_size=9))
    flat = torch.tensor(ids).flatten()
    blocks = sorted_blocks(torch.tensor(ids), experts, block)
    seen = []
    for expert, first, end in zip(blocks.expert.tolist(), blocks.first.tolist(), blocks.end.tolist(), strict=True):
        if expert < experts:
            mine = blocks.order[first : min(end, first + block)].tolist()
            assert mine and {int(flat[pair]) for pair in mine} == {expert}
            seen += mine
    assert sorted(seen) == list(range(len(flat)))


@triton.jit
def _numbers(words, x, whole, single, near, N: tl.constexpr):
    i = tl.arange(0, N)
    packed = tl.load(words + i)
    tl.store(whole + 8 * i[:, None] + tl.arange(0, 8)[None, :], numbers.codes(tl.reshape(packed, (N, 1)), N, 1))
    for nibble in tl.static_range(8):
        tl.store(single + 8 * i + nibble, numbers.code(packed, nibble))
    tl.store(near + i, numbers.rounded(tl.load(x + i), tl.bfloat16))


def test_codes_and_bfloat16_are_exact():
    """All codes at all places of a word come out, and rounding is to nearest even, with infinities and NaN kept."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (64, 8)).astype(np.int8)
    values = torch.from_numpy(rng.standard_normal(64).astype(np.float32))
    values[:6] = torch.tensor([np.inf, -np.inf, np.nan, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0.0])
    whole, single, near = torch.empty(64, 8), torch.empty(64, 8), torch.empty(64, dtype=torch.bfloat16)
    _numbers[(1,)](torch.from_numpy(pack(codes)[:, 0]), values, whole, single, near, N=64)
    assert np.array_equal(whole.numpy(), codes) and np.array_equal(single.numpy(), codes)
    assert torch.equal(near.nan_to_num(7.0), values.to(torch.bfloat16).nan_to_num(7.0))


class Rows:
    """Random queries over paged latents; what no row may see is NaN."""

    def __init__(self, lengths, heads, rank, rope, page_size, dtype, seed, shares_pages=False):
        rng = np.random.default_rng(seed)
        rows, width = len(lengths), rank + rope
        most = max(1, -(-max(lengths) // page_size)) + 1
        self.pages = np.full((rows * most + 1, page_size, width), np.nan, np.float32)
        self.table = rng.permutation(rows * most).astype(np.int32).reshape(rows, most)
        if shares_pages:
            self.table[:] = self.table[0]
        for row, length in enumerate(lengths):
            for position in range(length):
                self.pages[self.table[row, position // page_size], position % page_size] = rng.standard_normal(width)
        self.pages = self.pages.astype(dtype)
        self.query = rng.standard_normal((rows, heads, width)).astype(np.float32)
        self.lengths, self.rank, self.scale, self.exact = np.array(lengths, np.int32), rank, 0.3, dtype == np.float32

    def run(self, splits):
        """The kernels' answer."""
        given = [torch_of(one) for one in (self.query, self.pages, self.table, self.lengths)]
        return mla_decode(*given, rank=self.rank, scale=self.scale, splits=splits).numpy()

    def check(self, got):
        """Each row against float64, within the bound of its numerics."""
        for row, length in enumerate(self.lengths):
            latent = self.pages[self.table[row]].reshape(-1, self.pages.shape[-1])[:length].astype(np.float64)
            query = rounded(self.query[row], "none" if self.exact else "bfloat16")
            if not length:
                assert not got[row].any()
                continue
            shares = softmax(query @ latent.T * self.scale)
            bound = latent_attention_bound(query[None], latent, np.array([length - 1]), self.scale, self.rank)[0]
            if not self.exact:  # each share is rounded once more
                bound = bound + shares @ np.abs(latent[:, : self.rank]) * BFLOAT16_UNIT * 1.01
            assert_within(got[row], shares @ latent[:, : self.rank], bound)


@st.composite
def rows_cases(draw):
    """Shapes small enough for the interpreter, ragged against every tile."""
    return Rows(
        lengths=draw(st.lists(st.integers(0, 90), min_size=1, max_size=3)),
        heads=draw(st.sampled_from([1, 3, 16, 17])),
        rank=draw(st.sampled_from([5, 16, 40])),
        rope=draw(st.sampled_from([2, 6, 16])),
        page_size=draw(st.sampled_from([1, 3, 16, 64])),
        dtype=draw(st.sampled_from([np.float32, BFLOAT16])),
        seed=draw(st.integers(0, 99)),
    )


@given(case=rows_cases(), splits=st.sampled_from([None, 1, 2, 5]))
@example(case=Rows([33, 0, 1], 4, 16, 4, 16, np.float32, 0), splits=3)
@example(case=Rows([33, 0, 1], 4, 16, 4, 16, BFLOAT16, 0), splits=3)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_mla_decode_keeps_the_bound(case, splits):
    """Any lengths, pages and splits give the float64 answer within the bound; what lies behind a length is never read."""
    case.check(case.run(splits))


def test_drafts_are_rows_that_share_pages():
    """Several queries of one sequence, each seeing one position more, in one call."""
    case = Rows([37, 38, 39, 40], 4, 16, 4, 8, np.float32, 1, shares_pages=True)
    case.check(case.run(2))


def test_mla_decode_is_the_same_twice_and_beside_others():
    """For given splits a row's numbers are the same to the bit, alone and in a batch."""
    case = Rows([50, 20], 3, 16, 4, 16, np.float32, 2)
    both = case.run(3)
    assert np.array_equal(both, case.run(3))
    case.query, case.table, case.lengths = case.query[1:], case.table[1:], case.lengths[1:]
    assert np.array_equal(both[1:], case.run(3))


def test_mla_shapes_that_disagree_are_refused():
    """Rows that differ, a rank wider than a page, no split, and pages in strides are ValueErrors."""
    case = Rows([3, 4], 2, 16, 4, 8, np.float32, 1)
    with pytest.raises(ValueError, match="splits is 0"):
        case.run(0)
    case.rank = 30
    with pytest.raises(ValueError, match="do not fit"):
        case.run(1)
    case.rank, case.pages = 16, case.pages[:, ::2]
    with pytest.raises(ValueError, match="not contiguous"):
        case.run(1)
