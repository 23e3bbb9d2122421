"""Multi-head latent attention as it is written: projections, rotary positions, and latents expanded to keys and values.

`attention_fast` has the forms that give the same numbers sooner.

Source: transformers modeling_deepseek_v3.py @00b676f.
"""

import torch
from attrs import frozen

from k2core.interfaces import Numerics
from k2core.model.config import Geometry
from k2core_torch.products import product, rms_norm, rounded
from k2core_torch.tensors import Tensors

Tensor = torch.Tensor
SCORES = 1 << 24  # held at once: longer prompts are computed in blocks of queries


@frozen(eq=False)
class AttentionWeights:
    """One layer's: projections as stored, norms float32, and the expansion per head."""

    query_a: Tensor
    query_norm: Tensor
    query_b: Tensor
    latent_a: Tensor
    latent_norm: Tensor
    to_key: Tensor  # (heads, nope, rank) float32 or bfloat16
    to_value: Tensor  # (heads, value, rank)
    output: Tensor

    @classmethod
    def read(cls, tensors: Tensors, layer: int, *, is_small: bool) -> "AttentionWeights":
        """From the checkpoint; small models keep their projections as float32."""
        g, prefix = tensors.checkpoint.geometry, f"model.layers.{layer}.self_attn"

        def weight(name: str) -> Tensor:
            return (tensors.float32 if is_small else tensors.plain)(f"{prefix}.{name}.weight")

        expand = weight("kv_b_proj").view(g.num_attention_heads, g.qk_nope_head_dim + g.v_head_dim, g.kv_lora_rank)
        return cls(
            query_a=weight("q_a_proj"),
            query_norm=tensors.float32(f"{prefix}.q_a_layernorm.weight"),
            query_b=weight("q_b_proj"),
            latent_a=weight("kv_a_proj_with_mqa"),
            latent_norm=tensors.float32(f"{prefix}.kv_a_layernorm.weight"),
            to_key=expand[:, : g.qk_nope_head_dim],
            to_value=expand[:, g.qk_nope_head_dim :],
            output=weight("o_proj"),
        )


def rotations(frequency: Tensor, multiplier: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the exact angles, rounded to float32 once.

    Args:
        frequency: (rope / 2,) float64, the geometry's.
        multiplier: of both, the geometry's.
        positions: (tokens,) int64 on the same device.

    Returns:
        Both (tokens, rope / 2).
    """
    angle = positions.to(torch.float64)[:, None] * frequency
    return (torch.cos(angle) * multiplier).to(torch.float32), (torch.sin(angle) * multiplier).to(torch.float32)


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair (2i, 2i + 1) of the last axis turned: x is (tokens, …, rope)."""
    shape = (x.shape[0], *[1] * (x.dim() - 2), -1)
    cosine, sine = turn[0].view(shape), turn[1].view(shape)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


def project(
    x: Tensor, weights: AttentionWeights, geometry: Geometry, turn: tuple[Tensor, Tensor], numerics: Numerics
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and what is cached, of all new tokens at once.

    Args:
        x: (tokens, hidden) float32, normalised.
        turn: see `rotations`.

    Returns:
        (tokens, heads, nope), (tokens, heads, rope) rotated, and (tokens, rank + rope) latents with rotated keys.
    """
    g = geometry
    latent = rms_norm(product(x, weights.query_a, numerics), weights.query_norm, g.latent_norm_eps)
    query = product(latent, weights.query_b, numerics).view(len(x), g.num_attention_heads, g.qk_head_dim)
    both = product(x, weights.latent_a, numerics)
    cached = torch.cat(
        (
            rms_norm(both[:, : g.kv_lora_rank], weights.latent_norm, g.latent_norm_eps),
            rotated(both[:, g.kv_lora_rank :], turn),
        ),
        -1,
    )
    return query[..., : g.qk_nope_head_dim], rotated(query[..., g.qk_nope_head_dim :], turn), cached


def attend(query: Tensor, turned: Tensor, cache: Tensor, weights: AttentionWeights, g: Geometry, numerics: Numerics) -> Tensor:
    """Attention of one sequence's new tokens, the last ones of its cache.

    Args:
        query, turned: (tokens, heads, nope) and (tokens, heads, rope).
        cache: (context, rank + rope), the new tokens included.

    Returns:
        (tokens, heads * value) float32, before the output projection.
    """
    tokens, context, heads = len(query), len(cache), g.num_attention_heads
    block = max(1, SCORES // (heads * context))
    query, turned, cache = rounded(query, numerics), rounded(turned, numerics), cache.to(torch.float32)
    pieces = [
        _expanded(query[at : at + block], turned[at : at + block], cache, context - tokens + at, weights, g, numerics)
        for at in range(0, tokens, block)
    ]
    return torch.cat(pieces).flatten(1)


def _expanded(
    query: Tensor, turned: Tensor, cache: Tensor, first: int, weights: AttentionWeights, g: Geometry, numerics: Numerics
) -> Tensor:
    latent, key = cache[:, : g.kv_lora_rank], cache[:, g.kv_lora_rank :]
    keys = torch.einsum("hdr,jr->hjd", weights.to_key.to(torch.float32), latent)
    values = torch.einsum("hdr,jr->hjd", weights.to_value.to(torch.float32), latent)
    scores = torch.einsum("thd,hjd->htj", query, rounded(keys, numerics)) + torch.einsum("thd,jd->htj", turned, key)
    shares = rounded(_softmax(scores * g.softmax_scale, first), numerics)
    return torch.einsum("htj,hjd->thd", shares, rounded(values, numerics))


def _softmax(scores: Tensor, first: int) -> Tensor:
    """Shares of (heads, tokens, context) scores; token t stands at position *first* + t and sees no later one."""
    tokens, context = scores.shape[1:]
    if tokens > 1 or first + 1 < context:
        places = torch.arange(context, device=scores.device)
        later = places > places[first : first + tokens, None]
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, -1)
