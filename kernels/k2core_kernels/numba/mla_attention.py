"""Latent attention in absorbed form: queries meet the cached latents directly, keys and values are never expanded.

The cache of a sequence is a list of pages. A page holds PAGE positions of all layers; per layer PAGE / 16 blocks of 16 positions;
a block holds, for each of the rank latent and rotated-key values, 16 float32, one per position.

Order of the sums: a score has four chains over the dimensions (dimension modulo 4), added as a tree; softmax subtracts the
maximum, sums 16 lanes over the blocks in order, then the lanes' tree; a value does the same. Blocks sit at fixed positions, so a
token's result does not depend on how its prompt was cut.
"""

import numba
import numpy as np

from k2core_kernels.numba.linear import PARALLEL_WORK, PARTS
from k2core_kernels.numba.options import floats, ints, kernel, longs, none, real, size
from k2core_kernels.numba.vectors import (
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


@kernel(size(longs, size, size, size, size))
def _block_address(pages, page_start, layer_offset, width, block):
    return pages[page_start + block // 4] + layer_offset + (block % 4) * width * 64


@kernel(none(floats, size, longs, size, size, size, size, size, real, floats, size, floats, size))
def _attend(query, query_start, pages, page_start, layer_offset, rank, width, position, scale, scores, scores_start, y, y_start):
    blocks = position // 16 + 1
    quads = width // 4 * 4
    factor = splat(scale)
    zero = splat(np.float32(0))
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
    for later in range(position + 1, blocks * 16):
        scores[scores_start + later] = -np.inf
    highest = load(scores, scores_start)
    for block in range(1, blocks):
        highest = maximum(highest, load(scores, scores_start + block * 16))
    peak = splat(max_lanes(highest))
    lanes = zero
    for block in range(blocks):
        share = exponential(subtract(load(scores, scores_start + block * 16), peak))
        store(scores, scores_start + block * 16, share)
        lanes = add(lanes, share)
    inverse = np.float32(1) / sum_lanes(lanes)
    eights = rank // 8 * 8
    for d in range(0, eights, 8):
        sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7 = zero, zero, zero, zero, zero, zero, zero, zero
        for block in range(blocks):
            at = _block_address(pages, page_start, layer_offset, width, block) + d * 64
            share = load(scores, scores_start + block * 16)
            sum0, sum1 = fma(share, load_at(at), sum0), fma(share, load_at(at + 64), sum1)
            sum2, sum3 = fma(share, load_at(at + 128), sum2), fma(share, load_at(at + 192), sum3)
            sum4, sum5 = fma(share, load_at(at + 256), sum4), fma(share, load_at(at + 320), sum5)
            sum6, sum7 = fma(share, load_at(at + 384), sum6), fma(share, load_at(at + 448), sum7)
        y[y_start + d] = sum_lanes(sum0) * inverse
        y[y_start + d + 1] = sum_lanes(sum1) * inverse
        y[y_start + d + 2] = sum_lanes(sum2) * inverse
        y[y_start + d + 3] = sum_lanes(sum3) * inverse
        y[y_start + d + 4] = sum_lanes(sum4) * inverse
        y[y_start + d + 5] = sum_lanes(sum5) * inverse
        y[y_start + d + 6] = sum_lanes(sum6) * inverse
        y[y_start + d + 7] = sum_lanes(sum7) * inverse
    for d in range(eights, rank):
        sum0 = zero
        for block in range(blocks):
            at = _block_address(pages, page_start, layer_offset, width, block) + d * 64
            sum0 = fma(load(scores, scores_start + block * 16), load_at(at), sum0)
        y[y_start + d] = sum_lanes(sum0) * inverse


@kernel(none(size, size, size, floats, size, longs, size, ints, longs, size, size, size, real, floats, size, floats, size))
def _attend_items(
    first, last, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
    scores, scores_start, y, y_stride,
):  # fmt: skip
    for item in range(first, last):
        token = item // heads
        page_start = np.int64(sequences[token]) * page_columns
        _attend(
            query, item * query_stride, pages, page_start, layer_offset, rank, width, positions[token], scale,
            scores, scores_start, y, item * y_stride,
        )  # fmt: skip


@kernel(none(size, size, floats, size, longs, size, ints, longs, size, size, size, real, floats, size, floats, size), parallel=True)
def _attend_parallel(
    tokens, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank, width, scale,
    scores, scores_stride, y, y_stride,
):  # fmt: skip
    items = tokens * heads
    for part in numba.prange(PARTS):
        _attend_items(
            items * np.int64(part) // PARTS, items * (np.int64(part) + 1) // PARTS, heads, query, query_stride, pages, page_columns, sequences,
            positions, layer_offset, rank, width, scale, scores, np.int64(part) * scores_stride, y, y_stride,
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
        scores: flat float32 workspace, PARTS * scores_stride; scores_stride is at least the longest context, rounded up to 16.
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
        _attend_items(
            0, tokens * heads, heads, query, query_stride, pages, page_columns, sequences, positions, layer_offset, rank,
            width, scale, scores, 0, y, y_stride,
        )  # fmt: skip


@kernel(none(floats, size, size, size, size, floats))
def write_latent(latent, latent_start, layer_offset, width, position, page_values):
    """Put one position's *width* values into its block of *page_values*, the page as a flat float32 array."""
    slot = position % PAGE
    start = layer_offset // 4 + (slot // 16) * width * 16 + slot % 16
    for d in range(width):
        page_values[start + d * 16] = latent[latent_start + d]
