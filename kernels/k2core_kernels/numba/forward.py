"""The whole forward of some tokens in one compiled call, on as many threads as have work.

Python's way into a compiled function costs more than an op of a small model does, so the walk over the layers is compiled too.
Threads that help know no Python objects: what they read is a job, one array of numbers and addresses.

Threads share tokens. A token meets others only in attention, through the cache, so each thread takes a run of tokens through
all layers by itself. Only where a sequence goes on in the next piece does that one wait, in every layer, until the piece before
has written its latents. Every thread then reads all weights, which pays where the caches hold them; else (`BY_TOKENS` is 0) the
tokens stay together and the threads share each op that is large enough.
"""

import numpy as np

from k2core_kernels.numba import crew, layers
from k2core_kernels.numba.embedding import embedding
from k2core_kernels.numba.layers import floats_at, ints_at, longs_at, up16
from k2core_kernels.numba.options import flag, floats, ints, kernel, longs, none, size
from k2core_kernels.numba.rms_norm import rms_norm

# Words of a job. What is set once for a model: addresses of its sizes (int64), constants (float32), weights, tables of angles,
# and of the workspace's offsets; the workspace and its bytes per piece; the board of the crew; and how to share.
SIZES, CONSTANTS, WEIGHTS, COSINE, SINE, ANGLES = 0, 1, 2, 3, 4, 5
OFFSETS, WORK, WORK_BYTES = 6, 7, 8
BOARD, THREADS, BY_TOKENS, TOKEN_WORK, POSITION_WORK, ROW_WORK = 9, 10, 11, 12, 13, 14
# What a call sets: its tokens, and where results go.
TOKENS, TOKEN_IDS, TABLES, POSITIONS, ROWS, FINAL, LOGITS, EXPERT_IDS, EXPERT_WEIGHTS = 16, 17, 18, 19, 20, 21, 22, 23, 24
# Then a cache line for each piece. WRITTEN says how many layers' latents are in the cache.
PIECES, PIECE = 32, 8
FIRST, LAST, FIRST_ROW, LAST_ROW, WRITTEN = 0, 1, 2, 3, 4
WORTH = 500_000  # multiply-adds of the least piece, about 10 us: what it takes to begin one


@kernel(layers.SIZES(longs))
def _sizes(job):
    s = longs_at(job[SIZES], 16)
    return layers.Sizes(
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]
    )  # fmt: skip


@kernel(layers.CONSTANTS(longs))
def _constants(job):
    c = floats_at(job[CONSTANTS], 5)
    return layers.Constants(c[0], c[1], c[2], c[3], c[4] != 0)


@kernel(longs(longs, size, size))
def _weights(job, row, columns):
    return longs_at(job[WEIGHTS] + row * columns * 8, columns)


@kernel(floats(longs, size, size))
def _area(job, piece, number):
    """The *number*-th array of a piece's workspace."""
    offsets = longs_at(job[OFFSETS], 20)
    size = (offsets[number + 1] - offsets[number]) // 4
    return floats_at(job[WORK] + piece * job[WORK_BYTES] + offsets[number], size)


@kernel(layers.WORKSPACE(longs, size))
def _workspace(job, piece):
    members = _area(job, piece, 18)
    return layers.Workspace(
        _area(job, piece, 0), _area(job, piece, 1), _area(job, piece, 2), _area(job, piece, 3), _area(job, piece, 4),
        _area(job, piece, 5), _area(job, piece, 6), _area(job, piece, 7), _area(job, piece, 8), _area(job, piece, 9),
        _area(job, piece, 10), _area(job, piece, 11), _area(job, piece, 12), _area(job, piece, 13), _area(job, piece, 14),
        _area(job, piece, 15), _area(job, piece, 16), _area(job, piece, 17),
        ints_at(np.int64(members.ctypes.data), len(members)),
    )  # fmt: skip


@kernel(layers.CHUNK(longs, size))
def _chunk(job, piece):
    """The tokens of a piece."""
    place = PIECES + piece * PIECE
    first, count = job[place + FIRST], job[place + LAST] - job[place + FIRST]
    tables = longs_at(job[TABLES], job[TOKENS])
    own, before = np.int64(0), np.int64(0)
    if job[BY_TOKENS]:
        own = np.int64(job.ctypes.data) + (place + WRITTEN) * 8
        if first > 0 and tables[first - 1] == tables[first]:
            before = own - PIECE * 8
    return layers.Chunk(
        longs_at(job[TOKEN_IDS] + first * 8, count), tables[first : first + count],
        longs_at(job[POSITIONS] + first * 8, count), floats_at(job[COSINE], job[ANGLES]), floats_at(job[SINE], job[ANGLES]),
        job[BOARD], own, before,
    )  # fmt: skip


