"""y = W x for bfloat16 weights: rows are the lanes of a vector, columns are summed in order.

Layout of W (rows, columns): tiles of 16 rows; a tile holds for each pair of columns 16 uint32 words, one per row, the even
column in the low half. Rows are padded to 16 and columns to 2 with zeros; the size is otherwise that of the plain matrix.

Order of a sum: even columns ascending by fused multiply-add, odd columns likewise, then the two added. It does not depend on
how many tokens, tiles or threads there are.

Up to four tokens share the loads of a tile: a multiply-add waits four cycles for the one before it in its sum, so at least four
sums must be on their way to keep the units busy, and with eight the loads and the widening of weights hide behind them.
"""

import numba
import numpy as np
from numba import types

from k2core_kernels.numba.options import floats, kernel, none, size, words
from k2core_kernels.numba.vectors import Float16, add, broadcast, fma, high_bfloat16, load_words, low_bfloat16, splat, store

PARALLEL_WORK = 2_000_000  # multiply-adds below which a parallel region costs more than it gives
PARTS = 16  # pieces of a parallel region; bits do not depend on it


@kernel(types.UniTuple(Float16, 2)(Float16, Float16, floats, size, Float16, Float16))
def onto(low, high, x, column, even, odd):
    """The two sums of a token with one even and one odd column of a tile added."""
    return fma(low, broadcast(x, column), even), fma(high, broadcast(x, column + 1), odd)


@kernel(size(size))
def together(tokens):
    """How many of the tokens that are left to compute in one go; never 1 unless it is the last of all."""
    if tokens == 4 or tokens > 6:
        return 4
    return min(tokens, 3)


@kernel(none(words, size, size, floats, size, floats, size))
def _one_token(weight, pairs, tile, x, x_start, y, y_start):
    even, odd = splat(np.float32(0)), splat(np.float32(0))
    at = tile * pairs * 16
    for pair in range(pairs):
        words = load_words(weight, at + pair * 16)
        even, odd = onto(low_bfloat16(words), high_bfloat16(words), x, x_start + 2 * pair, even, odd)
    store(y, y_start + 16 * tile, add(even, odd))


@kernel(none(words, size, size, floats, size, floats, size))
def _one_token_four_tiles(weight, pairs, tile, x, x_start, y, y_start):
    zero = splat(np.float32(0))
    even0, even1, even2, even3 = zero, zero, zero, zero
    odd0, odd1, odd2, odd3 = zero, zero, zero, zero
    step = pairs * 16
    at0 = tile * step
    at1, at2, at3 = at0 + step, at0 + 2 * step, at0 + 3 * step
    for pair in range(pairs):
        column = x_start + 2 * pair
        words0, words1 = load_words(weight, at0 + pair * 16), load_words(weight, at1 + pair * 16)
        words2, words3 = load_words(weight, at2 + pair * 16), load_words(weight, at3 + pair * 16)
        even0, odd0 = onto(low_bfloat16(words0), high_bfloat16(words0), x, column, even0, odd0)
        even1, odd1 = onto(low_bfloat16(words1), high_bfloat16(words1), x, column, even1, odd1)
        even2, odd2 = onto(low_bfloat16(words2), high_bfloat16(words2), x, column, even2, odd2)
        even3, odd3 = onto(low_bfloat16(words3), high_bfloat16(words3), x, column, even3, odd3)
    start = y_start + 16 * tile
    store(y, start, add(even0, odd0))
    store(y, start + 16, add(even1, odd1))
    store(y, start + 32, add(even2, odd2))
    store(y, start + 48, add(even3, odd3))


@kernel(none(words, size, size, floats, size, size, floats, size, size))
def _two_tokens(weight, pairs, tile, x, x_start, x_stride, y, y_start, y_stride):
    zero = splat(np.float32(0))
    even0, even1, odd0, odd1 = zero, zero, zero, zero
    at = tile * pairs * 16
    for pair in range(pairs):
        words = load_words(weight, at + pair * 16)
        low, high = low_bfloat16(words), high_bfloat16(words)
        column = x_start + 2 * pair
        even0, odd0 = onto(low, high, x, column, even0, odd0)
        even1, odd1 = onto(low, high, x, column + x_stride, even1, odd1)
    start = y_start + 16 * tile
    store(y, start, add(even0, odd0))
    store(y, start + y_stride, add(even1, odd1))


