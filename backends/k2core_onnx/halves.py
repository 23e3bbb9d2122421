"""The halves of a layer as graphs, and what stands behind all layers.

Attention is in absorbed form over latents and rotated keys, which are given as two arrays without being joined or copied.
Heads come first: (heads, tokens, …) as rows is what one product with all latents takes. The norm before a layer's feed-forward
belongs to its attention half, so that the other half begins with what the seam of the experts is given.
"""

import numpy as np
import onnx
from attrs import frozen

from k2core_onnx.graph import Graph, Weights


@frozen(kw_only=True)
class Turns:
    """Values that attention of every layer needs of the new tokens' positions.

    Attributes:
        cosine, sine: (tokens, rope / 2).
        mask: (tokens, tokens), minus infinity where a token comes later, else 0.
    """

    cosine: str
    sine: str
    mask: str


@frozen(kw_only=True)
class Attended:
    """Values that attention gives.

    Attributes:
        y: (tokens, hidden), the residual added.
        normed: (tokens, hidden), y behind the norm of the layer's other half.
        latents: (tokens, rank), to be cached.
        keys: (tokens, rope), to be cached.
    """

    y: str
    normed: str
    latents: str
    keys: str


def attention(weights: Weights, layer: int, *, joins: bool = False) -> Graph:
    """One layer's attention of one sequence's new tokens.

    Inputs: x (tokens, hidden); cosine, sine and mask as of `Turns`; latents (past, rank); keys (past, rope).
    Outputs: y, normed, new_latents and new_keys as of `Attended`; the latter two behind those of the past if it *joins* them.
    """
    graph, g = Graph(f"attention_{layer}"), weights.geometry
    x, half = graph.input("x", ("tokens", g.hidden_size)), g.qk_rope_head_dim // 2
    turns = Turns(
        cosine=graph.input("cosine", ("tokens", half)),
        sine=graph.input("sine", ("tokens", half)),
        mask=graph.input("mask", ("tokens", "tokens")),
    )
    latents = graph.input("latents", ("past", g.kv_lora_rank))
    keys = graph.input("keys", ("past", g.qk_rope_head_dim))
    attended = attention_values(graph, weights, layer, x, turns, latents, keys)
    graph.output(attended.y, "y", ("tokens", g.hidden_size))
    graph.output(attended.normed, "normed", ("tokens", g.hidden_size))
    for name, past, new, width in (
        ("new_latents", latents, attended.latents, g.kv_lora_rank),
        ("new_keys", keys, attended.keys, g.qk_rope_head_dim),
    ):
        graph.output(graph.call("Concat", past, new, axis=0) if joins else new, name, ("after" if joins else "tokens", width))
    return graph


def attention_values(graph: Graph, weights: Weights, layer: int, x: str, turns: Turns, latents: str, keys: str) -> Attended:
    """The same in a graph that is being written."""
    g, prefix = weights.geometry, f"model.layers.{layer}"
    heads, rope, rank, value = g.num_attention_heads, g.qk_rope_head_dim, g.kv_lora_rank, g.v_head_dim

    def tensor(name: str) -> str:
        return graph.weight(f"{prefix}.{name}", weights.float32(f"{prefix}.{name}.weight"))

    normed = graph.rms_norm(x, tensor("input_layernorm"), g.rms_norm_eps)
    low = graph.linear(normed, tensor("self_attn.q_a_proj"))
    low = graph.rms_norm(low, tensor("self_attn.q_a_layernorm"), g.latent_norm_eps)
    query = graph.linear(low, tensor("self_attn.q_b_proj"))
    query = graph.call("Reshape", query, graph.constant([-1, heads, g.qk_head_dim]))
    query = graph.call("Transpose", query, perm=[1, 0, 2])  # (heads, tokens, nope + rope)
    plain, turning = graph.call("Split", query, graph.constant([g.qk_nope_head_dim, rope]), outputs=2, axis=-1)
    both = graph.linear(normed, tensor("self_attn.kv_a_proj_with_mqa"))
    latent, key = graph.call("Split", both, graph.constant([rank, rope]), outputs=2, axis=-1)
    latent = graph.rms_norm(latent, tensor("self_attn.kv_a_layernorm"), g.latent_norm_eps)
    turned, key = (_turned(graph, one, count, rope, turns) for one, count in ((turning, heads), (key, 1)))

    to_key, to_value = _expanding(graph, weights, layer)
    absorbed = graph.call("Reshape", graph.call("MatMul", plain, to_key), graph.constant([-1, rank]))

    def scores(latents: str, keys: str) -> str:
        part = graph.call("Gemm", absorbed, latents, transB=1, alpha=g.softmax_scale)
        both: str = graph.call("Gemm", turned, keys, part, transB=1, alpha=g.softmax_scale)
        return both

    tokens, past = graph.call("Shape", x, start=0, end=1), graph.call("Shape", latents, start=0, end=1)
    by_head = graph.call("Concat", graph.constant([heads]), tokens, graph.constant([-1]), axis=0)
    fresh = graph.call("Add", graph.call("Reshape", scores(latent, key), by_head), turns.mask)
    fresh = graph.call("Reshape", fresh, graph.call("Concat", graph.constant([-1]), tokens, axis=0))
    shares = graph.call("Softmax", graph.call("Concat", scores(latents, keys), fresh, axis=1), axis=1)
    old, new = graph.call("Split", shares, graph.call("Concat", past, tokens, axis=0), outputs=2, axis=1)
    weighed = graph.call("Gemm", new, latent, graph.call("MatMul", old, latents))  # (heads * tokens, rank)
    attended = graph.call("MatMul", graph.call("Reshape", weighed, by_head), to_value)  # (heads, tokens, value)
    attended = graph.call("Transpose", attended, perm=[1, 0, 2])
    attended = graph.call("Reshape", attended, graph.constant([-1, heads * value]))
    y = graph.call("Add", x, graph.linear(attended, tensor("self_attn.o_proj")))
    after = graph.rms_norm(y, tensor("post_attention_layernorm"), g.rms_norm_eps)
    return Attended(y=y, normed=after, latents=latent, keys=key)


