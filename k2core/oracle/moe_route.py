"""The router: sigmoid scores, a bias that takes part in the choice only, the best few normalised and scaled."""

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact
from k2core.oracle.linear import linear


def sigmoid(x: Float64) -> Float64:
    """1 / (1 + e**-x) without overflow."""
    value: Float64 = np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
    return value


def moe_route(
    x: AnyFloat, weight: AnyFloat, bias: AnyFloat, top_k: int, *, normalise: bool, factor: float
) -> tuple[Int64, Float64]:
    """Choose experts.

    Args:
        x: (tokens, hidden), normalised hidden states.
        weight: (experts, hidden).
        bias: (experts,), added for the choice and not for the weights.
        top_k: experts per token; a tie goes to the lower index.
        normalise: whether the chosen sigmoids are made to sum to 1.
        factor: of the weights.

    Returns:
        ids (tokens, top_k), best first, and weights (tokens, top_k).

    Source: transformers modeling_deepseek_v3.py @00b676f, ``DeepseekV3TopkRouter`` (one group).
    """
    scores = sigmoid(linear(x, weight))
    ids: Int64 = np.argsort(-(scores + exact(bias)), axis=-1, kind="stable")[:, :top_k].astype(np.int64)
    return ids, weights_of(scores, ids, normalise=normalise, factor=factor)


def weights_of(scores: Float64, ids: Int64, *, normalise: bool, factor: float) -> Float64:
    """The weights of a given choice: *scores* (tokens, experts) are sigmoids, *ids* and the result (tokens, top_k)."""
    weights = np.take_along_axis(scores, ids, -1)
    if normalise:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    weighed: Float64 = weights * factor
    return weighed


def shortfall(biased: Float64, ids: Int64) -> Float64:
    """(tokens,): by how much the best expert that was left out beats the worst that was chosen; 0 where none does.

    Args:
        biased: (tokens, experts), scores with their bias.
        ids: (tokens, top_k), any choice.
    """
    left_out = np.ones(biased.shape, bool)
    np.put_along_axis(left_out, ids, False, -1)
    best = np.where(left_out, biased, -np.inf).max(-1)
    missed: Float64 = np.maximum(best - np.take_along_axis(biased, ids, -1).min(-1), 0.0)
    return missed


def margins(x: AnyFloat, weight: AnyFloat, bias: AnyFloat, top_k: int) -> Float64:
    """(tokens,): by how much the least chosen expert beats the best one left out; infinity where none is."""
    ranked = np.sort(sigmoid(linear(x, weight)) + exact(bias), axis=-1)[:, ::-1]
    if top_k >= ranked.shape[-1]:
        return np.full(len(ranked), np.inf)
    margin: Float64 = ranked[:, top_k - 1] - ranked[:, top_k]
    return margin
