"""Multi-head latent attention in plain form: latents are expanded to keys and values, then ordinary causal attention.

A backend that never expands them (the absorbed form, which caches only latents) must give the same numbers:
``q · (W_uk c) = (W_ukᵀ q) · c`` and ``Σ p W_uv c = W_uv Σ p c``. `absorbed` is that form, for the tests of the identity.
"""

import numpy as np

from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact


def softmax(scores: Float64) -> Float64:
    """e**s normalised over the last axis; minus infinity weighs nothing."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    total: Float64 = shifted / shifted.sum(-1, keepdims=True)
    return total


def mla_attention(
    query: AnyFloat,
    query_rope: AnyFloat,
    latent: AnyFloat,
    key_rope: AnyFloat,
    expand: AnyFloat,
    positions: Int64,
    scale: float,
) -> Float64:
    """Attend from each token to all cached positions up to its own.

    Args:
        query: (tokens, heads, nope), the part without position.
        query_rope: (tokens, heads, rope), rotated.
        latent: (context, rank), normalised; row j is position j.
        key_rope: (context, rope), rotated, one for all heads.
        expand: (heads, nope + value, rank): kv_b_proj by head, keys first.
        positions: (tokens,) position of each query.
        scale: factor of scores (`Geometry.softmax_scale`).

    Returns:
        (tokens, heads, value).

    Source: transformers modeling_deepseek_v3.py @00b676f, ``DeepseekV3Attention``.
    """
    nope = query.shape[-1]
    expanded = np.einsum("hdr,jr->hjd", exact(expand), exact(latent))  # (heads, context, nope + value)
    keys, values = expanded[..., :nope], expanded[..., nope:]
    scores = np.einsum("thd,hjd->htj", exact(query), keys) + np.einsum("thd,jd->htj", exact(query_rope), exact(key_rope))
    shares = softmax(_causal(scores * scale, positions))
    attended: Float64 = np.einsum("htj,hjd->thd", shares, values)
    return attended


def absorbed(
    query: AnyFloat,
    query_rope: AnyFloat,
    latent: AnyFloat,
    key_rope: AnyFloat,
    expand: AnyFloat,
    positions: Int64,
    scale: float,
) -> Float64:
    """The same numbers without expanding a key or a value; arguments as of `mla_attention`.

    Source: vLLM's MLA layer, the decode form.
    """
    nope = query.shape[-1]
    weight = exact(expand)
    in_latent_space = np.einsum("thd,hdr->thr", exact(query), weight[:, :nope])
    scores = np.einsum("thr,jr->htj", in_latent_space, exact(latent))
    scores += np.einsum("thd,jd->htj", exact(query_rope), exact(key_rope))
    shares = softmax(_causal(scores * scale, positions))
    weighted = np.einsum("htj,jr->thr", shares, exact(latent))
    attended: Float64 = np.einsum("thr,hdr->thd", weighted, weight[:, nope:])
    return attended


def _causal(scores: Float64, positions: Int64) -> Float64:
    """(heads, tokens, context) with minus infinity where a key is later than its query."""
    later = np.arange(scores.shape[-1]) > positions[:, None]
    masked: Float64 = np.where(later, -np.inf, scores)
    return masked
