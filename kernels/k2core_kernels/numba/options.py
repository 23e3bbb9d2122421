"""The one decorator of all Numba kernels.

No fastmath: every sum has the order that its source spells, so the same row gives the same bits in every batch. LLVM fuses or
reorders nothing then; multiply-adds that should be fused say so (`vectors.fma`).
"""

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Any:
    """Compile lazily, cached on disk, without the interpreter's lock, with IEEE division."""
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Like `kernel`, and `numba.prange` runs on several threads. Never used for a reduction."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)(function)
