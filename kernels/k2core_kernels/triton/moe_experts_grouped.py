"""Routed experts for many tokens: matrix products per expert over blocks of the pairs that chose it.

A block is up to BLOCK_M (token, slot) pairs of one expert, in the order of the pairs. Three kernels: gate and up in one pass
over the inputs with SwiGLU behind it, down times the routing weight, and the sum over slots in order, so that no two programs
add to one number and the result is the same every time.

Weights are unpacked in registers. Where a group is a multiple of the tile's depth (AFTER), codes enter the product, which are
exact in any type, and the group's scale is applied to the product; else code * scale enters it as float32. Either is exact: a
bfloat16 scale times four bits has at most 11 significant bits, which TF32 keeps, so with bfloat16 inputs a TF32 product has
no rounding that the bfloat16 one has not.
"""

import triton
import triton.language as tl

from k2core_kernels.triton.numbers import codes, rounded


@triton.jit
def _step(
    total, x, words_at, scales_at, first, exists, words,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    AFTER: tl.constexpr,
):  # fmt: skip
    """*total* plus x (BLOCK_M, BLOCK_K) times the transposed tile of packed rows."""
    word = first // 8 + tl.arange(0, BLOCK_K // 8)
    inside = exists[:, None] & (word < words)[None, :]
    packed = tl.load(words_at[:, None] + word[None, :], mask=inside, other=0)
    weight = codes(packed, BLOCK_N, BLOCK_K // 8)  # (BLOCK_N, BLOCK_K)
    if AFTER:
        scale = tl.load(scales_at + first // GROUP, mask=exists, other=0.0).to(tl.float32)
        product = tl.dot(x.to(DOT), tl.trans(weight.to(DOT)), input_precision=PRECISION)
        total += product * scale[None, :]
    else:
        column = first + tl.arange(0, BLOCK_K)
        within = exists[:, None] & (column < 8 * words)[None, :]
        scale = tl.load(scales_at[:, None] + (column // GROUP)[None, :], mask=within, other=0.0).to(tl.float32)
        total = tl.dot(x.to(DOT), tl.trans((weight * scale).to(DOT)), total, input_precision=PRECISION)
    return total


@triton.jit
def gate_up_grouped(
    x, gate, gate_scale, up, up_scale, order, block_expert, block_first, block_end, inner_out, experts, hidden_words,
    inner_words, TOP_K: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Inner activations, row r being pair order[r].

    Args:
        x: (tokens, hidden) float32 or bfloat16.
        gate, up: (experts, inner, hidden / 8) int32, with scales (experts, inner, hidden / GROUP) bfloat16.
        order: (pairs,) pairs sorted by expert.
        block_expert, block_first, block_end: (blocks,) whose rows first … end - 1 a block takes, at most BLOCK_M of them;
            expert *experts* is an unused block.
        inner_out: (pairs, inner) float32 or bfloat16, written.
        hidden_words, inner_words: an eighth of each size; given so that the compiler sees how rows of words are aligned.

    Grid: (inner / BLOCK_N, blocks).
    """
    tile, block = tl.program_id(0), tl.program_id(1)
    hidden, inner = 8 * hidden_words, 8 * inner_words
    expert = tl.load(block_expert + block).to(tl.int64)
    if expert < experts:
        row = tl.load(block_first + block) + tl.arange(0, BLOCK_M)
        taken = row < tl.load(block_end + block)
        token = tl.load(order + row, mask=taken, other=0).to(tl.int64) // TOP_K
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = column < inner
        at = expert * inner + column
        groups = hidden_words // (GROUP // 8)
        left = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        right = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, hidden, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            tile_x = tl.load(x + token[:, None] * hidden + k[None, :], mask=taken[:, None] & (k < hidden)[None, :], other=0.0)
            left = _step(
                left, tile_x, gate + at * hidden_words, gate_scale + at * groups, first, exists, hidden_words,
                GROUP, BLOCK_N, BLOCK_K, DOT, PRECISION, AFTER,
            )  # fmt: skip
            right = _step(
                right, tile_x, up + at * hidden_words, up_scale + at * groups, first, exists, hidden_words,
                GROUP, BLOCK_N, BLOCK_K, DOT, PRECISION, AFTER,
            )  # fmt: skip
        activated = left / (1.0 + tl.exp(-left)) * right
        place = inner_out + row.to(tl.int64)[:, None] * inner + column[None, :]
        tl.store(place, rounded(activated, inner_out.dtype.element_ty), mask=taken[:, None] & exists[None, :])


@triton.jit
def down_grouped(
    inner_in, down, down_scale, weights, order, block_expert, block_first, block_end, parts, experts, hidden_words, inner_words,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Each pair's share of its token: the routing weight times down of its inner activations.

    Args:
        inner_in: (pairs, inner), as `gate_up_grouped` writes it.
        down: (experts, hidden, inner / 8) int32, with scales (experts, hidden, inner / GROUP) bfloat16.
        weights: (pairs,) float32.
        order, block_expert, block_first, block_end: as of `gate_up_grouped`.
        parts: (pairs, hidden) float32 by pair, written.

    Grid: (hidden / BLOCK_N, blocks).
    """
    tile, block = tl.program_id(0), tl.program_id(1)
    hidden, inner = 8 * hidden_words, 8 * inner_words
    expert = tl.load(block_expert + block).to(tl.int64)
    if expert < experts:
        row = tl.load(block_first + block) + tl.arange(0, BLOCK_M)
        taken = row < tl.load(block_end + block)
        pair = tl.load(order + row, mask=taken, other=0).to(tl.int64)
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = column < hidden
        at = expert * hidden + column
        groups = inner_words // (GROUP // 8)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, inner, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            place = inner_in + row.to(tl.int64)[:, None] * inner + k[None, :]
            tile_x = tl.load(place, mask=taken[:, None] & (k < inner)[None, :], other=0.0)
            total = _step(
                total, tile_x, down + at * inner_words, down_scale + at * groups, first, exists, inner_words,
                GROUP, BLOCK_N, BLOCK_K, DOT, PRECISION, AFTER,
            )  # fmt: skip
        share = tl.load(weights + pair, mask=taken, other=0.0)
        place = parts + pair[:, None] * hidden + column[None, :]
        tl.store(place, total * share[:, None], mask=taken[:, None] & exists[None, :])


@triton.jit
def sum_slots(parts, y, hidden, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """y (tokens, hidden) = parts (tokens, TOP_K, hidden) added slot after slot.

    Grid: (tokens, hidden / BLOCK).
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < hidden
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(TOP_K):
        total += tl.load(parts + (token * TOP_K + slot) * hidden + column, mask=exists, other=0.0)
    tl.store(y + token * hidden + column, total, mask=exists)
