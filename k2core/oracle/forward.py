"""The whole forward of a checkpoint in float64: slow, plain, and what a backend's logits are compared with."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from attrs import field, frozen

from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.int4 import PackedMatrix
from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact
from k2core.oracle.embedding import embedding
from k2core.oracle.linear import linear
from k2core.oracle.mla_attention import mla_attention
from k2core.oracle.moe_experts import Expert, moe_experts
from k2core.oracle.moe_route import margins, moe_route, sigmoid, weights_of
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rope_yarn import rope_yarn
from k2core.oracle.rounding import EXACT, Rounding, rounded
from k2core.oracle.swiglu import swiglu


@frozen(kw_only=True)
class OracleStep:
    """What the oracle's forward computed for one sequence.

    Attributes:
        logits: (tokens, vocab).
        hidden: (tokens, hidden) after the last norm.
        expert_ids: per MoE layer (tokens, top_k).
        router_margin: (tokens,) the least margin by which a router chose, over all layers: below a backend's error the choice
            is a coin's, and so are the logits behind it.
        scores: per MoE layer (tokens, experts), what the choice goes by, bias included.
    """

    logits: Float64 = field(eq=False)
    hidden: Float64 = field(eq=False)
    expert_ids: tuple[Int64, ...] = field(eq=False)
    router_margin: Float64 = field(eq=False)
    scores: tuple[Float64, ...] = field(eq=False)


def forward(
    checkpoint: Checkpoint,
    token_ids: Sequence[int],
    rounding: Rounding = EXACT,
    choices: Sequence[Int64] | None = None,
) -> OracleStep:
    """Run one sequence from its beginning.

    Args:
        checkpoint: an open checkpoint.
        token_ids: at least one id.
        rounding: of what enters a product; everything else stays float64.
        choices: experts to take instead of the routers' own, per MoE layer (tokens, top_k), e.g. those that a backend took.

    Source: transformers modeling_deepseek_v3.py @00b676f.
    """
    geometry = checkpoint.geometry
    ids = np.asarray(token_ids, np.int64)
    x = embedding(ids, checkpoint.tensor("model.embed_tokens.weight"))
    chosen: list[Int64] = []
    scores: list[Float64] = []
    margin = np.full(len(ids), np.inf)
    for layer in range(geometry.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        norm = checkpoint.tensor(f"{prefix}.input_layernorm.weight")
        x = x + attention(checkpoint, layer, rms_norm(x, norm, geometry.rms_norm_eps), rounding)
        norm = checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight")
        normed = rms_norm(x, norm, geometry.rms_norm_eps)
        if layer not in geometry.moe_layers:
            x = x + swiglu(normed, *_mlp(checkpoint, f"{prefix}.mlp"), rounding.dense)
            continue
        router = checkpoint.tensor(f"{prefix}.mlp.gate.weight")
        bias = exact(checkpoint.tensor(f"{prefix}.mlp.gate.e_score_correction_bias"))
        top_k = geometry.num_experts_per_tok
        normalise, factor = geometry.norm_topk_prob, geometry.routed_scaling_factor
        sigmoids = sigmoid(linear(normed, router))
        if choices is None:
            expert_ids, weights = moe_route(normed, router, bias, top_k, normalise=normalise, factor=factor)
        else:
            expert_ids = np.asarray(choices[layer - geometry.moe_layers.start], np.int64)
            weights = weights_of(sigmoids, expert_ids, normalise=normalise, factor=factor)
        scores.append(sigmoids + bias)
        routed = moe_experts(normed, expert_ids, weights, partial(expert_of, checkpoint, layer), rounding.experts)
        x = x + routed + swiglu(normed, *_mlp(checkpoint, f"{prefix}.mlp.shared_experts"), rounding.dense)
        chosen.append(expert_ids)
        margin = np.minimum(margin, margins(normed, router, bias, top_k))
    hidden = rms_norm(x, checkpoint.tensor("model.norm.weight"), geometry.rms_norm_eps)
    logits = linear(rounded(hidden, rounding.dense), checkpoint.tensor("lm_head.weight"))
    return OracleStep(logits=logits, hidden=hidden, expert_ids=tuple(chosen), router_margin=margin, scores=tuple(scores))


def attention(checkpoint: Checkpoint, layer: int, x: AnyFloat, rounding: Rounding = EXACT) -> Float64:
    """One layer's attention over a whole sequence: (tokens, hidden) normalised states to (tokens, hidden)."""
    return attention_of(checkpoint.geometry, lambda name: checkpoint.tensor(attention_name(layer, name)), x, rounding)


def attention_name(layer: int, name: str) -> str:
    """Full name of a layer's attention weight, e.g. of ``q_a_proj``."""
    return f"model.layers.{layer}.self_attn.{name}.weight"


def attention_of(geometry: Geometry, weight: Callable[[str], AnyFloat], x: AnyFloat, rounding: Rounding = EXACT) -> Float64:
    """`attention` with the layer's weights by their short names, e.g. ``q_a_proj``."""
    heads, nope, rank = geometry.num_attention_heads, geometry.qk_nope_head_dim, geometry.kv_lora_rank
    positions = np.arange(len(x))

    def product(given: AnyFloat, name: str) -> Float64:
        return linear(rounded(given, rounding.dense), weight(name))

    query_latent = rms_norm(product(x, "q_a_proj"), weight("q_a_layernorm"), geometry.latent_norm_eps)
    query = product(query_latent, "q_b_proj").reshape(len(x), heads, geometry.qk_head_dim)
    both = product(x, "kv_a_proj_with_mqa")
    latent = rms_norm(both[:, :rank], weight("kv_a_layernorm"), geometry.latent_norm_eps)
    turn = (positions, geometry.inv_freq, geometry.rope_multiplier)
    kind = rounding.attention
    attended = mla_attention(
        rounded(query[..., :nope], kind),
        rounded(rope_yarn(query[..., nope:], *turn), kind),
        rounded(latent, kind),
        rounded(rope_yarn(both[:, rank:], *turn), kind),
        weight("kv_b_proj").reshape(heads, nope + geometry.v_head_dim, rank),
        positions,
        geometry.softmax_scale,
    )
    return product(attended.reshape(len(x), -1), "o_proj")


def _mlp(checkpoint: Checkpoint, prefix: str) -> Expert:
    gate, up, down = (checkpoint.tensor(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down"))
    return gate, up, down


def expert_of(checkpoint: Checkpoint, layer: int, expert: int) -> Expert:
    """Gate, up and down of a routed expert as plain matrices, exactly code * scale."""
    gate, up, down = (_plain(checkpoint.expert(layer, expert, name)) for name in ("gate_proj", "up_proj", "down_proj"))
    return gate, up, down


def _plain(matrix: PackedMatrix | AnyFloat) -> AnyFloat:
    return matrix.dequantise() if isinstance(matrix, PackedMatrix) else matrix
