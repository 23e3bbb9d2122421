"""The routed experts' weighted sum."""

from collections.abc import Callable

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact
from k2core.oracle.rounding import Kind
from k2core.oracle.swiglu import swiglu

Expert = tuple[AnyFloat, AnyFloat, AnyFloat]


def moe_experts(x: AnyFloat, ids: Int64, weights: AnyFloat, expert: Callable[[int], Expert], kind: Kind = "none") -> Float64:
    """Σ over slots of weight * E(x), the shared expert not included.

    Args:
        x: (tokens, hidden).
        ids, weights: (tokens, top_k).
        expert: gives an expert's gate and up (inner, hidden) and down (hidden, inner), exactly code * scale.
        kind: how the inputs of the experts' products are rounded.

    Returns:
        (tokens, hidden).

    Source: transformers modeling_deepseek_v3.py @00b676f, ``DeepseekV3MoE``.
    """
    total = np.zeros(np.shape(x))
    for index in np.unique(ids):
        tokens, slots = np.nonzero(ids == index)
        total[tokens] += exact(weights)[tokens, slots, None] * swiglu(x[tokens], *expert(int(index)), kind)
    return total
