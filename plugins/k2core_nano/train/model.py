"""A small model of exactly Kimi K2's architecture, for training on flat packed batches.

Parameter names are Hugging Face's, except that a layer's routed experts are stacked (`mlp.experts.gate_up`, `.down`);
`export.py` writes them one by one. Formulas: multi-head latent attention in its plain form, YaRN rotation of interleaved
pairs, sigmoid router with a selection-only correction bias, one ungated shared expert (DeepSeek-V3 modelling code). What is
computed in float32 although the weights are bfloat16: see `precision`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from k2core_nano.train.attention import Block, block_attention
from k2core_nano.train.experts import routed_experts
from k2core_nano.train.geometry import Geometry
from k2core_nano.train.packing import Batch
from k2core_nano.train.padded import expert_counts, padded_experts
from k2core_nano.train.precision import wide
from k2core_nano.train.swiglu import SwiGlu


class _Rotate(torch.autograd.Function):
    """Multiply the last `2 * rotation.shape[-1]` channels, taken as interleaved complex pairs, by unit complex numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return _rotated(x, rotation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        return _rotated(grads[0], rotation.conj_physical()), None


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    result = x.to(wide(x.dtype), copy=True, memory_format=torch.contiguous_format)
    pairs = result[..., -2 * rotation.shape[-1] :].view(*x.shape[:-1], -1, 2)
    torch.view_as_complex(pairs).mul_(rotation)
    return result.to(x.dtype)


class _Norm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension of (tokens, width), in x's dtype; weight has the wide one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        full = x.to(wide(x.dtype))
        inverse: Tensor = torch.linalg.vector_norm(full, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (full * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        unit = x.to(inverse.dtype) * inverse
        d_out = grads[0].to(inverse.dtype)
        product = d_out * unit
        d_weight = product.sum(0)
        mean = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)
        return (d_out * weight).addcmul_(unit, mean, value=-1).mul_(inverse).to(x.dtype), d_weight, None


class RmsNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, width) -> same."""
        result: Tensor = _Norm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return result


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Multi-head latent attention, plain form."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        g = self.geometry = geometry
        self.q_a_proj = _linear(g.hidden_size, g.q_lora_rank)
        self.q_a_layernorm = RmsNorm(g.q_lora_rank, g.rms_norm_eps)
        self.q_b_proj = _linear(g.q_lora_rank, g.num_attention_heads * (g.qk_nope_head_dim + g.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = _linear(g.hidden_size, g.kv_lora_rank + g.qk_rope_head_dim)
        self.kv_a_layernorm = RmsNorm(g.kv_lora_rank, g.rms_norm_eps)
        self.kv_b_proj = _linear(g.kv_lora_rank, g.num_attention_heads * (g.qk_nope_head_dim + g.v_head_dim))
        self.o_proj = _linear(g.num_attention_heads * g.v_head_dim, g.hidden_size)

    def forward(self, x: Tensor, rotation: Tensor, blocks: tuple[Block, ...], peak: Tensor | None) -> Tensor:
        """(tokens, hidden), (tokens, 1, rope / 2) complex64 -> (tokens, hidden)."""
        query, key, value = self.query_key_value(x, rotation)
        mixed = block_attention(query, key, value, blocks, self.geometry.softmax_scale, peak)
        out: Tensor = self.o_proj(mixed.flatten(1))
        return out

    def query_key_value(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, hidden) -> query and key (tokens, heads, nope + rope), value (tokens, heads, v)."""
        g = self.geometry
        heads, nope = g.num_attention_heads, g.qk_nope_head_dim
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, (heads, -1))
        query = _Rotate.apply(query, rotation)  # type: ignore[no-untyped-call]
        latent, key_rope = self.kv_a_proj_with_mqa(x).split([g.kv_lora_rank, g.qk_rope_head_dim], -1)
        key_rope = _Rotate.apply(key_rope.unsqueeze(1), rotation)  # type: ignore[no-untyped-call]
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (heads, -1))
        key = torch.cat([expanded[..., :nope], key_rope.expand(-1, heads, -1)], -1)
        return query, key, expanded[..., nope:]


class DenseMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = _linear(hidden, inner)
        self.up_proj = _linear(hidden, inner)
        self.down_proj = _linear(inner, hidden)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """(tokens, hidden) -> same; `counted` is for experts only."""
        both = F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight]))
        out: Tensor = self.down_proj(SwiGlu.apply(both))  # type: ignore[no-untyped-call]
        return out


class Gate(nn.Module):
    """Router weights and the selection-only correction bias."""

    e_score_correction_bias: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(geometry.n_routed_experts, geometry.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(geometry.n_routed_experts))


