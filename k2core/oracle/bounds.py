"""How far a float32 computation may be from the oracle, op by op, derived and not guessed.

u = 2**-24 is float32's unit roundoff: each operation gives the exact result times (1 + d), |d| <= u. After n of them in a chain
the factor is within `gamma(n)` of 1 (Higham, Accuracy and Stability of Numerical Algorithms, §3.1). A sum of n products in
whatever order, fused or not, has at most n roundings on the way of any product, so its error is at most gamma(n) times the sum
of the products' magnitudes. Every bound here is for any order of summation, hence for every backend with numerics ``exact``.

Bounds are arrays of the result's shape. Inputs are taken as exact; where an op follows another inside one bound, the first
one's error is carried through the second's derivative.
"""

from collections.abc import Callable

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact
from k2core.oracle.linear import linear
from k2core.oracle.moe_experts import Expert
from k2core.oracle.rounding import Kind, rounding_error
from k2core.oracle.swiglu import silu

UNIT = 2.0**-24
EXPONENTIAL = 3  # unit roundoffs of a float32 e**x; libm and polynomial versions stay below it
FLUSHED = 2.0**-120  # e**x below e**-83 may become 0 or subnormal
STEEPEST_SILU = 1.1  # the greatest slope of silu is 1.0998


def gamma(roundings: float) -> float:
    """The most that *roundings* in a chain change a result, relatively."""
    return roundings * UNIT / (1 - roundings * UNIT)


def linear_bound(x: AnyFloat, weight: AnyFloat, x_error: AnyFloat | float = 0.0) -> Float64:
    """Of x Wᵀ: one rounding per product at most, two more for a scale per group; the input's error times the weights."""
    magnitude = np.abs(exact(weight))
    roundings = gamma(weight.shape[-1] + 2)
    error = np.broadcast_to(np.asarray(x_error, np.float64), np.shape(x))
    return linear(np.abs(exact(x)) + error, magnitude) * roundings + linear(error, magnitude)


def rms_norm_bound(y: Float64) -> Float64:
    """Of the oracle's result y: the mean of n squares is positive, so its relative error is gamma(n + 3) with the squares, the
    division and eps; the root halves it. Root, reciprocal and two products add four roundings."""
    return np.abs(y) * gamma((y.shape[-1] + 3) / 2 + 4)


def rms_norm_error(x: AnyFloat, gain: AnyFloat, eps: float, x_error: Float64) -> Float64:
    """Of the norm of an x that is itself off by at most *x_error*: that error divided by the root r of the mean square, and r's
    own change, which is at most the root of the mean square of the errors (the triangle inequality); then `rms_norm_bound`."""
    values = exact(x)
    root = np.sqrt(np.mean(values * values, axis=-1, keepdims=True) + eps)
    change = np.sqrt(np.mean(x_error * x_error, axis=-1, keepdims=True)) / root
    worst = 1 / np.maximum(1 - change, 1e-3)
    carried = np.abs(exact(gain)) * (x_error + np.abs(values) * change) / root * worst
    y = exact(gain) * values / root
    total: Float64 = carried + rms_norm_bound(np.abs(y) + carried)
    return total


def rope_yarn_bound(x: AnyFloat, multiplier: float = 1.0, x_error: AnyFloat | float = 0.0) -> Float64:
    """A rotated value is a cos ± b sin: the table's entry, the product and the sum are rounded once each.

    Errors of a and b come through whole, at most.
    """
    error = np.broadcast_to(np.asarray(x_error, np.float64), np.shape(x))
    carried, values = _pair_sums(error), _pair_sums(np.abs(exact(x)) + error)
    return (values * gamma(3) + carried) * multiplier


def _pair_sums(values: Float64) -> Float64:
    """Of each pair (2i, 2i + 1) the sum, at both places."""
    sums: Float64 = np.repeat(values[..., 0::2] + values[..., 1::2], 2, axis=-1)
    return sums


def sigmoid_error(score: Float64, logit_error: Float64) -> Float64:
    """Of sigmoid(z): e**-z, the sum and the quotient; the slope of log sigmoid is at most 1."""
    return score * (gamma(EXPONENTIAL + 2) + np.expm1(logit_error)) + FLUSHED


def moe_route_bound(
    x: AnyFloat, weight: AnyFloat, scores: Float64, chosen: Float64, *, factor: float, x_error: AnyFloat | float = 0.0
) -> tuple[Float64, Float64]:
    """Of the router.

    Args:
        x, weight: (tokens, hidden) and (experts, hidden).
        scores: (tokens, experts), the oracle's sigmoids.
        chosen: (tokens, top_k), the oracle's weights.
        factor: of the weights.
        x_error: of x.

    Returns:
        (tokens, experts) of the biased scores: two experts closer than the sum of theirs may change places (the bias' sum is
        rounded once more); and (tokens, top_k) of the weights, for the same choice: a quotient of two relatively exact numbers.
    """
    error = sigmoid_error(scores, linear_bound(x, weight, x_error))
    worst = np.max(error / scores, axis=-1, keepdims=True)
    return error + 2 * UNIT * (scores + 1), np.abs(chosen) * (2 * worst + gamma(chosen.shape[-1] + 4)) + factor * FLUSHED


