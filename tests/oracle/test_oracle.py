"""The oracle against itself: two forms of one equation, closed forms, and bounds that do bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.model.checkpoint import Checkpoint
from k2core.oracle.bounds import linear_bound, rms_norm_bound, swiglu_bound
from k2core.oracle.forward import forward
from k2core.oracle.linear import linear
from k2core.oracle.mla_attention import absorbed, mla_attention
from k2core.oracle.moe_route import margins, moe_route
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rope_yarn import rope_yarn
from k2core.oracle.swiglu import swiglu
from k2core.testing.checkpoints import write_tiny_checkpoint

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


@given(sizes, sizes, sizes, sizes, sizes, sizes, seeds)
def test_absorbed_attention_is_plain_attention(tokens, heads, nope, pairs, rank, value, seed):
    """Both forms of latent attention give the same float64 numbers up to rounding."""
    random = np.random.default_rng(seed)
    arguments = (
        random.standard_normal((tokens, heads, nope)),
        random.standard_normal((tokens, heads, 2 * pairs)),
        random.standard_normal((tokens + 3, rank)),
        random.standard_normal((tokens + 3, 2 * pairs)),
        random.standard_normal((heads, nope + value, rank)),
        np.arange(3, tokens + 3),
        0.3,
    )
    np.testing.assert_allclose(absorbed(*arguments), mla_attention(*arguments), rtol=1e-10, atol=1e-12)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 200), seeds)
def test_rotated_scores_depend_on_distance_only(first, second, shift, seed):
    """Turning two vectors by their positions leaves a product that depends on the difference of the positions."""
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((1, 8)), random.standard_normal((1, 8))
    frequency = 10000.0 ** (-np.arange(4) / 4)

    def score(i, j):
        return (rope_yarn(left, np.array([i]), frequency) * rope_yarn(right, np.array([j]), frequency)).sum()

    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-10)


def test_a_later_key_has_no_weight():
    """What stands after a query in the cache does not change its attention."""
    random = np.random.default_rng(1)
    query, turned, latent, key, expand = (
        random.standard_normal(shape) for shape in ((2, 3, 4), (2, 3, 2), (5, 6), (5, 2), (3, 8, 6))
    )
    positions = np.array([1, 2])
    before = mla_attention(query, turned, latent, key, expand, positions, 1.0)
    latent[3:], key[3:] = 1e6, -1e6
    np.testing.assert_array_equal(mla_attention(query, turned, latent, key, expand, positions, 1.0), before)


def test_router_ties_go_to_the_lower_index():
    """Equal biased scores are taken in the order of their indices, and the bias does not enter the weights."""
    ids, weights = moe_route(np.ones((1, 1)), np.zeros((4, 1)), np.array([0, 0.5, 0.5, 0.5]), 2, normalise=True, factor=2.0)
    assert ids.tolist() == [[1, 2]]
    assert weights.tolist() == [[1.0, 1.0]]


def test_router_margin_is_the_distance_to_the_best_left_out():
    """The margin separates the last chosen score from the first one not chosen."""
    bias = np.array([0.0, 3.0, 1.0, 2.0])
    assert margins(np.ones((1, 1)), np.zeros((4, 1)), bias, 2).tolist() == [1.0]


@given(sizes, st.integers(1, 70), sizes, seeds)
def test_float32_in_any_order_stays_within_the_bounds(tokens, columns, rows, seed):
    """Sums taken in a random order in float32 keep to the bounds; the bounds are not loose beyond sense."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    weight = random.standard_normal((rows, columns)).astype(np.float32)
    order = random.permutation(columns)
    total = np.zeros((tokens, rows), np.float32)
    for column in order:
        total += x[:, column, None] * weight[:, column]
    bound = linear_bound(x, weight)
    assert (np.abs(total - linear(x, weight)) <= bound).all()
    assert (bound <= 1e-4 * columns).all()
    mean = np.float32(0)
    squares = np.zeros(tokens, np.float32)
    for column in order:
        squares += x[:, column] * x[:, column]
    mean = squares / np.float32(columns) + np.float32(1e-5)
    normed = x * (np.float32(1) / np.sqrt(mean))[:, None]
    exactly = rms_norm(x, np.ones(columns), float(np.float32(1e-5)))
    assert (np.abs(normed - exactly) <= rms_norm_bound(exactly)).all()


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), seeds)
def test_float32_swiglu_stays_within_its_bound(tokens, hidden, inner, seed):
    """A plain float32 gated feed-forward keeps to the bound."""
    random = np.random.default_rng(seed)
    x, gate, up, down = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((tokens, hidden), (inner, hidden), (inner, hidden), (hidden, inner))
    )
    left = x @ gate.T
    result = (left / (np.float32(1) + np.exp(-left)) * (x @ up.T)) @ down.T
    assert (np.abs(result - swiglu(x, gate, up, down)) <= swiglu_bound(x, gate, up, down)).all()


def test_forward_is_causal(tmp_path):
    """A later token changes no earlier logits."""
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, seed=4))
    short, long = forward(checkpoint, [5, 6, 7]), forward(checkpoint, [5, 6, 7, 8])
    np.testing.assert_allclose(long.logits[:3], short.logits, rtol=1e-12, atol=1e-12)
    assert long.hidden.shape == (4, 64)
    assert len(long.expert_ids) == len(checkpoint.geometry.moe_layers)