class Experts(nn.Module):
    """The routed experts of one layer, stacked."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        experts, hidden, inner = geometry.n_routed_experts, geometry.hidden_size, geometry.moe_intermediate_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2, inner, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, inner))


class MoeMlp(nn.Module):
    """Routed experts plus a shared one. `load` counts, since it was last cleared, the tokens each expert received."""

    load: Tensor  # (experts,) float32

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.top_k = geometry.num_experts_per_tok
        self.scaling = geometry.routed_scaling_factor
        self.gate = Gate(geometry)
        self.experts = Experts(geometry)
        self.shared_experts = DenseMlp(geometry.hidden_size, geometry.moe_intermediate_size * geometry.n_shared_experts)
        self.register_buffer("load", torch.zeros(geometry.n_routed_experts), persistent=False)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """(tokens, hidden) -> same. `counted` (tokens,) bool: the tokens that enter `load`; None counts all."""
        scores = F.linear(x.to(self.gate.weight.dtype), self.gate.weight).sigmoid()
        chosen = (scores.detach() + self.gate.e_score_correction_bias).topk(self.top_k, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scaling
        mixture = routed_experts if x.device.type == "cpu" else padded_experts
        routed, counts = mixture(x, self.experts.gate_up, self.experts.down, chosen, weights)
        if counted is not None:
            counts = expert_counts(chosen, self.load.shape[0], counted)
        self.load += counts
        result: Tensor = routed + self.shared_experts(x)
        return result


class Layer(nn.Module):
    """Pre-norm attention and feed-forward block."""

    def __init__(self, geometry: Geometry, index: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(geometry.hidden_size, geometry.rms_norm_eps)
        self.self_attn = Attention(geometry)
        self.post_attention_layernorm = RmsNorm(geometry.hidden_size, geometry.rms_norm_eps)
        dense = index < geometry.first_k_dense_replace
        self.mlp: DenseMlp | MoeMlp = DenseMlp(geometry.hidden_size, geometry.intermediate_size) if dense else MoeMlp(geometry)


class Backbone(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(geometry.vocab_size, geometry.hidden_size)
        self.layers = nn.ModuleList(Layer(geometry, index) for index in range(geometry.num_hidden_layers))
        self.norm = RmsNorm(geometry.hidden_size, geometry.rms_norm_eps)


class NanoModel(nn.Module):
    """The language model."""

    rotations: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.model = Backbone(geometry)
        self.lm_head = _linear(geometry.hidden_size, geometry.vocab_size)
        self.register_buffer("rotations", geometry.rotations(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        residual = (2 * self.geometry.num_hidden_layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "norm" in name:
                    continue
                std = 1.0 if name.endswith("gate.weight") else 0.7
                parameter.normal_(std=std * parameter.shape[-1] ** -0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down")):
                    parameter.mul_(residual)
            self.model.embed_tokens.weight.normal_(std=0.5)
            # copying is found much sooner when an embedding read back is already its own token
            self.lm_head.weight.copy_(0.1 * self.model.embed_tokens.weight)

    @property
    def moe_layers(self) -> list[MoeMlp]:
        """The feed-forward parts that have routed experts."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoeMlp)]

    @property
    def layers(self) -> list[Layer]:
        """The layers, typed."""
        return [layer for layer in self.model.layers if isinstance(layer, Layer)]

    def forward(self, batch: Batch, peak: Tensor | None = None) -> Tensor:
        """Logits (targets, vocab) of the rows `batch.target_rows`, in the dtype of the head's weights.

        Args:
            batch: on the model's device.
            peak: (layers, heads) float32 when given, raised to the largest attention logits.
        """
        x = self.model.embed_tokens(batch.ids)
        rotation = self.rotations[batch.positions].unsqueeze(1)
        last = len(self.layers) - 1
        counted: Tensor | None = batch.valid
        for index, layer in enumerate(self.layers):
            x = x + layer.self_attn(layer.input_layernorm(x), rotation, batch.blocks, None if peak is None else peak[index])
            if index == last:  # nothing after this mixes tokens, so only rows that predict a target go on
                x, counted = x.index_select(0, batch.target_rows), None
            x = x + layer.mlp(layer.post_attention_layernorm(x), counted)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits


def token_losses(model: NanoModel, batch: Batch, peak: Tensor | None = None) -> Tensor:
    """(targets,) unweighted cross entropy of each target, float32 (float64 of a float64 model)."""
    logits = model(batch, peak)
    return F.cross_entropy(logits.to(wide(logits.dtype)), batch.target_ids, reduction="none")
