"""silu(gate) * up, with silu(g) = g / (1 + e**-g)."""

import numpy as np

from k2core_kernels.numba.options import floats, kernel, none, size
from k2core_kernels.numba.vectors import add, divide, exponential, load, multiply, splat, store, subtract


@kernel(none(floats, floats, size))
def swiglu(gate, up, size):
    """Overwrite gate with silu(gate) * up; *size* is a multiple of 16, both are flat float32."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    for block in range(0, size, 16):
        value = load(gate, block)
        activated = divide(value, add(one, exponential(subtract(zero, value))))
        store(gate, block, multiply(activated, load(up, block)))
