"""The gated feed-forward of the dense layers, the shared expert and every routed expert."""

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64
from k2core.oracle.linear import linear
from k2core.oracle.moe_route import sigmoid
from k2core.oracle.rounding import Kind, rounded


def silu(x: Float64) -> Float64:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def swiglu(x: AnyFloat, gate: AnyFloat, up: AnyFloat, down: AnyFloat, kind: Kind = "none") -> Float64:
    """down(silu(gate x) * up x).

    Args:
        x: (tokens, hidden).
        gate, up: (inner, hidden).
        down: (hidden, inner).
        kind: how the inputs of the three products are rounded.

    Returns:
        (tokens, hidden).

    Source: transformers modeling_deepseek_v3.py @00b676f, ``DeepseekV3MLP``.
    """
    kept = rounded(x, kind)
    gated: Float64 = np.asarray(silu(linear(kept, gate)) * linear(kept, up))
    return linear(rounded(gated, kind), down)
