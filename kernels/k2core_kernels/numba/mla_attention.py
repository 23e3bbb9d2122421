"""Latent attention in absorbed form: queries meet the cached latents directly, keys and values are never expanded.

The cache of a sequence is a list of pages, its table the int64 addresses of them in order. A page holds PAGE positions of all
layers; per layer PAGE / 16 blocks of 16 positions; a block holds, for each of the latent and rotated-key values, 16 float32,
one per position.

A context is attended to in ranges of RANGE blocks, one after the other, so that scores need no memory that grows with it. What
is left of earlier ranges when the next one has a greater score is scaled by e**(old greatest - new greatest). Up to TILE tokens
take turns at a range, which then comes from memory once for all of them.

Order of the sums: a score has four chains over the dimensions (dimension modulo 4), added as a tree; the sum of a softmax has
16 lanes over the blocks in order, then a tree of the lanes; a value does the same. Heads and tokens that are computed together
share loads, not sums. Blocks and ranges sit at fixed positions, so how a prompt was cut does not change a result.
"""

import numba
import numpy as np
from numba import types

from k2core_kernels.numba.linear import PARALLEL_WORK
from k2core_kernels.numba.options import flag, floats, kernel, longs, none, real, size
from k2core_kernels.numba.vectors import (
    Float16,
    add,
    broadcast,
    divide,
    exponential_of_negative,
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
GROUP = 4  # heads that share the loads of the cache
RANGE = 64  # blocks
TILE = 8  # tokens
SCORES = GROUP * RANGE * 16 + 3 * 16  # float32 of a thread; rows are a line further apart than a power of two


@kernel(size(size))
def state_of_head(rank):
    """float32 that a head of a token keeps from range to range: a vector for each value, for the sum, and for the greatest."""
    return (rank + 2) * 16


@kernel(size(size, size, size, size))
def _block_address(table, layer_offset, width, block):
    return long_at(table + block // 4 * 8) + layer_offset + (block % 4) * width * 64


@kernel(none(floats, size, size, size, size, size, size, real, floats, size))
def _scores(query, query_start, table, layer_offset, width, first, last, scale, scores, scores_start):
    """Scores of one head for blocks *first* to *last*."""
    quads = width // 4 * 4
    factor, zero = splat(scale), splat(np.float32(0))
    for block in range(first, last):
        at = _block_address(table, layer_offset, width, block)
        sum0, sum1, sum2, sum3 = zero, zero, zero, zero
        for d in range(0, quads, 4):
            sum0 = fma(broadcast(query, query_start + d), load_at(at + d * 64), sum0)
            sum1 = fma(broadcast(query, query_start + d + 1), load_at(at + d * 64 + 64), sum1)
            sum2 = fma(broadcast(query, query_start + d + 2), load_at(at + d * 64 + 128), sum2)
            sum3 = fma(broadcast(query, query_start + d + 3), load_at(at + d * 64 + 192), sum3)
        for d in range(quads, width):
            sum0 = fma(broadcast(query, query_start + d), load_at(at + d * 64), sum0)
        store(scores, scores_start + (block - first) * 16, multiply(add(add(sum0, sum1), add(sum2, sum3)), factor))


@kernel(none(floats, size, size, size, size, size, size, size, real, floats, size, size))
def _scores_of_four(
    query, query_start, query_stride, table, layer_offset, width, first, last, scale, scores, scores_start, scores_stride
):
    """The same sums for four heads, which share the loads of the cache; width is a multiple of 4."""
    factor, zero = splat(scale), splat(np.float32(0))
    query1, query2, query3 = query_start + query_stride, query_start + 2 * query_stride, query_start + 3 * query_stride
    for block in range(first, last):
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
        target = scores_start + (block - first) * 16
        store(scores, target, multiply(add(add(a0, a1), add(a2, a3)), factor))
        store(scores, target + scores_stride, multiply(add(add(b0, b1), add(b2, b3)), factor))
        store(scores, target + 2 * scores_stride, multiply(add(add(c0, c1), add(c2, c3)), factor))
        store(scores, target + 3 * scores_stride, multiply(add(add(d0, d1), add(d2, d3)), factor))


@kernel(real(floats, size, size, size, flag, floats, size))
def _shares(scores, start, blocks, seen, is_first, state, place):
    """Overwrite the scores of a range with e**(score - greatest so far); returns what earlier ranges' sums shrink to.

    Args:
        scores: flat float32, *blocks* vectors from *start* on; of the last one *seen* lanes count.
        is_first: of the token's ranges.
        state: the head's sum is at *place*, the greatest score a vector later.
    """
    last = start + blocks * 16 - 16
    store(scores, last, first_lanes(seen, load(scores, last), splat(np.float32(-np.inf))))
    highest = load(scores, start)
    for block in range(1, blocks):
        highest = maximum(highest, load(scores, start + block * 16))
    greatest, lanes, shrunk = max_lanes(highest), splat(np.float32(0)), np.float32(0)
    if not is_first:
        before = value_at(state, place + 16)
        greatest = max(greatest, before)
        shrunk = max_lanes(exponential_of_negative(splat(before - greatest)))
        lanes = multiply(load(state, place), splat(shrunk))
    peak = splat(greatest)
    for block in range(blocks):
        share = exponential_of_negative(subtract(load(scores, start + block * 16), peak))
        store(scores, start + block * 16, share)
        lanes = add(lanes, share)
    store(state, place, lanes)
    store(state, place + 16, peak)
    return shrunk


@kernel(none(size, size, size, size, size, size, size, floats, size, flag, flag, real, floats, size, floats, size))
def _values(
    table, layer_offset, width, first, last, begin, rank, scores, scores_start, is_first, is_last, shrunk, state, place, y,
    y_start,
):  # fmt: skip
    """Weighted latents of one head for a range, dimensions *begin* to *rank*: added to its state, or to y after the last."""
    inverse = np.float32(1) / sum_lanes(load(state, place + rank * 16))
    for d in range(begin, rank):
        total = splat(np.float32(0)) if is_first else multiply(load(state, place + d * 16), splat(shrunk))
        for block in range(first, last):
            at = _block_address(table, layer_offset, width, block) + d * 64
            total = fma(load(scores, scores_start + (block - first) * 16), load_at(at), total)
        if is_last:
            put(y, y_start + d, sum_lanes(total) * inverse)
        else:
            store(state, place + d * 16, total)


@kernel(types.UniTuple(Float16, 4)(floats, size, real))
def _shrunk(state, place, shrunk):
    """Four sums of a head, scaled."""
    factor = splat(shrunk)
    return (
        multiply(load(state, place), factor), multiply(load(state, place + 16), factor),
        multiply(load(state, place + 32), factor), multiply(load(state, place + 48), factor),
    )  # fmt: skip


@kernel(none(floats, size, Float16, Float16, Float16, Float16))
def _keep(state, place, sum0, sum1, sum2, sum3):
    """Four sums of a head."""
    store(state, place, sum0)
    store(state, place + 16, sum1)
    store(state, place + 32, sum2)
    store(state, place + 48, sum3)


@kernel(
    none(
        size, size, size, size, size, size, floats, size, size, flag, flag, types.UniTuple(real, 4), floats, size, size, size,
        floats, size, size,
    )
)  # fmt: skip
def _values_of_four(
    table, layer_offset, width, first, last, quads, scores, scores_start, scores_stride, is_first, is_last, shrunk, state,
    place, per_head, rank, y, y_start, y_stride,
):  # fmt: skip
    """The same sums for four heads, four dimensions at a time, up to *quads*."""
    zero = splat(np.float32(0))
    scores1, scores2, scores3 = scores_start + scores_stride, scores_start + 2 * scores_stride, scores_start + 3 * scores_stride
    place1, place2, place3 = place + per_head, place + 2 * per_head, place + 3 * per_head
    inverse = divide(
        splat(np.float32(1)),
        quarters(
            sum_lanes(load(state, place + rank * 16)), sum_lanes(load(state, place1 + rank * 16)),
            sum_lanes(load(state, place2 + rank * 16)), sum_lanes(load(state, place3 + rank * 16)),
        ),
    )  # fmt: skip
    for d in range(0, quads, 4):
        a0, a1, a2, a3 = zero, zero, zero, zero
        b0, b1, b2, b3 = zero, zero, zero, zero
        c0, c1, c2, c3 = zero, zero, zero, zero
        d0, d1, d2, d3 = zero, zero, zero, zero
        if not is_first:
            a0, a1, a2, a3 = _shrunk(state, place + d * 16, shrunk[0])
            b0, b1, b2, b3 = _shrunk(state, place1 + d * 16, shrunk[1])
            c0, c1, c2, c3 = _shrunk(state, place2 + d * 16, shrunk[2])
            d0, d1, d2, d3 = _shrunk(state, place3 + d * 16, shrunk[3])
        for block in range(first, last):
            at, column = _block_address(table, layer_offset, width, block) + d * 64, (block - first) * 16
            row0, row1, row2, row3 = load_at(at), load_at(at + 64), load_at(at + 128), load_at(at + 192)
            share = load(scores, scores_start + column)
            a0, a1, a2, a3 = fma(share, row0, a0), fma(share, row1, a1), fma(share, row2, a2), fma(share, row3, a3)
            share = load(scores, scores1 + column)
            b0, b1, b2, b3 = fma(share, row0, b0), fma(share, row1, b1), fma(share, row2, b2), fma(share, row3, b3)
            share = load(scores, scores2 + column)
            c0, c1, c2, c3 = fma(share, row0, c0), fma(share, row1, c1), fma(share, row2, c2), fma(share, row3, c3)
            share = load(scores, scores3 + column)
            d0, d1, d2, d3 = fma(share, row0, d0), fma(share, row1, d1), fma(share, row2, d2), fma(share, row3, d3)
        if is_last:
            sums = multiply(sum_lanes_of_sixteen((a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)), inverse)
            store_quarter0(y, y_start + d, sums)
            store_quarter1(y, y_start + y_stride + d, sums)
            store_quarter2(y, y_start + 2 * y_stride + d, sums)
            store_quarter3(y, y_start + 3 * y_stride + d, sums)
        else:
            _keep(state, place + d * 16, a0, a1, a2, a3)
            _keep(state, place1 + d * 16, b0, b1, b2, b3)
            _keep(state, place2 + d * 16, c0, c1, c2, c3)
            _keep(state, place3 + d * 16, d0, d1, d2, d3)


@kernel(none(floats, size, size, size, size, size, size, size, size, real, floats, size, floats, size, floats, size, size))
def _attend_four(
    query, query_start, query_stride, table, position, layer_offset, rank, width, first, scale, scores, scores_start, state,
    place, y, y_start, y_stride,
):  # fmt: skip
    """Four heads of one token for the range that begins at block *first*; width is a multiple of 4."""
    blocks, quads, stride, per_head = position // 16 + 1, rank // 4 * 4, np.int64(RANGE * 16 + 16), state_of_head(rank)
    last, seen = min(first + RANGE, blocks), np.int64(16)
    is_first, is_last = first == 0, last == blocks
    if is_last:
        seen = position % 16 + 1
    _scores_of_four(
        query, query_start, query_stride, table, layer_offset, width, first, last, scale, scores, scores_start, stride
    )
    start1, start2, start3 = scores_start + stride, scores_start + 2 * stride, scores_start + 3 * stride
    place1, place2, place3 = place + per_head, place + 2 * per_head, place + 3 * per_head
    shrunk = (
        _shares(scores, scores_start, last - first, seen, is_first, state, place + rank * 16),
        _shares(scores, start1, last - first, seen, is_first, state, place1 + rank * 16),
        _shares(scores, start2, last - first, seen, is_first, state, place2 + rank * 16),
        _shares(scores, start3, last - first, seen, is_first, state, place3 + rank * 16),
    )
    _values_of_four(
        table, layer_offset, width, first, last, quads, scores, scores_start, stride, is_first, is_last, shrunk, state, place,
        per_head, rank, y, y_start, y_stride,
    )  # fmt: skip
    if quads < rank:
        for head in range(4):
            _values(
                table, layer_offset, width, first, last, quads, rank, scores, scores_start + head * stride, is_first, is_last,
                shrunk[head], state, place + head * per_head, y, y_start + head * y_stride,
            )  # fmt: skip


@kernel(none(floats, size, size, size, size, size, size, size, real, floats, size, floats, size, floats, size))
def _attend_one(
    query, query_start, table, position, layer_offset, rank, width, first, scale, scores, scores_start, state, place, y, y_start
):
    """One head of one token for the range that begins at block *first*."""
    blocks, seen = position // 16 + 1, np.int64(16)
    last = min(first + RANGE, blocks)
    is_first, is_last = first == 0, last == blocks
    if is_last:
        seen = position % 16 + 1
    _scores(query, query_start, table, layer_offset, width, first, last, scale, scores, scores_start)
    shrunk = _shares(scores, scores_start, last - first, seen, is_first, state, place + rank * 16)
    _values(
        table, layer_offset, width, first, last, 0, rank, scores, scores_start, is_first, is_last, shrunk, state, place, y,
        y_start,
    )  # fmt: skip


@kernel(
    none(
        size, size, size, size, size, floats, size, longs, longs, size, size, size, real, floats, size, floats, size, floats,
        size,
    )
)  # fmt: skip
def _attend_items(
    first, items, step, tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale,
    scores, scores_start, state, state_start, y, y_stride,
):  # fmt: skip
    """Items are groups of four heads of a tile of tokens; every *step*-th from *first* on."""
    groups, per_head = (heads + GROUP - 1) // GROUP, state_of_head(rank)
    for item in range(first, items, step):
        begin, head = item // groups * TILE, item % groups * GROUP
        end, longest = min(begin + TILE, tokens), np.int64(0)
        for token in range(begin, end):
            longest = max(longest, positions[token])
        for block in range(0, longest // 16 + 1, RANGE):
            for token in range(begin, end):
                table, position = tables[token], positions[token]
                if block > position // 16:
                    continue
                from_query, to_y = (token * heads + head) * query_stride, (token * heads + head) * y_stride
                place = state_start + (token - begin) * GROUP * per_head
                if head + GROUP <= heads and width % 4 == 0:
                    _attend_four(
                        query, from_query, query_stride, table, position, layer_offset, rank, width, block, scale, scores,
                        scores_start, state, place, y, to_y, y_stride,
                    )  # fmt: skip
                else:
                    for i in range(min(GROUP, heads - head)):
                        _attend_one(
                            query, from_query + i * query_stride, table, position, layer_offset, rank, width, block, scale,
                            scores, scores_start, state, place + i * per_head, y, to_y + i * y_stride,
                        )  # fmt: skip


@kernel(
    none(size, size, size, floats, size, longs, longs, size, size, size, real, floats, floats, floats, size, size),
    parallel=True,
)
def _attend_parallel(
    items, tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, state, y, y_stride,
    threads,
):  # fmt: skip
    for part in numba.prange(threads):
        first = np.int64(part)
        _attend_items(
            first, items, threads, tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale,
            scores, first * SCORES, state, first * TILE * GROUP * state_of_head(rank), y, y_stride,
        )  # fmt: skip


@kernel(none(size, size, floats, size, longs, longs, size, size, size, real, floats, floats, floats, size, size))
def mla_attention(
    tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, state, y, y_stride, threads
):
    """Attend from every head of every token to all positions up to its own.

    Args:
        tokens, heads: sizes.
        query: flat float32; head h of token t at (t * heads + h) * query_stride: rank absorbed values, then the rotated ones.
        tables, positions: flat int64 (tokens): address of the table of the token's sequence, and the token's position.
        layer_offset: bytes from a page's begin to this layer.
        rank, width: latent values, and latent plus rotated values per position.
        scale: float32 factor of scores.
        scores, state: flat float32 workspaces: SCORES, and TILE * GROUP * `state_of_head`, for each thread.
        y: flat float32; the weighted latent of head h of token t is written at (t * heads + h) * y_stride.
        threads: 1 never enters a parallel region.
    """
    work = 0
    for token in range(tokens):
        work += (positions[token] + 16) * heads * (rank + width)
    items = (tokens + TILE - 1) // TILE * ((heads + GROUP - 1) // GROUP)
    if threads > 1 and work >= PARALLEL_WORK:
        _attend_parallel(
            items, tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, state, y,
            y_stride, threads,
        )  # fmt: skip
    else:
        _attend_items(
            0, items, 1, tokens, heads, query, query_stride, tables, positions, layer_offset, rank, width, scale, scores, 0,
            state, 0, y, y_stride,
        )  # fmt: skip


@kernel(none(floats, size, size, size, size, size))
def write_latent(latent, latent_start, layer_offset, width, position, table):
    """Put one position's *width* values of a layer into its page, found by the sequence's table."""
    slot = position % PAGE
    at = long_at(table + position // PAGE * 8) + layer_offset + (slot // 16) * width * 64 + slot % 16 * 4
    for d in range(width):
        put_at(at + d * 64, value_at(latent, latent_start + d))
