"""The whole forward of a checkpoint in float64: slow, plain, and what a backend's logits are compared with."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from attrs import field, frozen

from k2core.model.checkpoint import Checkpoint
from k2core.model.int4 import PackedMatrix
from k2core.oracle.arrays import AnyFloat, Float64, Int64
from k2core.oracle.embedding import embedding
from k2core.oracle.linear import linear
from k2core.oracle.mla_attention import mla_attention
from k2core.oracle.moe_experts import Expert, moe_experts
from k2core.oracle.moe_route import margins, moe_route
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rope_yarn import rope_yarn
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
    """

    logits: Float64 = field(eq=False)
    hidden: Float64 = field(eq=False)
    expert_ids: tuple[Int64, ...] = field(eq=False)
    router_margin: Float64 = field(eq=False)


def forward(checkpoint: Checkpoint, token_ids: Sequence[int]) -> OracleStep:
    """Run one sequence from its beginning.

    Args:
        checkpoint: an open checkpoint.
        token_ids: at least one id.

    Source: transformers modeling_deepseek_v3.py @00b676f.
    """
    geometry = checkpoint.geometry
    ids = np.asarray(token_ids, np.int64)
    x = embedding(ids, checkpoint.tensor("model.embed_tokens.weight"))
    chosen: list[Int64] = []
    margin = np.full(len(ids), np.inf)
    for layer in range(geometry.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        norm = checkpoint.tensor(f"{prefix}.input_layernorm.weight")
        x = x + attention(checkpoint, layer, rms_norm(x, norm, geometry.rms_norm_eps))
        norm = checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight")
        normed = rms_norm(x, norm, geometry.rms_norm_eps)
        if layer not in geometry.moe_layers:
            x = x + swiglu(normed, *_mlp(checkpoint, f"{prefix}.mlp"))
            continue
        router = checkpoint.tensor(f"{prefix}.mlp.gate.weight")
        bias = checkpoint.tensor(f"{prefix}.mlp.gate.e_score_correction_bias")
        top_k = geometry.num_experts_per_tok
        expert_ids, weights = moe_route(
            normed, router, bias, top_k, normalise=geometry.norm_topk_prob, factor=geometry.routed_scaling_factor
        )
        routed = moe_experts(normed, expert_ids, weights, partial(_expert, checkpoint, layer))
        x = x + routed + swiglu(normed, *_mlp(checkpoint, f"{prefix}.mlp.shared_experts"))
        chosen.append(expert_ids)
        margin = np.minimum(margin, margins(normed, router, bias, top_k))
    hidden = rms_norm(x, checkpoint.tensor("model.norm.weight"), geometry.rms_norm_eps)
    logits = linear(hidden, checkpoint.tensor("lm_head.weight"))
    return OracleStep(logits=logits, hidden=hidden, expert_ids=tuple(chosen), router_margin=margin)


def attention(checkpoint: Checkpoint, layer: int, x: AnyFloat) -> Float64:
    """One layer's attention over a whole sequence: (tokens, hidden) normalised states to (tokens, hidden)."""
    geometry, prefix = checkpoint.geometry, f"model.layers.{layer}.self_attn"
    heads, nope, rank = geometry.num_attention_heads, geometry.qk_nope_head_dim, geometry.kv_lora_rank
    positions = np.arange(len(x))

    def weight(name: str) -> AnyFloat:
        return checkpoint.tensor(f"{prefix}.{name}.weight")

    query_latent = rms_norm(linear(x, weight("q_a_proj")), weight("q_a_layernorm"), geometry.latent_norm_eps)
    query = linear(query_latent, weight("q_b_proj")).reshape(len(x), heads, geometry.qk_head_dim)
    both = linear(x, weight("kv_a_proj_with_mqa"))
    latent = rms_norm(both[:, :rank], weight("kv_a_layernorm"), geometry.latent_norm_eps)
    turn = (positions, geometry.inv_freq, geometry.rope_multiplier)
    attended = mla_attention(
        query[..., :nope],
        rope_yarn(query[..., nope:], *turn),
        latent,
        rope_yarn(both[:, rank:], *turn),
        weight("kv_b_proj").reshape(heads, nope + geometry.v_head_dim, rank),
        positions,
        geometry.softmax_scale,
    )
    return linear(attended.reshape(len(x), -1), weight("o_proj"))


def _mlp(checkpoint: Checkpoint, prefix: str) -> Expert:
    gate, up, down = (checkpoint.tensor(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down"))
    return gate, up, down


def _expert(checkpoint: Checkpoint, layer: int, expert: int) -> Expert:
    gate, up, down = (_plain(checkpoint.expert(layer, expert, name)) for name in ("gate_proj", "up_proj", "down_proj"))
    return gate, up, down


def _plain(matrix: PackedMatrix | AnyFloat) -> AnyFloat:
    return matrix.dequantise() if isinstance(matrix, PackedMatrix) else matrix
