"""Latent attention in absorbed form: queries meet the cached latents directly, keys and values are never expanded.

The cache of a sequence is a list of pages, its table the int64 addresses of them in order. A page holds PAGE positions of all
layers; per layer PAGE / 16 blocks of 16 positions; a block holds, for each of the latent and rotated-key values, 16 float32,
one per position.

Order of the sums: a score has four chains over the dimensions (dimension modulo 4), added as a tree; softmax subtracts the
maximum, sums 16 lanes over the blocks in order, then the lanes' tree; a value does the same. Heads that are computed
together share loads, not sums. Blocks sit at fixed positions, so a token's result does not depend on how its prompt was cut.
"""

import numba
import numpy as np

from k2core_kernels.numba.linear import PARALLEL_WORK
from k2core_kernels.numba.options import floats, kernel, longs, none, real, size
from k2core_kernels.numba.vectors import (
    add,
    broadcast,
    exponential,
    first_lanes,
    fma,
    load,
    load_at,
    long_at,
    max_lanes,
    maximum,
    multiply,
    put,
    put_at,
    quarters,
    splat,
    store,
    store_quarter0,
    store_quarter1,
    store_quarter2,
    store_quarter3,
    subtract,
    sum_lanes,
    sum_lanes_of_sixteen,
    value_at,
)

PAGE = 64  # positions
GROUP = 4  # heads that share the loads of the cache; each thread has scores of as many


