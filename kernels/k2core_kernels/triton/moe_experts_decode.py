"""Routed experts for few tokens: products of a vector and packed rows, no matrix unit, each weight read once per token.

    inner[p, n] = silu(Σ_k gate[e, n, k] x[t, k]) * Σ_k up[e, n, k] x[t, k]        p = (t, slot), e = expert_ids[p]
    y[t, m]     = Σ over slots, in order, of weights[t, slot] * Σ_n down[e, m, n] inner[p, n]

With one or a few tokens nearly every pair of token and slot has an expert of its own, so pairs are not grouped. A program
takes ROWS rows and walks along the packed words; all sums are float32 for both numerics, with weights exactly code * scale.
Vectors lie as eight planes, value 8 w + i at plane i and place w, so that nibble i of neighbouring words meets neighbouring
values: loads of words and of values are both wide. Slots are added in order inside one program: the same numbers every time,
whoever shares the batch.
"""

import triton
import triton.language as tl

from k2core_kernels.triton.numbers import code, rounded


@triton.jit
def _piece(words_at, scales_at, vector_at, word, inside, words, real, GROUP_WORDS: tl.constexpr):
    """Products of (ROWS, WORDS) packed words with the vector, scaled, eight columns added up."""
    packed = tl.load(words_at[:, None] + word[None, :], mask=inside, other=0, eviction_policy="evict_first")
    scale = tl.load(scales_at[:, None] + (word // GROUP_WORDS)[None, :], mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros(packed.shape, tl.float32)
    for nibble in tl.static_range(8):
        value = tl.load(vector_at + nibble * words + word, mask=real, other=0.0).to(tl.float32)
        total += code(packed, nibble) * value[None, :]
    return total * scale


@triton.jit
def gate_up_decode(
    x, gate, gate_scale, up, up_scale, expert_ids, inner_out, hidden_words, inner_words,
    TOP_K: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Inner activations of each pair, as eight planes.

    Args:
        x: (tokens, 8, hidden / 8) float32 or bfloat16, the vectors as planes.
        gate, up: (experts, inner, hidden / 8) int32, with scales (experts, inner, hidden / GROUP) bfloat16.
        expert_ids: (tokens, TOP_K).
        inner_out: (tokens * TOP_K, 8, inner / 8) float32 or bfloat16, written.
        hidden_words, inner_words: an eighth of each size; given so that the compiler sees how rows of words are aligned.

    Grid: (pairs, inner / ROWS).
    """
    pair, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    expert = tl.load(expert_ids + pair).to(tl.int64)
    inner, words, groups = 8 * inner_words, hidden_words, hidden_words // (GROUP // 8)
    vector = x + pair // TOP_K * words * 8
    row = tile * ROWS + tl.arange(0, ROWS)
    exists = row < inner
    at = expert * inner + row
    gate_sum = tl.zeros((ROWS, WORDS), tl.float32)
    up_sum = tl.zeros((ROWS, WORDS), tl.float32)
    for first in range(0, words, WORDS):
        word = first + tl.arange(0, WORDS)
        real = word < words
        inside = exists[:, None] & real[None, :]
        gate_sum += _piece(gate + at * words, gate_scale + at * groups, vector, word, inside, words, real, GROUP // 8)
        up_sum += _piece(up + at * words, up_scale + at * groups, vector, word, inside, words, real, GROUP // 8)
    left, right = tl.sum(gate_sum, 1), tl.sum(up_sum, 1)
    activated = left / (1.0 + tl.exp(-left)) * right
    place = inner_out + pair * inner + row % 8 * inner_words + row // 8
    tl.store(place, rounded(activated, inner_out.dtype.element_ty), mask=exists)


@triton.jit
def down_decode(
    inner_in, down, down_scale, expert_ids, weights, y, hidden_words, inner_words,
    TOP_K: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Weighted sum over each token's slots.

    Args:
        inner_in: (tokens * TOP_K, 8, inner / 8), as `gate_up_decode` writes it.
        down: (experts, hidden, inner / 8) int32, with scales (experts, hidden, inner / GROUP) bfloat16.
        expert_ids, weights: (tokens, TOP_K), weights float32.
        y: (tokens, hidden) float32, written.

    Grid: (tokens, hidden / ROWS).
    """
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    hidden, words, groups = 8 * hidden_words, inner_words, inner_words // (GROUP // 8)
    row = tile * ROWS + tl.arange(0, ROWS)
    exists = row < hidden
    total = tl.zeros((ROWS,), tl.float32)
    for slot in range(TOP_K):
        pair = token * TOP_K + slot
        at = tl.load(expert_ids + pair).to(tl.int64) * hidden + row
        own = tl.zeros((ROWS, WORDS), tl.float32)
        for first in range(0, words, WORDS):
            word = first + tl.arange(0, WORDS)
            real = word < words
            inside = exists[:, None] & real[None, :]
            vector = inner_in + pair * words * 8
            own += _piece(down + at * words, down_scale + at * groups, vector, word, inside, words, real, GROUP // 8)
        total += tl.load(weights + pair) * tl.sum(own, 1)
    tl.store(y + token * hidden + row, total, mask=exists)
