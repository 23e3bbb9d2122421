"""RMSNorm: y = gain * x / sqrt(mean(x**2) + eps), statistics in float32.

Order of the sum of squares: 16 lanes over blocks of 16 values, the lanes' tree, then the values after the last whole block.
"""

import numpy as np

from k2core_kernels.numba.options import floats, kernel, none, real, size
from k2core_kernels.numba.vectors import fma, load, multiply, splat, store, sum_lanes


@kernel(none(floats, size, size, size, floats, real, floats, size, size))
def rms_norm(x, x_start, x_stride, tokens, gain, eps, y, y_start, y_stride):
    """Normalise *tokens* rows of len(gain) values.

    Args:
        x: flat float32; token t begins at x_start + t * x_stride.
        gain: flat float32.
        eps: float32.
        y: flat float32, may be x; token t begins at y_start + t * y_stride.
    """
    size = len(gain)
    whole = size // 16 * 16
    for token in range(tokens):
        source, target = x_start + token * x_stride, y_start + token * y_stride
        lanes = splat(np.float32(0))
        for block in range(0, whole, 16):
            values = load(x, source + block)
            lanes = fma(values, values, lanes)
        total = sum_lanes(lanes)
        for i in range(whole, size):
            total += x[source + i] * x[source + i]
        inverse = np.float32(1) / np.sqrt(total / np.float32(size) + eps)
        for block in range(0, whole, 16):
            store(y, target + block, multiply(load(gain, block), multiply(load(x, source + block), splat(inverse))))
        for i in range(whole, size):
            y[target + i] = gain[i] * (x[source + i] * inverse)
