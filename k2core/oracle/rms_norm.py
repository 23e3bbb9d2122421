"""Root-mean-square normalisation."""

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64, exact


def rms_norm(x: AnyFloat, gain: AnyFloat, eps: float) -> Float64:
    """gain * x / sqrt(mean(x²) + eps) over the last axis.

    Args:
        x: (…, hidden).
        gain: (hidden,).
        eps: added to the mean square.

    Source: transformers modeling_deepseek_v3.py @00b676f, ``DeepseekV3RMSNorm``.
    """
    values = exact(x)
    mean_square = np.mean(values * values, axis=-1, keepdims=True)
    normed: Float64 = exact(gain) * values / np.sqrt(mean_square + eps)
    return normed
