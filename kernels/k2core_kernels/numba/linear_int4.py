"""y = W x for INT4 weights with one bfloat16 scale per group of columns; the weights stay packed.

Layout of W (rows, columns): tiles of 16 rows; a tile holds for each word of eight columns 16 uint32 words, one per row; field i
is column 8 * word + i as a signed 4-bit number (the checkpoint's offset of 8 undone by flipping the field's top bit). Scales:
for each tile and group 16 bfloat16, one per row. Rows are padded to 16 with zeros; the size is otherwise the checkpoint's.

Order of a sum: within a group even columns ascending by fused multiply-add, odd columns likewise, the two added; that times the
scale is fused onto the sum of the groups before. It does not depend on how many tokens, tiles or threads there are.
"""

import numba
import numpy as np
from numba import types

from k2core_kernels.numba.linear import PARALLEL_WORK, PARTS, onto, together
from k2core_kernels.numba.options import floats, kernel, none, shorts, size, words
from k2core_kernels.numba.vectors import (
    Float16,
    Int16,
    add,
    fma,
    load_bfloat16,
    load_words,
    nibble0,
    nibble1,
    nibble2,
    nibble3,
    nibble4,
    nibble5,
    nibble6,
    nibble7,
    splat,
    store,
)


@kernel(types.UniTuple(Float16, 2)(Int16, floats, size, Float16, Float16))
def _word_onto(packed, x, column, even, odd):
    """The two sums of a token with the eight columns of a word added."""
    even, odd = onto(nibble0(packed), nibble1(packed), x, column, even, odd)
    even, odd = onto(nibble2(packed), nibble3(packed), x, column + 2, even, odd)
    even, odd = onto(nibble4(packed), nibble5(packed), x, column + 4, even, odd)
    return onto(nibble6(packed), nibble7(packed), x, column + 6, even, odd)


@kernel(none(words, shorts, size, size, size, floats, size, floats, size))
def _one_token(words, scales, groups, group_words, tile, x, x_start, y, y_start):
    total = splat(np.float32(0))
    at, column = tile * groups * group_words * 16, x_start
    for group in range(groups):
        even, odd = splat(np.float32(0)), splat(np.float32(0))
        for _ in range(group_words):
            packed = load_words(words, at)
            even, odd = _word_onto(packed, x, column, even, odd)
            at, column = at + 16, column + 8
        total = fma(add(even, odd), load_bfloat16(scales, (tile * groups + group) * 16), total)
    store(y, y_start + 16 * tile, total)


@kernel(none(words, shorts, size, size, size, floats, size, floats, size))
def _one_token_four_tiles(words, scales, groups, group_words, tile, x, x_start, y, y_start):
    zero = splat(np.float32(0))
    total0, total1, total2, total3 = zero, zero, zero, zero
    step = groups * group_words * 16
    at, column = tile * step, x_start
    for group in range(groups):
        even0, even1, even2, even3 = zero, zero, zero, zero
        odd0, odd1, odd2, odd3 = zero, zero, zero, zero
        for _ in range(group_words):
            packed0, packed1 = load_words(words, at), load_words(words, at + step)
            packed2, packed3 = load_words(words, at + 2 * step), load_words(words, at + 3 * step)
            even0, odd0 = _word_onto(packed0, x, column, even0, odd0)
            even1, odd1 = _word_onto(packed1, x, column, even1, odd1)
            even2, odd2 = _word_onto(packed2, x, column, even2, odd2)
            even3, odd3 = _word_onto(packed3, x, column, even3, odd3)
            at, column = at + 16, column + 8
        scale = (tile * groups + group) * 16
        total0 = fma(add(even0, odd0), load_bfloat16(scales, scale), total0)
        total1 = fma(add(even1, odd1), load_bfloat16(scales, scale + groups * 16), total1)
        total2 = fma(add(even2, odd2), load_bfloat16(scales, scale + groups * 32), total2)
        total3 = fma(add(even3, odd3), load_bfloat16(scales, scale + groups * 48), total3)
    start = y_start + 16 * tile
    store(y, start, total0)
    store(y, start + 16, total1)
    store(y, start + 32, total2)
    store(y, start + 48, total3)


@kernel(none(words, shorts, size, size, size, floats, size, size, floats, size, size))
def _two_tokens(words, scales, groups, group_words, tile, x, x_start, stride, y, y_start, y_stride):
    zero = splat(np.float32(0))
    total0, total1 = zero, zero
    at, column = tile * groups * group_words * 16, x_start
    for group in range(groups):
        even0, even1, odd0, odd1 = zero, zero, zero, zero
        for _ in range(group_words):
            packed = load_words(words, at)
            even0, odd0 = _word_onto(packed, x, column, even0, odd0)
            even1, odd1 = _word_onto(packed, x, column + stride, even1, odd1)
            at, column = at + 16, column + 8
        scale = load_bfloat16(scales, (tile * groups + group) * 16)
        total0 = fma(add(even0, odd0), scale, total0)
        total1 = fma(add(even1, odd1), scale, total1)
    start = y_start + 16 * tile
    store(y, start, total0)
    store(y, start + y_stride, total1)


