"""Latent attention in absorbed form: queries meet the cached latents directly, keys and values are never expanded.

The cache of a sequence is a list of pages. A page holds PAGE positions of all layers; per layer PAGE / 16 blocks of 16
positions; a block holds, for each of the latent and rotated-key values, 16 float32, one per position.

Order of the sums: a score has four chains over the dimensions (dimension modulo 4), added as a tree; softmax subtracts the
maximum, sums 16 lanes over the blocks in order, then the lanes' tree; a value does the same. Heads that are computed
together share loads, not sums. Blocks sit at fixed positions, so a token's result does not depend on how its prompt was cut.
"""

import numba
import numpy as np

from k2core_kernels.numba.linear import PARALLEL_WORK, PARTS
from k2core_kernels.numba.options import floats, ints, kernel, longs, none, real, size
from k2core_kernels.numba.vectors import (
    Float16,
    add,
    broadcast,
    exponential,
    fma,
    load,
    load_at,
    max_lanes,
    maximum,
    multiply,
    splat,
    store,
    subtract,
    sum_lanes,
)

PAGE = 64  # positions
GROUP = 4  # heads that share the loads of the cache
SCORE_ROWS = PARTS * GROUP


@kernel(size(longs, size, size, size, size))
def _block_address(pages, page_start, layer_offset, width, block):
    return pages[page_start + block // 4] + layer_offset + (block % 4) * width * 64


@kernel(none(*[Float16] * 8, real, floats, size))
def _store_eight(sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7, inverse, y, start):
    y[start] = sum_lanes(sum0) * inverse
    y[start + 1] = sum_lanes(sum1) * inverse
    y[start + 2] = sum_lanes(sum2) * inverse
    y[start + 3] = sum_lanes(sum3) * inverse
    y[start + 4] = sum_lanes(sum4) * inverse
    y[start + 5] = sum_lanes(sum5) * inverse
    y[start + 6] = sum_lanes(sum6) * inverse
    y[start + 7] = sum_lanes(sum7) * inverse


@kernel(none(floats, size, longs, size, size, size, size, real, floats, size))
def _scores(query, query_start, pages, page_start, layer_offset, width, blocks, scale, scores, scores_start):
    """Scores of one head: 16 * blocks values."""
    quads = width // 4 * 4
    factor, zero = splat(scale), splat(np.float32(0))
    for block in range(blocks):
        at = _block_address(pages, page_start, layer_offset, width, block)
        sum0, sum1, sum2, sum3 = zero, zero, zero, zero
        for d in range(0, quads, 4):
            sum0 = fma(broadcast(query, query_start + d), load_at(at + d * 64), sum0)
            sum1 = fma(broadcast(query, query_start + d + 1), load_at(at + d * 64 + 64), sum1)
            sum2 = fma(broadcast(query, query_start + d + 2), load_at(at + d * 64 + 128), sum2)
            sum3 = fma(broadcast(query, query_start + d + 3), load_at(at + d * 64 + 192), sum3)
        for d in range(quads, width):
            sum0 = fma(broadcast(query, query_start + d), load_at(at + d * 64), sum0)
        store(scores, scores_start + block * 16, multiply(add(add(sum0, sum1), add(sum2, sum3)), factor))


@kernel(none(floats, size, size, longs, size, size, size, size, real, floats, size, size))
def _scores_of_four(
    query, query_start, query_stride, pages, page_start, layer_offset, width, blocks, scale, scores, scores_start, scores_stride
):
    """The same sums for four heads, which share the loads of the cache; width is a multiple of 4."""
    factor, zero = splat(scale), splat(np.float32(0))
    query1, query2, query3 = query_start + query_stride, query_start + 2 * query_stride, query_start + 3 * query_stride
    for block in range(blocks):
        at = _block_address(pages, page_start, layer_offset, width, block)
        a0, a1, a2, a3 = zero, zero, zero, zero
        b0, b1, b2, b3 = zero, zero, zero, zero
        c0, c1, c2, c3 = zero, zero, zero, zero
        d0, d1, d2, d3 = zero, zero, zero, zero
        for d in range(0, width, 4):
            row = load_at(at + d * 64)
            a0, b0 = fma(broadcast(query, query_start + d), row, a0), fma(broadcast(query, query1 + d), row, b0)
            c0, d0 = fma(broadcast(query, query2 + d), row, c0), fma(broadcast(query, query3 + d), row, d0)
            row = load_at(at + d * 64 + 64)
            a1, b1 = fma(broadcast(query, query_start + d + 1), row, a1), fma(broadcast(query, query1 + d + 1), row, b1)
            c1, d1 = fma(broadcast(query, query2 + d + 1), row, c1), fma(broadcast(query, query3 + d + 1), row, d1)
            row = load_at(at + d * 64 + 128)
            a2, b2 = fma(broadcast(query, query_start + d + 2), row, a2), fma(broadcast(query, query1 + d + 2), row, b2)
            c2, d2 = fma(broadcast(query, query2 + d + 2), row, c2), fma(broadcast(query, query3 + d + 2), row, d2)
            row = load_at(at + d * 64 + 192)
            a3, b3 = fma(broadcast(query, query_start + d + 3), row, a3), fma(broadcast(query, query1 + d + 3), row, b3)
            c3, d3 = fma(broadcast(query, query2 + d + 3), row, c3), fma(broadcast(query, query3 + d + 3), row, d3)
        target = scores_start + block * 16
        store(scores, target, multiply(add(add(a0, a1), add(a2, a3)), factor))
        store(scores, target + scores_stride, multiply(add(add(b0, b1), add(b2, b3)), factor))
        store(scores, target + 2 * scores_stride, multiply(add(add(c0, c1), add(c2, c3)), factor))
        store(scores, target + 3 * scores_stride, multiply(add(add(d0, d1), add(d2, d3)), factor))


@kernel(real(floats, size, size, size))
def _shares(scores, start, blocks, position):
    """Overwrite scores with e**(score - greatest), 0 after *position*; returns 1 / their sum."""
    for later in range(position + 1, blocks * 16):
        scores[start + later] = -np.inf
    highest = load(scores, start)
    for block in range(1, blocks):
        highest = maximum(highest, load(scores, start + block * 16))
    peak = splat(max_lanes(highest))
    lanes = splat(np.float32(0))
    for block in range(blocks):
        share = exponential(subtract(load(scores, start + block * 16), peak))
        store(scores, start + block * 16, share)
        lanes = add(lanes, share)
    return np.float32(1) / sum_lanes(lanes)


@kernel(none(longs, size, size, size, size, size, size, floats, size, real, floats, size))
def _values(pages, page_start, layer_offset, width, blocks, first, rank, scores, scores_start, inverse, y, y_start):
    """Weighted latents of one head, dimensions *first* to *rank*."""
    for d in range(first, rank):
        total = splat(np.float32(0))
        for block in range(blocks):
            at = _block_address(pages, page_start, layer_offset, width, block) + d * 64
            total = fma(load(scores, scores_start + block * 16), load_at(at), total)
        y[y_start + d] = sum_lanes(total) * inverse


@kernel(none(longs, size, size, size, size, size, floats, size, size, real, real, floats, size, size))
def _values_of_two(
    pages, page_start, layer_offset, width, blocks, eights, scores, scores_start, scores_stride, inverse0, inverse1, y, y_start,
    y_stride,
):  # fmt: skip
    """The same sums for two heads, eight dimensions at a time, up to *eights*."""
    zero = splat(np.float32(0))
    for d in range(0, eights, 8):
        a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
        b0, b1, b2, b3, b4, b5, b6, b7 = zero, zero, zero, zero, zero, zero, zero, zero
        for block in range(blocks):
            at = _block_address(pages, page_start, layer_offset, width, block) + d * 64
            share0 = load(scores, scores_start + block * 16)
            share1 = load(scores, scores_start + scores_stride + block * 16)
            row = load_at(at)
            a0, b0 = fma(share0, row, a0), fma(share1, row, b0)
            row = load_at(at + 64)
            a1, b1 = fma(share0, row, a1), fma(share1, row, b1)
            row = load_at(at + 128)
            a2, b2 = fma(share0, row, a2), fma(share1, row, b2)
            row = load_at(at + 192)
            a3, b3 = fma(share0, row, a3), fma(share1, row, b3)
            row = load_at(at + 256)
            a4, b4 = fma(share0, row, a4), fma(share1, row, b4)
            row = load_at(at + 320)
            a5, b5 = fma(share0, row, a5), fma(share1, row, b5)
            row = load_at(at + 384)
            a6, b6 = fma(share0, row, a6), fma(share1, row, b6)
            row = load_at(at + 448)
            a7, b7 = fma(share0, row, a7), fma(share1, row, b7)
        _store_eight(a0, a1, a2, a3, a4, a5, a6, a7, inverse0, y, y_start + d)
        _store_eight(b0, b1, b2, b3, b4, b5, b6, b7, inverse1, y, y_start + y_stride + d)


@kernel(
    none(size, size, size, floats, size, longs, size, ints, longs, size, size, size, real, floats, size, size, floats, size)
)
def _attend_items(
    first, last, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
    scores, scores_start, scores_stride, y, y_stride,
):  # fmt: skip
    """Items are groups of four heads of a token."""
    groups = (heads + GROUP - 1) // GROUP
    for item in range(first, last):
        token, head = item // groups, item % groups * GROUP
        page_start, position = np.int64(sequences[token]) * page_columns, positions[token]
        blocks = position // 16 + 1
        count = min(GROUP, heads - head)
        from_query, to_y = (token * heads + head) * query_stride, (token * heads + head) * y_stride
        if count == GROUP and width % 4 == 0:
            _scores_of_four(
                query, from_query, query_stride, pages, page_start, layer_offset, width, blocks, scale, scores, scores_start,
                scores_stride,
            )  # fmt: skip
        else:
            for i in range(count):
                _scores(
                    query, from_query + i * query_stride, pages, page_start, layer_offset, width, blocks, scale, scores,
                    scores_start + i * scores_stride,
                )  # fmt: skip
        eights = rank // 8 * 8
        for i in range(0, count, 2):
            start, target = scores_start + i * scores_stride, to_y + i * y_stride
            inverse0, inverse1, begin = _shares(scores, start, blocks, position), np.float32(0), 0
            if i + 1 < count:
                inverse1 = _shares(scores, start + scores_stride, blocks, position)
                _values_of_two(
                    pages, page_start, layer_offset, width, blocks, eights, scores, start, scores_stride, inverse0, inverse1,
                    y, target, y_stride,
                )  # fmt: skip
                begin = eights
                _values(
                    pages, page_start, layer_offset, width, blocks, begin, rank, scores, start + scores_stride, inverse1, y,
                    target + y_stride,
                )  # fmt: skip
            _values(pages, page_start, layer_offset, width, blocks, begin, rank, scores, start, inverse0, y, target)


@kernel(
    none(size, size, floats, size, longs, size, ints, longs, size, size, size, real, floats, size, floats, size), parallel=True
)
def _attend_parallel(
    tokens, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
    scores, scores_stride, y, y_stride,
):  # fmt: skip
    items = tokens * ((heads + GROUP - 1) // GROUP)
    for part in numba.prange(PARTS):
        begin = np.int64(part)
        _attend_items(
            items * begin // PARTS, items * (begin + 1) // PARTS, heads, query, query_stride, pages, page_columns, sequences,
            positions, layer_offset, rank, width, scale, scores, begin * GROUP * scores_stride, scores_stride, y, y_stride,
        )  # fmt: skip


@kernel(none(size, size, floats, size, longs, size, ints, longs, size, size, size, real, floats, size, floats, size, size))
def mla_attention(
    tokens, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
    scores, scores_stride, y, y_stride, threads,
):  # fmt: skip
    """Attend from every head of every token to all positions up to its own.

    Args:
        tokens, heads: sizes.
        query: flat float32; head h of token t at (t * heads + h) * query_stride: rank absorbed values, then the rotated ones.
        pages: flat int64 (sequences * page_columns), addresses of float32 pages laid out as above.
        sequences, positions: flat int32 and int64 (tokens): row of *pages* and position of each token.
        layer_offset: bytes from a page's begin to this layer.
        rank, width: latent values, and latent plus rotated values per position.
        scale: float32 factor of scores.
        scores: flat float32 workspace, SCORE_ROWS * scores_stride; scores_stride is at least the longest context, rounded up
            to 16.
        y: flat float32; the weighted latent of head h of token t is written at (t * heads + h) * y_stride.
        threads: 1 never enters a parallel region.
    """
    work = 0
    for token in range(tokens):
        work += (positions[token] + 16) * heads * (rank + width)
    if threads > 1 and work >= PARALLEL_WORK:
        _attend_parallel(
            tokens, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
            scores, scores_stride, y, y_stride,
        )  # fmt: skip
    else:
        items = tokens * ((heads + GROUP - 1) // GROUP)
        _attend_items(
            0, items, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
            scores, 0, scores_stride, y, y_stride,
        )  # fmt: skip


@kernel(none(floats, size, size, size, size, floats))
def write_latent(latent, latent_start, layer_offset, width, position, page_values):
    """Put one position's *width* values into its block of *page_values*, the page as a flat float32 array."""
    slot = position % PAGE
    start = layer_offset // 4 + (slot // 16) * width * 16 + slot % 16
    for d in range(width):
        page_values[start + d * 16] = latent[latent_start + d]
