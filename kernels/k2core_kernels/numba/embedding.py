"""Rows of a bfloat16 table, exactly upcast."""

from k2core_kernels.numba.options import floats, kernel, longs, none, shorts, size
from k2core_kernels.numba.vectors import load_bfloat16, store


@kernel(none(shorts, size, longs, floats))
def embedding(table, stride, token_ids, y):
    """Copy one row per token.

    Args:
        table: flat uint16 (bfloat16), row r at r * stride; stride is a multiple of 16, the padding is zero.
        token_ids: flat int64.
        y: flat float32, token t at t * stride.
    """
    for token in range(len(token_ids)):
        row = token_ids[token] * stride
        for block in range(0, stride, 16):
            store(y, token * stride + block, load_bfloat16(table, row + block))