@kernel(none(words, shorts, size, size, size, floats, size, size, floats, size, size))
def _three_tokens(words, scales, groups, group_words, tile, x, x_start, stride, y, y_start, y_stride):
    zero = splat(np.float32(0))
    total0, total1, total2 = zero, zero, zero
    at, column = tile * groups * group_words * 16, x_start
    for group in range(groups):
        even0, even1, even2 = zero, zero, zero
        odd0, odd1, odd2 = zero, zero, zero
        for _ in range(group_words):
            packed = load_words(words, at)
            even0, odd0 = _word_onto(packed, x, column, even0, odd0)
            even1, odd1 = _word_onto(packed, x, column + stride, even1, odd1)
            even2, odd2 = _word_onto(packed, x, column + 2 * stride, even2, odd2)
            at, column = at + 16, column + 8
        scale = load_bfloat16(scales, (tile * groups + group) * 16)
        total0 = fma(add(even0, odd0), scale, total0)
        total1 = fma(add(even1, odd1), scale, total1)
        total2 = fma(add(even2, odd2), scale, total2)
    start = y_start + 16 * tile
    store(y, start, total0)
    store(y, start + y_stride, total1)
    store(y, start + 2 * y_stride, total2)


@kernel(none(words, shorts, size, size, size, floats, size, size, floats, size, size))
def _four_tokens(words, scales, groups, group_words, tile, x, x_start, stride, y, y_start, y_stride):
    zero = splat(np.float32(0))
    total0, total1, total2, total3 = zero, zero, zero, zero
    at, column = tile * groups * group_words * 16, x_start
    for group in range(groups):
        even0, even1, even2, even3 = zero, zero, zero, zero
        odd0, odd1, odd2, odd3 = zero, zero, zero, zero
        for _ in range(group_words):
            packed = load_words(words, at)
            even0, odd0 = _word_onto(packed, x, column, even0, odd0)
            even1, odd1 = _word_onto(packed, x, column + stride, even1, odd1)
            even2, odd2 = _word_onto(packed, x, column + 2 * stride, even2, odd2)
            even3, odd3 = _word_onto(packed, x, column + 3 * stride, even3, odd3)
            at, column = at + 16, column + 8
        scale = load_bfloat16(scales, (tile * groups + group) * 16)
        total0 = fma(add(even0, odd0), scale, total0)
        total1 = fma(add(even1, odd1), scale, total1)
        total2 = fma(add(even2, odd2), scale, total2)
        total3 = fma(add(even3, odd3), scale, total3)
    start = y_start + 16 * tile
    store(y, start, total0)
    store(y, start + y_stride, total1)
    store(y, start + 2 * y_stride, total2)
    store(y, start + 3 * y_stride, total3)


@kernel(none(words, shorts, size, size, size, size, floats, size, size, size, floats, size, size))
def linear_int4_tiles(words, scales, groups, group_words, first, last, x, x_start, x_stride, tokens, y, y_start, y_stride):
    """Rows 16 * first up to 16 * last of W x; arguments as of `linear_int4`."""
    if tokens == 1:
        tile = first
        while tile + 4 <= last:
            _one_token_four_tiles(words, scales, groups, group_words, tile, x, x_start, y, y_start)
            tile += 4
        while tile < last:
            _one_token(words, scales, groups, group_words, tile, x, x_start, y, y_start)
            tile += 1
        return
    for tile in range(first, last):
        token = 0
        while token < tokens:
            count, from_x, to_y = together(tokens - token), x_start + token * x_stride, y_start + token * y_stride
            if count == 4:
                _four_tokens(words, scales, groups, group_words, tile, x, from_x, x_stride, y, to_y, y_stride)
            elif count == 3:
                _three_tokens(words, scales, groups, group_words, tile, x, from_x, x_stride, y, to_y, y_stride)
            else:
                _two_tokens(words, scales, groups, group_words, tile, x, from_x, x_stride, y, to_y, y_stride)
            token += count


@kernel(none(words, shorts, size, size, size, floats, size, size, size, floats, size, size), parallel=True)
def _linear_int4_parallel(words, scales, groups, group_words, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride):
    for part in numba.prange(PARTS):
        first, last = tiles * np.int64(part) // PARTS, tiles * (np.int64(part) + 1) // PARTS
        linear_int4_tiles(words, scales, groups, group_words, first, last, x, x_start, x_stride, tokens, y, y_start, y_stride)


@kernel(none(words, shorts, size, size, size, floats, size, size, size, floats, size, size, size))
def linear_int4(words, scales, groups, group_words, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride, threads):
    """All rows of W x for *tokens* tokens, on several threads where the work is worth it.

    Args:
        words: flat uint32 in the layout above.
        scales: flat uint16 (bfloat16) in the layout above.
        groups: groups of columns that share a scale.
        group_words: words of eight columns per group.
        tiles: tiles of 16 rows.
        x: flat float32; token t's values begin at x_start + t * x_stride.
        y: flat float32; row r of token t is written to y_start + t * y_stride + r, 16 * tiles rows.
        threads: 1 never enters a parallel region.
    """
    if threads > 1 and tiles * groups * group_words * tokens * 128 >= PARALLEL_WORK:
        _linear_int4_parallel(words, scales, groups, group_words, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride)
    else:
        linear_int4_tiles(words, scales, groups, group_words, 0, tiles, x, x_start, x_stride, tokens, y, y_start, y_stride)