def swiglu_bound(
    x: AnyFloat, gate: AnyFloat, up: AnyFloat, down: AnyFloat, kind: Kind = "none", x_error: AnyFloat | float = 0.0
) -> Float64:
    """Of down(silu(gate x) * up x): errors of the two products through silu's slope and the product, then `linear_bound`.

    Args:
        x, gate, up, down: as of `swiglu`.
        kind: how the inputs of all three products are rounded.
        x_error: of x.
    """
    error = rounding_error(x, kind, x_error)
    left, right = linear(x, gate), linear(x, up)
    left_error, right_error = linear_bound(x, gate, error), linear_bound(x, up, error)
    activated = np.abs(silu(left))
    activated_error = STEEPEST_SILU * left_error + activated * gamma(EXPONENTIAL + 3) + FLUSHED
    inner = silu(left) * right
    inner_error = activated_error * (np.abs(right) + right_error) + activated * right_error + np.abs(inner) * gamma(2)
    return linear_bound(inner, down, rounding_error(inner, kind, inner_error))


def moe_experts_bound(
    x: AnyFloat,
    ids: Int64,
    weights: AnyFloat,
    expert: Callable[[int], Expert],
    kind: Kind = "none",
    x_error: AnyFloat | float = 0.0,
    weights_error: AnyFloat | float = 0.0,
) -> Float64:
    """Of the routed sum on the same routing: each expert's bound, and one rounding per slot and product.

    Args:
        x, ids, weights, expert: as of `moe_experts`.
        kind: how the inputs of the experts' products are rounded.
        x_error, weights_error: of x and of the weights.
    """
    total = np.zeros(np.shape(x))
    roundings = gamma(ids.shape[-1] + 1)
    shares = np.abs(exact(weights))
    share_errors = np.broadcast_to(np.asarray(weights_error, np.float64), shares.shape)
    errors = np.broadcast_to(np.asarray(x_error, np.float64), np.shape(x))
    for index in np.unique(ids):
        tokens, slots = np.nonzero(ids == index)
        own = expert(int(index))
        error = swiglu_bound(x[tokens], *own, kind, errors[tokens])
        share, share_error = shares[tokens, slots, None], share_errors[tokens, slots, None]
        magnitude = np.abs(linear(silu(linear(x[tokens], own[0])) * linear(x[tokens], own[1]), own[2])) + error
        total[tokens] += share * (error + roundings * magnitude) + share_error * magnitude * (1 + roundings)
    return total


def latent_attention_bound(query: AnyFloat, latent: AnyFloat, positions: Int64, scale: float, rank: int) -> Float64:
    """Of attention on given latents, before the values are projected.

    A score's error is that of a sum of products and two more roundings. Subtracting the greatest score rounds by u times the
    difference, which acts as a relative error of its exponential, as a score's error does. A share is such an exponential over
    the sum of them, so the errors count twice; sums over the context and the last product follow.

    Args:
        query: (tokens, heads, width), absorbed values and rotated ones.
        latent: (context, width).
        positions: (tokens,).
        scale: factor of scores.
        rank: the first *rank* columns of *latent* are the values.

    Returns:
        (tokens, heads, rank).
    """
    keys = np.abs(exact(latent))
    magnitude = np.einsum("thd,jd->thj", np.abs(exact(query)), keys) * scale
    scores = np.einsum("thd,jd->thj", exact(query), exact(latent)) * scale
    seen = np.arange(len(keys)) <= positions[:, None, None]
    visible = np.where(seen, scores, -np.inf)
    top = visible.max(-1, keepdims=True)
    score_error = np.where(seen, magnitude, 0).max(-1, keepdims=True) * gamma(keys.shape[-1] + 2)
    spread = np.where(seen, np.minimum(top - np.where(seen, scores, top), 90.0), 0).max(-1, keepdims=True) * UNIT
    share_error = np.expm1(2 * (score_error + spread)) + 2 * gamma(EXPONENTIAL) + gamma(2 * len(keys) + 3)
    shares = np.exp(visible - top)
    shares /= shares.sum(-1, keepdims=True)
    bound: Float64 = np.einsum("thj,jr->thr", shares * share_error + np.where(seen, FLUSHED, 0), keys[:, :rank])
    return bound