def _expanding(graph: Graph, weights: Weights, layer: int) -> tuple[str, str]:
    """kv_b_proj in two: (heads, nope, rank) for queries, (heads, rank, value) for what was attended to."""
    g, prefix = weights.geometry, f"model.layers.{layer}.self_attn.kv_b_proj"
    nope, value = g.qk_nope_head_dim, g.v_head_dim
    expand = weights.float32(f"{prefix}.weight").reshape(g.num_attention_heads, nope + value, g.kv_lora_rank)
    to_key = graph.weight(f"{prefix}.to_key", np.ascontiguousarray(expand[:, :nope]))
    to_value = graph.weight(f"{prefix}.to_value", np.ascontiguousarray(expand[:, nope:].transpose(0, 2, 1)))
    return to_key, to_value


def _turned(graph: Graph, x: str, heads: int, rope: int, turns: Turns) -> str:
    """(heads, tokens, rope) turned, as (heads * tokens, rope)."""
    four = graph.call("Reshape", x, graph.constant([1, heads, -1, rope]))
    turned: str = graph.call("Reshape", graph.rotated(four, turns.cosine, turns.sine), graph.constant([-1, rope]))
    return turned


def dense(weights: Weights, layer: int) -> Graph:
    """A dense layer's feed-forward: x (tokens, hidden), normalised, to y."""
    graph, shape = Graph(f"dense_{layer}"), ("tokens", weights.geometry.hidden_size)
    graph.output(mlp(graph, weights, f"model.layers.{layer}.mlp", graph.input("x", shape)), "y", shape)
    return graph


def mlp(graph: Graph, weights: Weights, prefix: str, x: str) -> str:
    """down(silu(gate x) * up x)."""
    gate, up, down = (
        graph.weight(f"{prefix}.{name}", weights.float32(f"{prefix}.{name}_proj.weight")) for name in ("gate", "up", "down")
    )
    return graph.linear(graph.swiglu(graph.linear(x, gate), graph.linear(x, up)), down)


def head(weights: Weights) -> Graph:
    """Last norm and output head: x (tokens, hidden) and rows (rows,) int64 to hidden, like x, and logits (rows, vocab)."""
    graph, g = Graph("head"), weights.geometry
    x, rows = graph.input("x", ("tokens", g.hidden_size)), graph.input("rows", ("rows",), onnx.TensorProto.INT64)
    normed = last_norm(graph, weights, x)
    graph.output(normed, "hidden", ("tokens", g.hidden_size))
    graph.output(logits(graph, weights, graph.call("Gather", normed, rows, axis=0)), "logits", ("rows", g.vocab_size))
    return graph


def last_norm(graph: Graph, weights: Weights, x: str) -> str:
    """The norm behind all layers."""
    return graph.rms_norm(x, graph.weight("final_norm", weights.float32("model.norm.weight")), weights.geometry.rms_norm_eps)


def logits(graph: Graph, weights: Weights, normed: str) -> str:
    """The output head."""
    return graph.linear(normed, graph.weight("lm_head", weights.float32("lm_head.weight")))
