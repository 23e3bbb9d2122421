"""What a layer does with some tokens: attention, the dense mlp, and the experts.

Weights come as addresses: the table has one row per layer and one column per matrix, and a last row for what is no layer's.
Whoever made it keeps the arrays alive.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import types

from k2core_kernels.numba.crew import announce, wait_for
from k2core_kernels.numba.linear import linear
from k2core_kernels.numba.mla_attention import PAGE, mla_attention, write_latent
from k2core_kernels.numba.moe_experts import moe_experts
from k2core_kernels.numba.moe_route import moe_route
from k2core_kernels.numba.options import floats, ints, kernel, longs, none, shorts, size, words
from k2core_kernels.numba.rms_norm import rms_norm
from k2core_kernels.numba.rope_yarn import rope_yarn
from k2core_kernels.numba.swiglu import swiglu
from k2core_kernels.numba.vectors import pointer_at

# Columns of a layer's row. Matrices are in the layout of `linear`, those of experts in the layout of `linear_int4`.
INPUT_NORM, POST_NORM, QUERY_NORM, LATENT_NORM = 0, 1, 2, 3
QUERY_A, QUERY_B, LATENT_A, ABSORB, VALUE, OUTPUT = 4, 5, 6, 7, 8, 9
GATE, UP, DOWN = 10, 11, 12  # of the dense layer, or of the shared expert
ROUTER, ROUTER_BIAS = 13, 14
EXPERT_GATE, EXPERT_GATE_SCALE, EXPERT_UP, EXPERT_UP_SCALE, EXPERT_DOWN, EXPERT_DOWN_SCALE = 15, 16, 17, 18, 19, 20
COLUMNS = 21
# Columns of the last row.
EMBEDDING, FINAL_NORM, HEAD = 0, 1, 2


class Sizes(NamedTuple):
    """Sizes of a model, in its own names; all int."""

    layers: int
    dense_layers: int
    hidden: int
    dense_inner: int
    shared_inner: int
    experts: int
    top_k: int
    inner: int
    group: int
    heads: int
    query_rank: int
    latent_rank: int
    nope: int
    rope: int
    value: int
    vocab: int


class Constants(NamedTuple):
    """Constants of a model, float32, and whether router weights are normalised."""

    eps: np.float32
    latent_eps: np.float32
    softmax_scale: np.float32
    routed_factor: np.float32
    normalise: bool


class Workspace(NamedTuple):
    """Flat arrays that a forward writes; float32 except *members* (int32). Sizes: k2core_numba.workspace."""

    hidden: np.ndarray
    normed: np.ndarray
    query_latent: np.ndarray
    query: np.ndarray
    latent: np.ndarray
    absorbed: np.ndarray
    attended: np.ndarray
    values: np.ndarray
    output: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    router: np.ndarray
    gathered: np.ndarray
    down: np.ndarray
    slots: np.ndarray
    routed: np.ndarray
    scores: np.ndarray
    state: np.ndarray
    members: np.ndarray


class Chunk(NamedTuple):
    """Tokens that go through the layers together.

    token_ids, tables, positions: int64 (tokens); a table is the address of the page table of the token's sequence.
    cosine, sine: flat float32 (positions * rope / 2).
    board: of the crew; own, before: addresses where this chunk says how many layers' latents it has written, and where the
    one before does; 0 where nobody reads it, and where no sequence goes on.
    """

    token_ids: np.ndarray
    tables: np.ndarray
    positions: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray
    board: int
    own: int
    before: int


SIZES = numba.typeof(Sizes(*[1] * len(Sizes._fields)))
CONSTANTS = numba.typeof(Constants(*[np.float32(1)] * 4, True))
WORKSPACE = types.NamedTuple([floats] * (len(Workspace._fields) - 1) + [ints], Workspace)
CHUNK = types.NamedTuple([longs, longs, longs, floats, floats, size, size, size], Chunk)


@kernel(size(size))
def up16(size):
    """The least multiple of 16 that is not below *size*."""
    return (size + 15) // 16 * 16


@kernel(floats(size, size))
def floats_at(address, size):
    """A flat float32 array at an address."""
    return numba.carray(pointer_at(address), (size,), np.float32)


@kernel(ints(size, size))
def ints_at(address, size):
    """A flat int32 array at an address."""
    return numba.carray(pointer_at(address), (size,), np.int32)


@kernel(longs(size, size))
def longs_at(address, size):
    """A flat int64 array at an address."""
    return numba.carray(pointer_at(address), (size,), np.int64)


@kernel(words(size, size))
def words_at(address, size):
    """A flat uint32 array at an address."""
    return numba.carray(pointer_at(address), (size,), np.uint32)


@kernel(shorts(size, size))
def shorts_at(address, size):
    """A flat uint16 array at an address."""
    return numba.carray(pointer_at(address), (size,), np.uint16)


@kernel(none(size, size, size, floats, size, size, floats, size, size))
def project(address, rows, columns, x, x_stride, tokens, y, y_stride, threads):
    """Rows of y = W x, W at an address."""
    pairs = (columns + 1) // 2
    weight = words_at(address, up16(rows) * pairs)
    linear(weight, pairs, up16(rows) // 16, x, 0, x_stride, tokens, y, 0, y_stride, threads)


@kernel(none(floats, floats, size))
def add_onto(x, y, size):
    """x += y."""
    for i in range(size):
        x[i] += y[i]


@kernel(none(SIZES, CONSTANTS, longs, size, CHUNK, WORKSPACE, size))
def attention(sizes, constants, row, layer, chunk, work, threads):
    """work.output = attention of work.normed; the chunk's latents enter the cache first."""
    tokens = len(chunk.token_ids)
    heads, nope, rope, rank = sizes.heads, sizes.nope, sizes.rope, sizes.latent_rank
    width, hidden_stride = rank + rope, up16(sizes.hidden)
    query_stride, latent_stride = up16(heads * (nope + rope)), up16(width)
    rank_stride = up16(sizes.query_rank)
    project(
        row[QUERY_A], sizes.query_rank, sizes.hidden, work.normed, hidden_stride, tokens, work.query_latent, rank_stride,
        threads,
    )  # fmt: skip
    gain = floats_at(row[QUERY_NORM], sizes.query_rank)
    rms_norm(work.query_latent, 0, rank_stride, tokens, gain, constants.latent_eps, work.query_latent, 0, rank_stride)
    project(
        row[QUERY_B], heads * (nope + rope), sizes.query_rank, work.query_latent, rank_stride, tokens, work.query, query_stride,
        threads,
    )  # fmt: skip
    project(row[LATENT_A], width, sizes.hidden, work.normed, hidden_stride, tokens, work.latent, latent_stride, threads)
    gain = floats_at(row[LATENT_NORM], rank)
    rms_norm(work.latent, 0, latent_stride, tokens, gain, constants.latent_eps, work.latent, 0, latent_stride)
    layer_offset = layer * PAGE * width * 4
    for token in range(tokens):
        start, position = token * latent_stride, chunk.positions[token]
        rope_yarn(work.latent, start + rank, chunk.cosine, chunk.sine, rope // 2, position, work.latent, start + rank)
        write_latent(work.latent, start, layer_offset, width, position, chunk.tables[token])
    # queries into the latent space: rank absorbed values, then the rotated ones
    absorbed_stride, rank_rows = up16(rank) + up16(rope), up16(rank)
    pairs = (nope + 1) // 2
    for head in range(heads):
        weight = words_at(row[ABSORB] + head * rank_rows * pairs * 4, rank_rows * pairs)
        linear(
            weight, pairs, rank_rows // 16, work.query, head * (nope + rope), query_stride, tokens, work.absorbed,
            head * absorbed_stride, heads * absorbed_stride, threads,
        )  # fmt: skip
    for token in range(tokens):
        position = chunk.positions[token]
        for head in range(heads):
            source = token * query_stride + head * (nope + rope) + nope
            target = (token * heads + head) * absorbed_stride + rank
            rope_yarn(work.query, source, chunk.cosine, chunk.sine, rope // 2, position, work.absorbed, target)
    if chunk.before:
        wait_for(chunk.board, chunk.before, layer + 1)
    if chunk.own:
        announce(chunk.own, layer + 1)  # after the wait: it speaks for all chunks before too
    mla_attention(
        tokens, heads, work.absorbed, absorbed_stride, chunk.tables, chunk.positions, layer_offset, rank, width,
        constants.softmax_scale, work.scores, work.state, work.attended, rank_rows, threads,
    )  # fmt: skip
    value_stride, value_rows = up16(heads * sizes.value) + 16, up16(sizes.value)
    pairs = (rank + 1) // 2
    for head in range(heads):
        weight = words_at(row[VALUE] + head * value_rows * pairs * 4, value_rows * pairs)
        linear(
            weight, pairs, value_rows // 16, work.attended, head * rank_rows, heads * rank_rows, tokens, work.values,
            head * sizes.value, value_stride, threads,
        )  # fmt: skip
    project(
        row[OUTPUT], sizes.hidden, heads * sizes.value, work.values, value_stride, tokens, work.output, hidden_stride, threads
    )


@kernel(none(SIZES, longs, size, floats, size, WORKSPACE, size))
def mlp(sizes, row, inner, x, tokens, work, threads):
    """work.output = down(silu(gate x) * up x) with plain weights: the dense layer, or the shared expert."""
    hidden_stride, stride = up16(sizes.hidden), up16(inner)
    project(row[GATE], inner, sizes.hidden, x, hidden_stride, tokens, work.gate, stride, threads)
    project(row[UP], inner, sizes.hidden, x, hidden_stride, tokens, work.up, stride, threads)
    swiglu(work.gate, work.up, tokens * stride)
    project(row[DOWN], sizes.hidden, inner, work.gate, stride, tokens, work.output, hidden_stride, threads)


@kernel(none(SIZES, CONSTANTS, longs, floats, size, WORKSPACE, ints, floats, size, size))
def route(sizes, constants, row, x, tokens, work, expert_ids, weights, start, threads):
    """Choose experts for flat x; token t's choices are written at start + t * top_k."""
    stride = up16(sizes.experts)
    project(row[ROUTER], sizes.experts, sizes.hidden, x, up16(sizes.hidden), tokens, work.router, stride, threads)
    bias = floats_at(row[ROUTER_BIAS], sizes.experts)
    moe_route(
        work.router, stride, tokens, bias, sizes.top_k, constants.normalise, constants.routed_factor, expert_ids, weights, start
    )


@kernel(none(SIZES, longs, floats, size, WORKSPACE, ints, floats, size, size))
def experts(sizes, row, x, tokens, work, expert_ids, weights, start, threads):
    """work.routed = weighted sum of the chosen experts of flat x."""
    hidden_stride = up16(sizes.hidden)
    words, scales = up16(sizes.inner) * sizes.hidden // 8, up16(sizes.inner) * (sizes.hidden // sizes.group)
    down_words, down_scales = hidden_stride * sizes.inner // 8, hidden_stride * (sizes.inner // sizes.group)
    count = sizes.experts
    moe_experts(
        x, hidden_stride, tokens, expert_ids, weights, start, sizes.top_k, count, sizes.hidden, sizes.inner, sizes.group,
        words_at(row[EXPERT_GATE], count * words), shorts_at(row[EXPERT_GATE_SCALE], count * scales),
        words_at(row[EXPERT_UP], count * words), shorts_at(row[EXPERT_UP_SCALE], count * scales),
        words_at(row[EXPERT_DOWN], count * down_words), shorts_at(row[EXPERT_DOWN_SCALE], count * down_scales),
        work.gathered, work.gate, work.up, work.down, work.slots, work.members, work.routed, threads,
    )  # fmt: skip
