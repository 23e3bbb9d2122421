"""Routed experts as one node: ONNX Runtime's `QMoE`, for models whose experts are so small that nodes count.

It takes the matrices of all experts stacked, the rows of gate and up in turn, hence a copy of what the checkpoint maps, and
multiplies in float32. It chooses experts itself, so a choice is handed over as scores: 1 for each chosen expert and 0 for the
others, and, as what the chosen are weighed by, the weights themselves.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from k2core.errors import Unavailable
from k2core.model.layout import PROJECTIONS, Projection, expert_name
from k2core_onnx.graph import MICROSOFT, Graph, Weights

MOST_BLOCK = 1 << 20  # columns


def experts_value(graph: Graph, weights: Weights, layer: int, x: str, ids: str, shares: str) -> str:
    """x (tokens, hidden), expert_ids (tokens, top_k) int32 and weights (tokens, top_k) to y (tokens, hidden).

    Raises:
        Unavailable: the experts are not packed, or the groups of their matrices differ.
    """
    if not weights.checkpoint.experts_are_packed:
        raise Unavailable(
            "cannot make a QMoE of the checkpoint: its experts are not packed. K2CORE_ONNX_EXPERTS=matmul takes them."
        )
    every = graph.constant(list(range(weights.geometry.n_routed_experts)), np.int32)
    own = graph.call("Equal", graph.call("Unsqueeze", ids, graph.constant([2])), every)  # (tokens, top_k, experts)
    own = graph.call("Cast", own, to=onnx.TensorProto.FLOAT)
    slots = graph.constant([1])
    scores = graph.call("ReduceSum", own, slots, keepdims=0)
    weighed = graph.call("Mul", own, graph.call("Unsqueeze", shares, graph.constant([2])))
    codes, scales, block = _stacked(weights, layer, PROJECTIONS[:2])
    down_codes, down_scales, other = _stacked(weights, layer, PROJECTIONS[2:])
    if block != other:
        raise Unavailable(
            f"cannot make a QMoE of layer {layer}: its blocks have {block} columns, and {other} in down_proj. "
            "K2CORE_ONNX_EXPERTS=matmul takes them."
        )
    no_bias, nothing = "", [""] * 6  # further scales, zero points: 8 is the middle without
    y: str = graph.call(
        "QMoE",
        x,
        scores,
        graph.weight(f"experts_{layer}.gate_up.codes", codes),
        graph.weight(f"experts_{layer}.gate_up.scales", scales),
        no_bias,
        graph.weight(f"experts_{layer}.down.codes", down_codes),
        graph.weight(f"experts_{layer}.down.scales", down_scales),
        no_bias,
        *nothing,
        graph.call("ReduceSum", weighed, slots, keepdims=0),
        domain=MICROSOFT,
        k=weights.geometry.num_experts_per_tok,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,  # rows of gate and up in turn
        normalize_routing_weights=0,
        expert_weight_bits=4,
        block_size=block,
    )
    return y


def _stacked(
    weights: Weights, layer: int, projections: Sequence[Projection]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
    """All experts' matrices, rows of several in turn: codes (experts, rows, columns / 2), scales (experts, rows, blocks), and a
    block's columns. They are filled expert by expert, so that nothing is held twice."""
    count, turns = weights.geometry.n_routed_experts, len(projections)
    first, of_first, block = weights.packed(expert_name(layer, 0, projections[0]), MOST_BLOCK)
    codes = np.empty((count, turns * len(first), first[0].size), np.uint8)
    scales = np.empty((count, turns * len(first), of_first.shape[1]), np.float32)
    for expert in range(count):
        for turn, projection in enumerate(projections):
            one, scale, _ = weights.packed(expert_name(layer, expert, projection), MOST_BLOCK)
            codes[expert, turn::turns], scales[expert, turn::turns] = one.reshape(len(one), -1), scale
    return codes, scales, block
