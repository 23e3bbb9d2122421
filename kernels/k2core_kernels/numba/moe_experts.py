"""The routed experts: y = sum over slots of weight * down(silu(gate x) * up x), from packed INT4 weights.

Tokens of one expert are computed together, but each token's sum runs over its slots in order, whoever shares the batch.
"""

import numpy as np

from k2core_kernels.numba.linear_int4 import linear_int4
from k2core_kernels.numba.options import floats, ints, kernel, none, shorts, size, words
from k2core_kernels.numba.swiglu import swiglu
from k2core_kernels.numba.vectors import add, broadcast, load, multiply, splat, store


@kernel(none(floats, size, floats, size, size))
def _copy(x, x_start, y, y_start, size):
    """Copy *size* values, a multiple of 16."""
    for block in range(0, size, 16):
        store(y, y_start + block, load(x, x_start + block))


@kernel(
    none(size, size, floats, size, size, size, size, words, shorts, words, shorts, words, shorts, floats, floats, floats, size)
)
def _one_expert(
    expert, count, x, x_stride, hidden, inner, group, gate_words, gate_scales, up_words, up_scales, down_words, down_scales,
    gate, up, y, threads,
):  # fmt: skip
    inner_tiles, hidden_tiles = (inner + 15) // 16, (hidden + 15) // 16
    in_groups, out_groups, group_words = hidden // group, inner // group, group // 8
    words, scales = inner_tiles * hidden * 2, inner_tiles * in_groups * 16
    stride = inner_tiles * 16
    linear_int4(
        gate_words[expert * words : (expert + 1) * words], gate_scales[expert * scales : (expert + 1) * scales], in_groups,
        group_words, inner_tiles, x, 0, x_stride, count, gate, 0, stride, threads,
    )  # fmt: skip
    linear_int4(
        up_words[expert * words : (expert + 1) * words], up_scales[expert * scales : (expert + 1) * scales], in_groups,
        group_words, inner_tiles, x, 0, x_stride, count, up, 0, stride, threads,
    )  # fmt: skip
    swiglu(gate, up, count * stride)
    words, scales = hidden_tiles * inner * 2, hidden_tiles * out_groups * 16
    linear_int4(
        down_words[expert * words : (expert + 1) * words], down_scales[expert * scales : (expert + 1) * scales], out_groups,
        group_words, hidden_tiles, gate, 0, stride, count, y, 0, hidden_tiles * 16, threads,
    )  # fmt: skip


@kernel(
    none(
        floats,
        size,
        size,
        ints,
        floats,
        size,
        size,
        size,
        size,
        size,
        size,
        words,
        shorts,
        words,
        shorts,
        words,
        shorts,
        floats,
        floats,
        floats,
        floats,
        floats,
        ints,
        floats,
        size,
    )
)
def moe_experts(
    x, x_stride, tokens, expert_ids, weights, start, top_k, experts, hidden, inner, group,
    gate_words, gate_scales, up_words, up_scales, down_words, down_scales,
    gathered, gate, up, down, slots, members, y, threads,
):  # fmt: skip
    """Weighted sum of each token's experts.

    Args:
        x: flat float32, token t at t * x_stride; x_stride is *hidden* rounded up to 16.
        expert_ids, weights: flat int32 and float32; token t's slots at start + t * top_k.
        experts, hidden, inner, group: sizes; hidden and inner are multiples of group, group of 8.
        gate_words … down_scales: all experts one after another, each as `linear_int4` takes it.
        gathered, down: flat float32 workspaces of tokens * x_stride.
        gate, up: flat float32 workspaces of tokens * inner rounded up to 16.
        slots: flat float32 workspace of tokens * top_k * x_stride.
        members: flat int32 workspace of tokens.
        y: flat float32, token t at t * x_stride; overwritten.
        threads: 1 never enters a parallel region.
    """
    if tokens == 1:
        for slot in range(top_k):
            _one_expert(
                expert_ids[start + slot], 1, x, x_stride, hidden, inner, group, gate_words, gate_scales, up_words, up_scales,
                down_words, down_scales, gate, up, slots[slot * x_stride : (slot + 1) * x_stride], threads,
            )  # fmt: skip
    else:
        for expert in range(experts):
            count = 0
            for choice in range(tokens * top_k):
                if expert_ids[start + choice] == expert:
                    members[count] = choice
                    _copy(x, choice // top_k * x_stride, gathered, count * x_stride, x_stride)
                    count += 1
            if count == 0:
                continue
            _one_expert(
                expert, count, gathered, x_stride, hidden, inner, group, gate_words, gate_scales, up_words, up_scales,
                down_words, down_scales, gate, up, down, threads,
            )  # fmt: skip
            for row in range(count):
                _copy(down, row * x_stride, slots, members[row] * x_stride, x_stride)
    for token in range(tokens):
        for block in range(0, x_stride, 16):
            total = splat(np.float32(0))
            for slot in range(top_k):
                choice = token * top_k + slot
                total = add(total, multiply(broadcast(weights, start + choice), load(slots, choice * x_stride + block)))
            store(y, token * x_stride + block, total)