@kernel(size(size, size, size, size))
def _block_address(table, layer_offset, width, block):
    return long_at(table + block // 4 * 8) + layer_offset + (block % 4) * width * 64


@kernel(none(floats, size, size, size, size, size, real, floats, size))
def _scores(query, query_start, table, layer_offset, width, blocks, scale, scores, scores_start):
    """Scores of one head: 16 * blocks values."""
    quads = width // 4 * 4
    factor, zero = splat(scale), splat(np.float32(0))
    for block in range(blocks):
        at = _block_address(table, layer_offset, width, block)
        sum0, sum1, sum2, sum3 = zero, zero, zero, zero
        for d in range(0, quads, 4):
            sum0 = fma(broadcast(query, query_start + d), load_at(at + d * 64), sum0)
            sum1 = fma(broadcast(query, query_start + d + 1), load_at(at + d * 64 + 64), sum1)
            sum2 = fma(broadcast(query, query_start + d + 2), load_at(at + d * 64 + 128), sum2)
            sum3 = fma(broadcast(query, query_start + d + 3), load_at(at + d * 64 + 192), sum3)
        for d in range(quads, width):
            sum0 = fma(broadcast(query, query_start + d), load_at(at + d * 64), sum0)
        store(scores, scores_start + block * 16, multiply(add(add(sum0, sum1), add(sum2, sum3)), factor))


@kernel(none(floats, size, size, size, size, size, size, real, floats, size, size))
def _scores_of_four(
    query, query_start, query_stride, table, layer_offset, width, blocks, scale, scores, scores_start, scores_stride
):
    """The same sums for four heads, which share the loads of the cache; width is a multiple of 4."""
    factor, zero = splat(scale), splat(np.float32(0))
    query1, query2, query3 = query_start + query_stride, query_start + 2 * query_stride, query_start + 3 * query_stride
    for block in range(blocks):
        at = _block_address(table, layer_offset, width, block)
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
    last = start + blocks * 16 - 16
    store(scores, last, first_lanes(position % 16 + 1, load(scores, last), splat(np.float32(-np.inf))))
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


@kernel(none(size, size, size, size, size, size, floats, size, real, floats, size))
def _values(table, layer_offset, width, blocks, first, rank, scores, scores_start, inverse, y, y_start):
    """Weighted latents of one head, dimensions *first* to *rank*."""
    for d in range(first, rank):
        total = splat(np.float32(0))
        for block in range(blocks):
            at = _block_address(table, layer_offset, width, block) + d * 64
            total = fma(load(scores, scores_start + block * 16), load_at(at), total)
        put(y, y_start + d, sum_lanes(total) * inverse)


@kernel(none(size, size, size, size, size, floats, size, size, real, real, real, real, floats, size, size))
def _values_of_four(
    table, layer_offset, width, blocks, quads, scores, scores_start, scores_stride, inverse0, inverse1, inverse2, inverse3, y,
    y_start, y_stride,
):  # fmt: skip
    """The same sums for four heads, four dimensions at a time, up to *quads*."""
    zero, inverse = splat(np.float32(0)), quarters(inverse0, inverse1, inverse2, inverse3)
    scores1, scores2, scores3 = scores_start + scores_stride, scores_start + 2 * scores_stride, scores_start + 3 * scores_stride
    for d in range(0, quads, 4):
        a0, a1, a2, a3 = zero, zero, zero, zero
        b0, b1, b2, b3 = zero, zero, zero, zero
        c0, c1, c2, c3 = zero, zero, zero, zero
        d0, d1, d2, d3 = zero, zero, zero, zero
        for block in range(blocks):
            at = _block_address(table, layer_offset, width, block) + d * 64
            row0, row1, row2, row3 = load_at(at), load_at(at + 64), load_at(at + 128), load_at(at + 192)
            share = load(scores, scores_start + block * 16)
            a0, a1, a2, a3 = fma(share, row0, a0), fma(share, row1, a1), fma(share, row2, a2), fma(share, row3, a3)
            share = load(scores, scores1 + block * 16)
            b0, b1, b2, b3 = fma(share, row0, b0), fma(share, row1, b1), fma(share, row2, b2), fma(share, row3, b3)
            share = load(scores, scores2 + block * 16)
            c0, c1, c2, c3 = fma(share, row0, c0), fma(share, row1, c1), fma(share, row2, c2), fma(share, row3, c3)
            share = load(scores, scores3 + block * 16)
            d0, d1, d2, d3 = fma(share, row0, d0), fma(share, row1, d1), fma(share, row2, d2), fma(share, row3, d3)
        sums = multiply(sum_lanes_of_sixteen((a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)), inverse)
        store_quarter0(y, y_start + d, sums)
        store_quarter1(y, y_start + y_stride + d, sums)
        store_quarter2(y, y_start + 2 * y_stride + d, sums)
        store_quarter3(y, y_start + 3 * y_stride + d, sums)


@kernel(none(floats, size, size, size, size, size, size, size, real, floats, size, size, floats, size, size))
def _attend_four(
    query, query_start, query_stride, table, position, layer_offset, rank, width, scale, scores, scores_start, scores_stride, y,
    y_start, y_stride,
):  # fmt: skip
    """Four heads of one token; width is a multiple of 4."""
    blocks, quads = position // 16 + 1, rank // 4 * 4
    start1, start2, start3 = scores_start + scores_stride, scores_start + 2 * scores_stride, scores_start + 3 * scores_stride
    _scores_of_four(
        query, query_start, query_stride, table, layer_offset, width, blocks, scale, scores, scores_start, scores_stride
    )
    inverse0, inverse1 = _shares(scores, scores_start, blocks, position), _shares(scores, start1, blocks, position)
    inverse2, inverse3 = _shares(scores, start2, blocks, position), _shares(scores, start3, blocks, position)
    _values_of_four(
        table, layer_offset, width, blocks, quads, scores, scores_start, scores_stride, inverse0, inverse1, inverse2, inverse3,
        y, y_start, y_stride,
    )  # fmt: skip
    _values(table, layer_offset, width, blocks, quads, rank, scores, scores_start, inverse0, y, y_start)
    _values(table, layer_offset, width, blocks, quads, rank, scores, start1, inverse1, y, y_start + y_stride)
    _values(table, layer_offset, width, blocks, quads, rank, scores, start2, inverse2, y, y_start + 2 * y_stride)
    _values(table, layer_offset, width, blocks, quads, rank, scores, start3, inverse3, y, y_start + 3 * y_stride)


@kernel(none(floats, size, size, size, size, size, size, real, floats, size, floats, size))
def _attend_one(
    query, query_start, table, position, layer_offset, rank, width, scale, scores, scores_start, y, y_start
):  # fmt: skip
    """One head of one token."""
    blocks = position // 16 + 1
    _scores(query, query_start, table, layer_offset, width, blocks, scale, scores, scores_start)
    inverse = _shares(scores, scores_start, blocks, position)
    _values(table, layer_offset, width, blocks, 0, rank, scores, scores_start, inverse, y, y_start)


@kernel(none(size, size, size, size, floats, size, longs, longs, size, size, size, real, floats, size, size, floats, size))
def _attend_items(
    first, items, step, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale,
    scores, scores_start, scores_stride, y, y_stride,
):  # fmt: skip
    """Items are groups of four heads of a token; every *step*-th from *first* on."""
    groups = (heads + GROUP - 1) // GROUP
    for item in range(first, items, step):
        token, head = item // groups, item % groups * GROUP
        table, position = tables[token], positions[token]
        from_query, to_y = (token * heads + head) * query_stride, (token * heads + head) * y_stride
        if head + GROUP <= heads and width % 4 == 0:
            _attend_four(
                query, from_query, query_stride, table, position, layer_offset, rank, width, scale, scores, scores_start,
                scores_stride, y, to_y, y_stride,
            )  # fmt: skip
        else:
            for i in range(min(GROUP, heads - head)):
                _attend_one(
                    query, from_query + i * query_stride, table, position, layer_offset, rank, width, scale, scores,
                    scores_start, y, to_y + i * y_stride,
                )  # fmt: skip


@kernel(none(size, size, floats, size, longs, longs, size, size, size, real, floats, size, floats, size, size), parallel=True)
def _attend_parallel(
    items, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, scores_stride, y, y_stride,
    threads,
):  # fmt: skip
    for part in numba.prange(threads):
        first = np.int64(part)
        _attend_items(
            first, items, threads, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores,
            first * GROUP * scores_stride, scores_stride, y, y_stride,
        )  # fmt: skip


@kernel(none(size, size, floats, size, longs, longs, size, size, size, real, floats, size, floats, size, size))
def mla_attention(
    tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, scores_stride, y, y_stride,
    threads,
):  # fmt: skip
    """Attend from every head of every token to all positions up to its own.

    Args:
        tokens, heads: sizes.
        query: flat float32; head h of token t at (t * heads + h) * query_stride: rank absorbed values, then the rotated ones.
        tables, positions: flat int64 (tokens): address of the table of the token's sequence, and the token's position.
        layer_offset: bytes from a page's begin to this layer.
        rank, width: latent values, and latent plus rotated values per position.
        scale: float32 factor of scores.
        scores: flat float32 workspace, threads * GROUP * scores_stride; scores_stride is at least the longest context, rounded
            up to 16.
        y: flat float32; the weighted latent of head h of token t is written at (t * heads + h) * y_stride.
        threads: 1 never enters a parallel region.
    """
    work = 0
    for token in range(tokens):
        work += (positions[token] + 16) * heads * (rank + width)
    items = tokens * ((heads + GROUP - 1) // GROUP)
    if threads > 1 and work >= PARALLEL_WORK:
        _attend_parallel(
            items, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, scores_stride, y,
            y_stride, threads,
        )  # fmt: skip
    else:
        _attend_items(
            0, items, 1, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, 0,
            scores_stride, y, y_stride,
        )  # fmt: skip


@kernel(none(floats, size, size, size, size, size))
def write_latent(latent, latent_start, layer_offset, width, position, table):
    """Put one position's *width* values of a layer into its page, found by the sequence's table."""
    slot = position % PAGE
    at = long_at(table + position // PAGE * 8) + layer_offset + (slot // 16) * width * 64 + slot % 16 * 4
    for d in range(width):
        put_at(at + d * 64, value_at(latent, latent_start + d))
