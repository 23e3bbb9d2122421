"""Sigmoid router with a correction bias that takes part in the choice only (DeepSeek-V3, Kimi K2)."""

import numpy as np

from k2core_kernels.numba.options import flag, floats, ints, kernel, none, real, size
from k2core_kernels.numba.vectors import add, divide, exponential, load, splat, store, subtract


@kernel(none(floats, size, size, floats, size, flag, real, ints, floats, size))
def moe_route(scores, stride, tokens, bias, top_k, normalise, factor, expert_ids, weights, start):
    """Choose experts from router logits.

    The best top_k of sigmoid(logit) + bias, a tie going to the lower index, in falling order. Their weights are the sigmoids
    without the bias, normalised to sum 1 if *normalise*, times *factor*.

    Args:
        scores: flat float32 router logits, token t at t * stride, stride a multiple of 16; overwritten with sigmoids.
        bias: flat float32 (experts).
        factor: float32.
        expert_ids, weights: flat int32 and float32; token t's choices are written at start + t * top_k.
    """
    experts = len(bias)
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    for token in range(tokens):
        row, chosen = token * stride, start + token * top_k
        for block in range(0, stride, 16):
            value = load(scores, row + block)
            store(scores, row + block, divide(one, add(one, exponential(subtract(zero, value)))))
        total = np.float32(0)
        for slot in range(top_k):
            best, best_value = -1, np.float32(0)
            for expert in range(experts):
                value = scores[row + expert] + bias[expert]
                if best < 0 or value > best_value:
                    taken = False
                    for before in range(slot):
                        taken = taken or expert_ids[chosen + before] == expert
                    if not taken:
                        best, best_value = expert, value
            expert_ids[chosen + slot] = best
            weights[chosen + slot] = scores[row + best]
            total += scores[row + best]
        for slot in range(top_k):
            share = weights[chosen + slot] / (total + np.float32(1e-20)) if normalise else weights[chosen + slot]
            weights[chosen + slot] = share * factor
