"""The whole forward of a chunk of tokens in one compiled call.

Python's way into a compiled function costs more than an op of a small model does, so the walk over the layers is compiled too.
Weights come as addresses: `weights` has one row per layer and one column per matrix, and a last row for what is no layer's.
Whoever made the table keeps the arrays alive.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import types

from k2core_kernels.numba.embedding import embedding
from k2core_kernels.numba.linear import linear
from k2core_kernels.numba.mla_attention import PAGE, SCORE_ROWS, mla_attention, write_latent
from k2core_kernels.numba.moe_experts import moe_experts
from k2core_kernels.numba.moe_route import moe_route
from k2core_kernels.numba.options import flag, floats, ints, kernel, longs, none, shorts, size, table, words
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
    scores: np.ndarray
    router: np.ndarray
    gathered: np.ndarray
    down: np.ndarray
    slots: np.ndarray
    routed: np.ndarray
    members: np.ndarray


class Chunk(NamedTuple):
    """The tokens of one call.

    token_ids, sequences: int32 (tokens); positions: int64 (tokens); pages: flat int64 (sequences * page_columns), addresses;
    rows: int64, the tokens whose final hidden state is wanted.
    """

    token_ids: np.ndarray
    sequences: np.ndarray
    positions: np.ndarray
    pages: np.ndarray
    page_columns: int
    rows: np.ndarray


_SIZES = numba.typeof(Sizes(*[1] * len(Sizes._fields)))
_CONSTANTS = numba.typeof(Constants(*[np.float32(1)] * 4, True))
_WORKSPACE = types.NamedTuple([floats] * (len(Workspace._fields) - 1) + [ints], Workspace)
_CHUNK = types.NamedTuple([ints, ints, longs, longs, size, longs], Chunk)


@kernel(size(size))
def _up16(size):
    return (size + 15) // 16 * 16


@kernel(floats(size, size))
def _floats(address, size):
    return numba.carray(pointer_at(address), (size,), np.float32)


@kernel(words(size, size))
def _words(address, size):
    return numba.carray(pointer_at(address), (size,), np.uint32)


@kernel(shorts(size, size))
def _shorts(address, size):
    return numba.carray(pointer_at(address), (size,), np.uint16)


@kernel(words(size, size, size))
def _matrix(address, rows, columns):
    return _words(address, _up16(rows) * ((columns + 1) // 2))


@kernel(none(size, size, size, floats, size, size, floats, size, size))
def _project(address, rows, columns, x, x_stride, tokens, y, y_stride, threads):
    linear(
        _matrix(address, rows, columns), (columns + 1) // 2, (rows + 15) // 16, x, 0, x_stride, tokens, y, 0, y_stride, threads
    )


@kernel(none(floats, floats, size))
def _add(x, y, size):
    for i in range(size):
        x[i] += y[i]


@kernel(none(_SIZES, _CONSTANTS, longs, size, _CHUNK, floats, floats, _WORKSPACE, size))
def attention(sizes, constants, row, layer, chunk, cosine, sine, work, threads):
    """work.output = attention of work.normed; the chunk's latents enter the cache first."""
    tokens = len(chunk.token_ids)
    heads, nope, rope, rank = sizes.heads, sizes.nope, sizes.rope, sizes.latent_rank
    width, hidden_stride = rank + rope, _up16(sizes.hidden)
    query_stride, latent_stride = _up16(heads * (nope + rope)), _up16(width)
    rank_stride = _up16(sizes.query_rank)
    _project(
        row[QUERY_A],
        sizes.query_rank,
        sizes.hidden,
        work.normed,
        hidden_stride,
        tokens,
        work.query_latent,
        rank_stride,
        threads,
    )
    gain = _floats(row[QUERY_NORM], sizes.query_rank)
    rms_norm(work.query_latent, 0, rank_stride, tokens, gain, constants.latent_eps, work.query_latent, 0, rank_stride)
    _project(
        row[QUERY_B], heads * (nope + rope), sizes.query_rank, work.query_latent, rank_stride, tokens, work.query, query_stride,
        threads,
    )  # fmt: skip
    _project(row[LATENT_A], width, sizes.hidden, work.normed, hidden_stride, tokens, work.latent, latent_stride, threads)
    gain = _floats(row[LATENT_NORM], rank)
    rms_norm(work.latent, 0, latent_stride, tokens, gain, constants.latent_eps, work.latent, 0, latent_stride)
    layer_offset = layer * PAGE * width * 4
    for token in range(tokens):
        start, position = token * latent_stride, chunk.positions[token]
        rope_yarn(work.latent, start + rank, cosine, sine, rope // 2, position, work.latent, start + rank)
        page = chunk.pages[chunk.sequences[token] * chunk.page_columns + position // PAGE]
        values = _floats(page, sizes.layers * PAGE * width)
        write_latent(work.latent, start, layer_offset, width, position, values)
    # queries into the latent space: rank absorbed values, then the rotated ones
    absorbed_stride, rank_rows = _up16(rank) + _up16(rope), _up16(rank)
    pairs = (nope + 1) // 2
    for head in range(heads):
        weight = _words(row[ABSORB] + head * rank_rows * pairs * 4, rank_rows * pairs)
        linear(
            weight, pairs, rank_rows // 16, work.query, head * (nope + rope), query_stride, tokens, work.absorbed,
            head * absorbed_stride, heads * absorbed_stride, threads,
        )  # fmt: skip
    for token in range(tokens):
        for head in range(heads):
            source = token * query_stride + head * (nope + rope) + nope
            target = (token * heads + head) * absorbed_stride + rank
            rope_yarn(work.query, source, cosine, sine, rope // 2, chunk.positions[token], work.absorbed, target)
    mla_attention(
        tokens, heads, work.absorbed, absorbed_stride, chunk.pages, chunk.page_columns, chunk.sequences, chunk.positions,
        layer_offset, rank, width, constants.softmax_scale, work.scores, len(work.scores) // SCORE_ROWS, work.attended,
        rank_rows, threads,
    )  # fmt: skip
    value_stride, value_rows = _up16(heads * sizes.value) + 16, _up16(sizes.value)
    pairs = (rank + 1) // 2
    for head in range(heads):
        weight = _words(row[VALUE] + head * value_rows * pairs * 4, value_rows * pairs)
        linear(
            weight, pairs, value_rows // 16, work.attended, head * rank_rows, heads * rank_rows, tokens, work.values,
            head * sizes.value, value_stride, threads,
        )  # fmt: skip
    _project(
        row[OUTPUT], sizes.hidden, heads * sizes.value, work.values, value_stride, tokens, work.output, hidden_stride, threads
    )


@kernel(none(_SIZES, longs, size, floats, size, _WORKSPACE, size))
def mlp(sizes, row, inner, x, tokens, work, threads):
    """work.output = down(silu(gate x) * up x) with plain weights: the dense layer, or the shared expert."""
    hidden_stride, stride = _up16(sizes.hidden), _up16(inner)
    _project(row[GATE], inner, sizes.hidden, x, hidden_stride, tokens, work.gate, stride, threads)
    _project(row[UP], inner, sizes.hidden, x, hidden_stride, tokens, work.up, stride, threads)
    swiglu(work.gate, work.up, tokens * stride)
    _project(row[DOWN], sizes.hidden, inner, work.gate, stride, tokens, work.output, hidden_stride, threads)


@kernel(none(_SIZES, _CONSTANTS, longs, floats, size, _WORKSPACE, ints, floats, size, size))
def route(sizes, constants, row, x, tokens, work, expert_ids, weights, start, threads):
    """Choose experts for flat x; token t's choices are written at start + t * top_k."""
    stride = _up16(sizes.experts)
    _project(row[ROUTER], sizes.experts, sizes.hidden, x, _up16(sizes.hidden), tokens, work.router, stride, threads)
    bias = _floats(row[ROUTER_BIAS], sizes.experts)
    moe_route(
        work.router, stride, tokens, bias, sizes.top_k, constants.normalise, constants.routed_factor, expert_ids, weights, start
    )


@kernel(none(_SIZES, longs, floats, size, _WORKSPACE, ints, floats, size, size))
def experts(sizes, row, x, tokens, work, expert_ids, weights, start, threads):
    """work.routed = weighted sum of the chosen experts of flat x."""
    hidden_stride = _up16(sizes.hidden)
    words, scales = _up16(sizes.inner) * sizes.hidden // 8, _up16(sizes.inner) * (sizes.hidden // sizes.group)
    down_words, down_scales = hidden_stride * sizes.inner // 8, hidden_stride * (sizes.inner // sizes.group)
    count = sizes.experts
    moe_experts(
        x, hidden_stride, tokens, expert_ids, weights, start, sizes.top_k, count, sizes.hidden, sizes.inner, sizes.group,
        _words(row[EXPERT_GATE], count * words), _shorts(row[EXPERT_GATE_SCALE], count * scales),
        _words(row[EXPERT_UP], count * words), _shorts(row[EXPERT_UP_SCALE], count * scales),
        _words(row[EXPERT_DOWN], count * down_words), _shorts(row[EXPERT_DOWN_SCALE], count * down_scales),
        work.gathered, work.gate, work.up, work.down, work.slots, work.members, work.routed, threads,
    )  # fmt: skip


@kernel(none(_SIZES, _CONSTANTS, table, _CHUNK, floats, floats, _WORKSPACE, ints, floats, floats, floats, flag, size))
def forward(
    sizes, constants, weights, chunk, cosine, sine, work, expert_ids, expert_weights, final, logits, want_logits, threads
):
    """Run a chunk of tokens through all layers.

    Args:
        sizes, constants: of the model.
        weights: int64 (layers + 1, COLUMNS) addresses.
        chunk: the tokens; their pages exist and hold all earlier positions.
        cosine, sine: flat float32 (positions * rope / 2).
        work: workspaces for at least this many tokens.
        expert_ids, expert_weights: flat int32 and float32 (MoE layers * tokens * top_k), written.
        final: flat float32 (rows * hidden rounded up to 16), written: the hidden states after the last norm.
        logits: flat float32 (rows * vocab rounded up to 16), written if *want_logits*.
        threads: 1 never enters a parallel region.
    """
    tokens = len(chunk.token_ids)
    stride = _up16(sizes.hidden)
    outer = weights[sizes.layers]
    embedding(_shorts(outer[EMBEDDING], sizes.vocab * stride), stride, chunk.token_ids, work.hidden)
    for layer in range(sizes.layers):
        row = weights[layer]
        gain = _floats(row[INPUT_NORM], sizes.hidden)
        rms_norm(work.hidden, 0, stride, tokens, gain, constants.eps, work.normed, 0, stride)
        attention(sizes, constants, row, layer, chunk, cosine, sine, work, threads)
        _add(work.hidden, work.output, tokens * stride)
        gain = _floats(row[POST_NORM], sizes.hidden)
        rms_norm(work.hidden, 0, stride, tokens, gain, constants.eps, work.normed, 0, stride)
        if layer < sizes.dense_layers:
            mlp(sizes, row, sizes.dense_inner, work.normed, tokens, work, threads)
        else:
            start = (layer - sizes.dense_layers) * tokens * sizes.top_k
            route(sizes, constants, row, work.normed, tokens, work, expert_ids, expert_weights, start, threads)
            experts(sizes, row, work.normed, tokens, work, expert_ids, expert_weights, start, threads)
            mlp(sizes, row, sizes.shared_inner, work.normed, tokens, work, threads)
            _add(work.output, work.routed, tokens * stride)
        _add(work.hidden, work.output, tokens * stride)
    gain = _floats(outer[FINAL_NORM], sizes.hidden)
    for i in range(len(chunk.rows)):
        rms_norm(work.hidden, chunk.rows[i] * stride, stride, 1, gain, constants.eps, final, i * stride, stride)
    if want_logits:
        _project(outer[HEAD], sizes.vocab, sizes.hidden, final, stride, len(chunk.rows), logits, _up16(sizes.vocab), threads)