@kernel(none(words, size, size, floats, size, size, floats, size, size))
def _three_tokens(weight, pairs, tile, x, x_start, x_stride, y, y_start, y_stride):
    zero = splat(np.float32(0))
    even0, even1, even2, odd0, odd1, odd2 = zero, zero, zero, zero, zero, zero
    at = tile * pairs * 16
    for pair in range(pairs):
        words = load_words(weight, at + pair * 16)
        low, high = low_bfloat16(words), high_bfloat16(words)
        column = x_start + 2 * pair
        even0, odd0 = onto(low, high, x, column, even0, odd0)
        even1, odd1 = onto(low, high, x, column + x_stride, even1, odd1)
        even2, odd2 = onto(low, high, x, column + 2 * x_stride, even2, odd2)
    start = y_start + 16 * tile
    store(y, start, add(even0, odd0))
    store(y, start + y_stride, add(even1, odd1))
    store(y, start + 2 * y_stride, add(even2, odd2))


@kernel(none(words, size, size, floats, size, size, floats, size, size))
def _four_tokens(weight, pairs, tile, x, x_start, x_stride, y, y_start, y_stride):
    zero = splat(np.float32(0))
    even0, even1, even2, even3 = zero, zero, zero, zero
    odd0, odd1, odd2, odd3 = zero, zero, zero, zero
    at = tile * pairs * 16
    for pair in range(pairs):
        words = load_words(weight, at + pair * 16)
        low, high = low_bfloat16(words), high_bfloat16(words)
        column = x_start + 2 * pair
        even0, odd0 = onto(low, high, x, column, even0, odd0)
        even1, odd1 = onto(low, high, x, column + x_stride, even1, odd1)
        even2, odd2 = onto(low, high, x, column + 2 * x_stride, even2, odd2)
        even3, odd3 = onto(low, high, x, column + 3 * x_stride, even3, odd3)
    start = y_start + 16 * tile
    store(y, start, add(even0, odd0))
    store(y, start + y_stride, add(even1, odd1))
    store(y, start + 2 * y_stride, add(even2, odd2))
    store(y, start + 3 * y_stride, add(even3, odd3))


@kernel(none(words, size, size, size, floats, size, size, size, floats, size, size))
def linear_tiles(weight, pairs, first, last, x, x_start, x_stride, tokens, y, y_start, y_stride):
    """Rows 16 * first up to 16 * last of W x for *tokens* tokens.

    Args:
        weight: flat uint32 in the layout above.
        pairs: pairs of columns.
        first, last: tiles.
        x: flat float32; token t's values begin at x_start + t * x_stride, 2 * pairs of them are read.
        y: flat float32; row r of token t is written to y_start + t * y_stride + r.
    """
    if tokens == 1:
        tile = first
        while tile + 4 <= last:
            _one_token_four_tiles(weight, pairs, tile, x, x_start, y, y_start)
            tile += 4
        while tile < last:
            _one_token(weight, pairs, tile, x, x_start, y, y_start)
            tile += 1
        return
    for tile in range(first, last):
        token = 0
        while token < tokens:
            count, from_x, to_y = together(tokens - token), x_start + token * x_stride, y_start + token * y_stride
            if count == 4:
                _four_tokens(weight, pairs, tile, x, from_x, x_stride, y, to_y, y_stride)
            elif count == 3:
                _three_tokens(weight, pairs, tile, x, from_x, x_stride, y, to_y, y_stride)
            else:
                _two_tokens(weight, pairs, tile, x, from_x, x_stride, y, to_y, y_stride)
            token += count


@kernel(none(words, size, size, floats, size, size, size, floats, size, size), parallel=True)
def _linear_parallel(weight, pairs, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride):
    for part in numba.prange(PARTS):
        first, last = tiles * np.int64(part) // PARTS, tiles * (np.int64(part) + 1) // PARTS
        linear_tiles(weight, pairs, first, last, x, x_start, x_stride, tokens, y, y_start, y_stride)


@kernel(none(words, size, size, floats, size, size, size, floats, size, size, size))
def linear(weight, pairs, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride, threads):
    """All rows of W x for *tokens* tokens, on several threads where the work is worth it.

    Args:
        weight: flat uint32 in the layout above.
        pairs: pairs of columns.
        tiles: tiles of 16 rows.
        x: flat float32; token t's values begin at x_start + t * x_stride, 2 * pairs of them are read.
        y: flat float32; row r of token t is written to y_start + t * y_stride + r, 16 * tiles rows.
        threads: 1 never enters a parallel region.
    """
    if threads > 1 and tiles * pairs * tokens * 32 >= PARALLEL_WORK:
        _linear_parallel(weight, pairs, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride)
    else:
        linear_tiles(weight, pairs, 0, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride)
