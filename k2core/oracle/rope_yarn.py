"""Rotary positions on interleaved pairs, with YaRN's frequencies."""

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact


def rope_yarn(x: AnyFloat, positions: Int64, inv_freq: Float64, multiplier: float = 1.0) -> Float64:
    """Turn each pair (2i, 2i + 1) by the angle ``position * inv_freq[i]``.

    Args:
        x: (tokens, …, dim); any axes between the first and the last share the position.
        positions: (tokens,).
        inv_freq: (dim / 2,) radians per position (`Geometry.inv_freq`).
        multiplier: of cos and sin (`Geometry.rope_multiplier`).

    Source: vLLM deepseek_scaling_rope.py (``is_neox_style=False``); the Hugging Face code permutes to halves first, which
    leaves every score unchanged.
    """
    values = exact(x)
    angle = np.multiply.outer(positions.astype(np.float64), inv_freq)  # (tokens, dim / 2)
    angle = angle.reshape(len(positions), *[1] * (values.ndim - 2), -1)
    cosine, sine = np.cos(angle) * multiplier, np.sin(angle) * multiplier
    even, odd = values[..., 0::2], values[..., 1::2]
    turned = np.empty_like(values)
    turned[..., 0::2] = even * cosine - odd * sine
    turned[..., 1::2] = even * sine + odd * cosine
    return turned
