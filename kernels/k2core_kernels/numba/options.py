"""The one decorator of all Numba kernels, with the types their signatures are written in.

No fastmath: every sum has the order that its source spells, so the same row gives the same bits in every batch. LLVM fuses or
reorders nothing then; multiply-adds that should be fused say so (`vectors.fma`).

Every kernel states its signature, so that it is compiled once and not again for each way an argument happens to be typed.
Nothing is compiled on import: whoever runs kernels compiles `KERNELS` in order (a callee stands before its callers).
"""

from collections.abc import Callable
from typing import Any

import numba
from numba import types

floats, words, shorts = types.float32[::1], types.uint32[::1], types.uint16[::1]
ints, longs, table = types.int32[::1], types.int64[::1], types.int64[:, ::1]
size, real, flag, none = types.int64, types.float32, types.boolean, types.void

KERNELS: list[tuple[Any, Any]] = []  # (dispatcher, signature), callees first


def kernel(signature: Any, *, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a kernel: cached on disk, without the interpreter's lock, with IEEE division.

    Args:
        signature: its one signature, e.g. ``none(floats, size)``.
        parallel: `numba.prange` runs on several threads. Never used for a reduction.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=parallel)(function)
        KERNELS.append((dispatcher, signature))
        return dispatcher

    return decorate