@kernel(size(longs, size, size, flag))
def run_piece(job, piece, behind, pausing):
    """Take the tokens of a piece through the layers; hidden states, choices and logits are written where the job says.

    Args:
        job, piece: as above.
        behind: the layer behind whose routed experts to go on, their sum being in the workspace's *routed*; -1 begins.
        pausing: routed experts are left to the caller.

    Returns:
        The layer whose experts are needed, for the workspace's *normed*; -1 when everything is done.
    """
    sizes, constants, chunk, work = _sizes(job), _constants(job), _chunk(job, piece), _workspace(job, piece)
    threads = np.int64(1) if job[BY_TOKENS] else job[THREADS]
    place = PIECES + piece * PIECE
    first, count, total = job[place + FIRST], len(chunk.token_ids), job[TOKENS]
    stride, columns = up16(sizes.hidden), np.int64(layers.COLUMNS)
    outer = _weights(job, sizes.layers, columns)
    choices = (sizes.layers - sizes.dense_layers) * total * sizes.top_k
    expert_ids, expert_weights = ints_at(job[EXPERT_IDS], choices), floats_at(job[EXPERT_WEIGHTS], choices)
    if behind < 0:
        embedding(layers.shorts_at(outer[layers.EMBEDDING], sizes.vocab * stride), stride, chunk.token_ids, work.hidden)
    for layer in range(max(behind, 0), sizes.layers):
        row = _weights(job, layer, columns)
        start = ((layer - sizes.dense_layers) * total + first) * sizes.top_k
        if layer > behind:
            gain = floats_at(row[layers.INPUT_NORM], sizes.hidden)
            rms_norm(work.hidden, 0, stride, count, gain, constants.eps, work.normed, 0, stride)
            layers.attention(sizes, constants, row, layer, chunk, work, threads)
            layers.add_onto(work.hidden, work.output, count * stride)
            gain = floats_at(row[layers.POST_NORM], sizes.hidden)
            rms_norm(work.hidden, 0, stride, count, gain, constants.eps, work.normed, 0, stride)
        if layer < sizes.dense_layers:
            layers.mlp(sizes, row, sizes.dense_inner, work.normed, count, work, threads)
        else:
            if layer > behind:
                layers.route(sizes, constants, row, work.normed, count, work, expert_ids, expert_weights, start, threads)
                if pausing:
                    return layer
                layers.experts(sizes, row, work.normed, count, work, expert_ids, expert_weights, start, threads)
            layers.mlp(sizes, row, sizes.shared_inner, work.normed, count, work, threads)
            layers.add_onto(work.output, work.routed, count * stride)
        layers.add_onto(work.hidden, work.output, count * stride)
    first_row = job[place + FIRST_ROW]
    rows = job[place + LAST_ROW] - first_row
    tokens = longs_at(job[ROWS] + first_row * 8, rows)
    final = floats_at(job[FINAL] + first_row * stride * 4, rows * stride)
    gain = floats_at(outer[layers.FINAL_NORM], sizes.hidden)
    for i in range(rows):
        rms_norm(work.hidden, (tokens[i] - first) * stride, stride, 1, gain, constants.eps, final, i * stride, stride)
    if job[LOGITS]:
        width = up16(sizes.vocab)
        logits = floats_at(job[LOGITS] + first_row * width * 4, rows * width)
        layers.project(outer[layers.HEAD], sizes.vocab, sizes.hidden, final, stride, rows, logits, width, threads)
    return -1


