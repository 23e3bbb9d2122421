"""The gated feed-forward of the dense layers, the shared expert and every routed expert."""

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64
from k2core.oracle.linear import linear
from k2core.oracle.moe_route import sigmoid


def silu(x: Float64) -> Float64:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def swiglu(x: AnyFloat, gate: AnyFloat, up: AnyFloat, down: AnyFloat) -> Float64:
    """down(silu(gate x) * up x).

    Args:
        x: (tokens, hidden).
        gate, up: (inner, hidden).
        down: (hidden, inner).

    Returns:
        (tokens, hidden).

    Source: transformers modeling_deepseek_v3.py @00b676f, ``DeepseekV3MLP``.
    """
    gated: Float64 = np.asarray(silu(linear(x, gate)) * linear(x, up))
    return linear(gated, down)
