"""Router and routed experts as graphs, without control flow and without scatters.

Pairs of token and slot are sorted by expert; one `Gather` lays their states one after the other, one `Split` by run-time counts
hands each expert its own (none is a legal part), and behind three `MatMulNBits` per expert everything is joined, put back into
the order of the slots and summed.
"""

import numpy as np
import onnx

from k2core.interfaces import Numerics
from k2core.model.layout import PROJECTIONS, expert_name
from k2core_onnx import qmoe
from k2core_onnx.graph import MICROSOFT, Graph, Weights
from k2core_onnx.halves import mlp

ACCURACY = {"exact": 0, "w4a8": 4}  # levels of MatMulNBits: float32, and 8-bit activations in the blocks of the weights
MOST_BLOCK = {"exact": 1 << 20, "w4a8": 32}  # columns; w4a8 rounds activations by 32


def front(weights: Weights, layer: int) -> Graph:
    """Router and shared expert: x (tokens, hidden), normalised, to expert_ids and weights (tokens, top_k), and the shared y."""
    graph, g = Graph(f"front_{layer}"), weights.geometry
    x = graph.input("x", ("tokens", g.hidden_size))
    ids, shares = router_values(graph, weights, layer, x)
    graph.output(ids, "expert_ids", ("tokens", g.num_experts_per_tok), onnx.TensorProto.INT32)
    graph.output(shares, "weights", ("tokens", g.num_experts_per_tok))
    graph.output(mlp(graph, weights, f"model.layers.{layer}.mlp.shared_experts", x), "y", ("tokens", g.hidden_size))
    return graph


def router_values(graph: Graph, weights: Weights, layer: int, x: str) -> tuple[str, str]:
    """Choice (int32) and weights in a graph that is being written; of equal scores the lower index wins, as `TopK` has it."""
    g, prefix = weights.geometry, f"model.layers.{layer}.mlp.gate"
    matrix = graph.weight(f"{prefix}.weight", weights.float32(f"{prefix}.weight"))
    bias = graph.weight(f"{prefix}.bias", weights.float32(f"{prefix}.e_score_correction_bias"))
    scores = graph.call("Sigmoid", graph.linear(x, matrix))
    chosen = graph.call("TopK", graph.call("Add", scores, bias), graph.constant([g.num_experts_per_tok]), outputs=2, axis=-1)[1]
    shares = graph.call("GatherElements", scores, chosen, axis=-1)
    if g.norm_topk_prob:
        total = graph.call("ReduceSum", shares, graph.constant([-1]), keepdims=1)
        shares = graph.call("Div", shares, graph.call("Add", total, graph.number(1e-20)))
    ids = graph.call("Cast", chosen, to=onnx.TensorProto.INT32)
    return ids, graph.call("Mul", shares, graph.number(g.routed_scaling_factor))


def experts(weights: Weights, layer: int, numerics: Numerics, *, fused: bool = False) -> Graph:
    """x (tokens, hidden), expert_ids (tokens, top_k) int32 and weights (tokens, top_k) to y (tokens, hidden).

    Raises:
        Unavailable: *fused* experts, a single `QMoE`, cannot be had of these weights.
    """
    graph, g = Graph(f"experts_{layer}"), weights.geometry
    x = graph.input("x", ("tokens", g.hidden_size))
    ids = graph.input("expert_ids", ("tokens", g.num_experts_per_tok), onnx.TensorProto.INT32)
    shares = graph.input("weights", ("tokens", g.num_experts_per_tok))
    if fused:
        y = qmoe.experts_value(graph, weights, layer, x, ids, shares)
    else:
        y = experts_value(graph, weights, layer, numerics, x, ids, shares)
    graph.output(y, "y", ("tokens", g.hidden_size))
    return graph


def experts_value(graph: Graph, weights: Weights, layer: int, numerics: Numerics, x: str, ids: str, shares: str) -> str:
    """The same in a graph that is being written."""
    g = weights.geometry
    count, top_k = g.n_routed_experts, g.num_experts_per_tok
    flat = graph.call("Reshape", ids, graph.constant([-1]))
    pairs = graph.call("Shape", flat)
    order = graph.call("TopK", flat, pairs, outputs=2, axis=0, largest=0)[1]  # equal ones keep their order
    back = graph.call("TopK", order, pairs, outputs=2, axis=0, largest=0)[1]
    states = graph.call("Gather", x, graph.call("Div", order, graph.constant([top_k])), axis=0)
    own = graph.call("Equal", graph.call("Unsqueeze", flat, graph.constant([1])), graph.constant(list(range(count)), np.int32))
    counts = graph.call("ReduceSum", graph.call("Cast", own, to=onnx.TensorProto.INT64), graph.constant([0]), keepdims=0)
    parts = graph.call("Split", states, counts, outputs=count, axis=0)
    parts = [parts] if count == 1 else parts
    done = []
    for expert, part in enumerate(parts):
        gate, up, down = (expert_name(layer, expert, projection) for projection in PROJECTIONS)
        left, right = (_product(graph, weights, name, part, numerics) for name in (gate, up))
        done.append(_product(graph, weights, down, graph.swiglu(left, right), numerics))
    joined = graph.call("Gather", graph.call("Concat", *done, axis=0), back, axis=0)
    slots = graph.call("Reshape", joined, graph.constant([-1, top_k, g.hidden_size]))
    weighed = graph.call("Mul", slots, graph.call("Unsqueeze", shares, graph.constant([2])))
    y: str = graph.call("ReduceSum", weighed, graph.constant([1]), keepdims=0)
    return y


def _product(graph: Graph, weights: Weights, name: str, x: str, numerics: Numerics) -> str:
    if not weights.checkpoint.experts_are_packed:
        return graph.linear(x, graph.weight(name, weights.float32(f"{name}.weight")))
    codes, scale, block = weights.packed(name, MOST_BLOCK[numerics])
    rows, columns = len(codes), codes.shape[1] * block
    y: str = graph.call(
        "MatMulNBits",
        x,
        graph.weight(f"{name}.codes", codes),
        graph.weight(f"{name}.scales", np.ascontiguousarray(scale.reshape(-1))),
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=4,
        block_size=block,
        accuracy_level=ACCURACY[numerics],
    )
    return y