@kernel(size(longs, longs, longs))
def _cut(job, positions, rows):
    """Share the tokens out by the work they are; returns how many pieces there are."""
    tokens = len(positions)
    total = tokens * job[TOKEN_WORK] + len(rows) * job[ROW_WORK]
    for token in range(tokens):
        total += positions[token] * job[POSITION_WORK]
    pieces = min(job[THREADS], tokens, max(1, total // WORTH)) if job[BY_TOKENS] else 1
    token, row, done = 0, 0, 0
    for piece in range(pieces):
        place = PIECES + piece * PIECE
        job[place + FIRST], job[place + FIRST_ROW], job[place + WRITTEN] = token, row, 0
        goal, most = total * (piece + 1) // pieces, tokens - (pieces - 1 - piece)
        while token < most:
            wanted = row < len(rows) and rows[row] == token
            work = job[TOKEN_WORK] + positions[token] * job[POSITION_WORK] + (job[ROW_WORK] if wanted else 0)
            if piece < pieces - 1 and token > job[place + FIRST] and done + work // 2 > goal:
                break
            done, token, row = done + work, token + 1, row + wanted
        job[place + LAST], job[place + LAST_ROW] = token, row
    return pieces


@kernel(none(size))
def _work(board):
    """Do pieces until none is left."""
    piece = crew.claim(board)
    while piece >= 0:
        run_piece(longs_at(crew.read(board + crew.JOB), PIECES), piece, -1, False)
        crew.add_to(board + crew.DONE, 1)
        piece = crew.claim(board)


@kernel(none(longs, longs, longs, longs, longs, floats, floats, ints, floats))
def _set(job, token_ids, tables, positions, rows, final, logits, expert_ids, expert_weights):
    """What a call sets; arguments as of `forward`."""
    job[TOKENS], job[TOKEN_IDS], job[TABLES] = len(token_ids), token_ids.ctypes.data, tables.ctypes.data
    job[POSITIONS], job[ROWS], job[FINAL] = positions.ctypes.data, rows.ctypes.data, final.ctypes.data
    job[LOGITS] = logits.ctypes.data if len(logits) else 0
    job[EXPERT_IDS], job[EXPERT_WEIGHTS] = expert_ids.ctypes.data, expert_weights.ctypes.data


@kernel(none(longs, longs, longs, longs, longs, floats, floats, ints, floats))
def forward(job, token_ids, tables, positions, rows, final, logits, expert_ids, expert_weights):
    """Run tokens through all layers.

    Args:
        job: what is set once for a model, as above; the rest is overwritten.
        token_ids, positions: int64 (tokens).
        tables: int64 (tokens), address of the page table of each token's sequence: its pages exist, hold all earlier positions,
            and no other sequence holds those that the tokens fall into. Tokens of a sequence follow each other.
        rows: int64, ascending, the tokens whose final hidden state is wanted.
        final: flat float32 (rows * hidden rounded up to 16), written: the hidden states after the last norm.
        logits: flat float32 (rows * vocab rounded up to 16), written; empty where none are wanted.
        expert_ids, expert_weights: flat int32 and float32 (MoE layers * tokens * top_k), written.
    """
    _set(job, token_ids, tables, positions, rows, final, logits, expert_ids, expert_weights)
    pieces, board = _cut(job, positions, rows), job[BOARD]
    if pieces == 1:
        run_piece(job, 0, -1, False)
    else:
        crew.publish(board, np.int64(job.ctypes.data), pieces)
        _work(board)
        crew.wait_for(board, board + crew.DONE, pieces)


@kernel(size(longs, size, longs, longs, longs, longs, floats, floats, ints, floats))
def resume(job, layer, token_ids, tables, positions, rows, final, logits, expert_ids, expert_weights):
    """The same with the routed experts left to the caller: run up to the next layer that needs them.

    Args:
        job: of a model whose threads share ops (`BY_TOKENS` is 0).
        layer: behind whose experts to go on, their sum being in the workspace's *routed*; -1 begins.
        token_ids … expert_weights: as of `forward`, the same in every call.

    Returns:
        The layer whose experts are needed, for the workspace's *normed* and for its part of *expert_ids* and
        *expert_weights*; -1 when everything is done.
    """
    if layer < 0:
        _set(job, token_ids, tables, positions, rows, final, logits, expert_ids, expert_weights)
        job[PIECES + FIRST], job[PIECES + LAST] = 0, len(token_ids)
        job[PIECES + FIRST_ROW], job[PIECES + LAST_ROW] = 0, len(rows)
    return run_piece(job, 0, layer, True)


@kernel(none(size, size))
def serve(board, helper):
    """Help with jobs for ever."""
    while helper >= 0:
        crew.sleep(board, helper)
        while crew.look(board):
            _work(board)


@kernel(size(size, size))
def wake(board, helpers):
    """Wake helpers for a job that is about to be published; returns the core that this thread runs on, -1 where not known."""
    crew.wake(board, helpers)
    core = crew.read(board + crew.CORE)
    return crew.call(core, 0) if core else -1


@kernel(none(longs, size, floats, size, ints, floats))
def route(job, layer, x, tokens, expert_ids, weights):
    """Choose experts for flat x (tokens * hidden rounded up to 16); token t's choices are written at t * top_k."""
    row = _weights(job, layer, np.int64(layers.COLUMNS))
    layers.route(_sizes(job), _constants(job), row, x, tokens, _workspace(job, 0), expert_ids, weights, 0, job[THREADS])


@kernel(none(longs, size, floats, size, ints, floats, floats))
def experts(job, layer, x, tokens, expert_ids, weights, y):
    """The weighted sum of the chosen experts of flat x, into flat y of the same size."""
    row, work = _weights(job, layer, np.int64(layers.COLUMNS)), _workspace(job, 0)
    layers.experts(_sizes(job), row, x, tokens, work, expert_ids, weights, 0, job[THREADS])
    y[:] = work.routed[: len(y)]


@kernel(none(longs, size, floats, size, floats))
def shared_expert(job, layer, x, tokens, y):
    """The shared expert of flat x, into flat y of the same size."""
    row, work, sizes = _weights(job, layer, np.int64(layers.COLUMNS)), _workspace(job, 0), _sizes(job)
    layers.mlp(sizes, row, sizes.shared_inner, x, tokens, work, job[THREADS])
    y[:] = work.output[: len(y)]
