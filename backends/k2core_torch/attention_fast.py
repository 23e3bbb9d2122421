"""Attention over cached latents in the forms that need less, with the numbers of `attention`.

Expanded: latents become keys and values once, then blocks of queries look at no more of them than they may see. Absorbed: the
query is carried into the space of the latents, q · (W_uk c) = (W_ukᵀ q) · c and Σ p W_uv c = W_uv Σ p c, so that nothing is
expanded; one token of each of several sequences goes through it together. Whichever needs fewer operations is taken.

Source: vLLM's MLA layer for the absorbed form.
"""

from collections.abc import Sequence

import torch

from k2core.interfaces import Numerics
from k2core.model.config import Geometry
from k2core_torch.attention import AttentionWeights
from k2core_torch.device_kernels import load_kernel
from k2core_torch.products import rounded

Tensor = torch.Tensor
BLOCK = 128  # queries that look at the same keys, at most
SCORES = 1 << 22  # held at once
EXPANDED = 1 << 24  # keys and values held at once: so many heads are expanded together
PADDED = 1 << 17  # values of the longest of caches that are brought to one length: beyond, the copy costs more than it saves


def attend_fast(
    query: Tensor, turned: Tensor, cache: Tensor, weights: AttentionWeights, g: Geometry, numerics: Numerics
) -> Tensor:
    """As `k2core_torch.attention.attend`."""
    form = _expanded if _expanding_is_less(g, len(query), len(cache)) else _absorbed
    query, turned = rounded(query, numerics).transpose(0, 1), rounded(turned, numerics).transpose(0, 1)
    return form(query, turned, cache.to(torch.float32), weights, g, numerics).transpose(0, 1).flatten(1)


def attend_together(
    query: Tensor, turned: Tensor, caches: Sequence[Tensor], weights: AttentionWeights, g: Geometry, numerics: Numerics
) -> Tensor:
    """Attention of one new token of each of several sequences, absorbed, in ops over all of them.

    Args:
        query, turned: (sequences, heads, nope) and (sequences, heads, rope).
        caches: (context, rank + rope) of each, its new token included.

    Returns:
        As `attend`.
    """
    padded = query.new_empty((len(caches), max(map(len, caches)), caches[0].shape[1]))
    for one, cache in zip(padded, caches, strict=True):
        one[: len(cache)] = cache
        one[len(cache) :] = 0  # a weight of zero times what lay in memory may be NaN
    lengths = torch.tensor([len(cache) for cache in caches], device=query.device)
    beyond = torch.arange(padded.shape[1], device=query.device) >= lengths[:, None, None]
    inside = torch.bmm(rounded(query, numerics).transpose(0, 1), weights.to_key.to(torch.float32)).transpose(0, 1)
    whole = torch.cat((rounded(inside, numerics), rounded(turned, numerics)), -1)
    scores = torch.bmm(whole, padded.transpose(1, 2)) * g.softmax_scale  # (sequences, heads, longest)
    shares = rounded(torch.softmax(scores.masked_fill(beyond, float("-inf")), -1), numerics)
    weighed = rounded(torch.bmm(shares, padded[..., : g.kv_lora_rank]), numerics).transpose(0, 1)
    return torch.bmm(weighed, weights.to_value.to(torch.float32).transpose(1, 2)).transpose(0, 1).flatten(1)


def attend_paged(
    query: Tensor,
    turned: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    weights: AttentionWeights,
    g: Geometry,
    numerics: Numerics,
) -> Tensor:
    """Attention of some tokens, absorbed, by Triton's kernel over pages; every token is a row that sees what stands before it.

    Args:
        query, turned: (tokens, heads, nope) and (tokens, heads, rope).
        pages, table, lengths: see `k2core_kernels.triton.mla_decode`.

    Returns:
        As `attend`.
    """
    inside = torch.bmm(rounded(query, numerics).transpose(0, 1), weights.to_key.to(torch.float32)).transpose(0, 1)
    whole = torch.cat((inside, turned), -1)
    weighed = load_kernel("mla_decode")(whole, pages, table, lengths, rank=g.kv_lora_rank, scale=g.softmax_scale)
    values = weights.to_value.to(torch.float32).transpose(1, 2)
    return torch.bmm(rounded(weighed, numerics).transpose(0, 1), values).transpose(0, 1).flatten(1)


def _expanding_is_less(g: Geometry, tokens: int, context: int) -> bool:
    sizes = g.qk_nope_head_dim + g.v_head_dim
    expanded = context * sizes * g.kv_lora_rank + tokens * context * (sizes + g.qk_rope_head_dim)
    absorbed = tokens * sizes * g.kv_lora_rank + tokens * context * (2 * g.kv_lora_rank + g.qk_rope_head_dim)
    return expanded < absorbed


def _expanded(
    query: Tensor, turned: Tensor, cache: Tensor, weights: AttentionWeights, g: Geometry, numerics: Numerics
) -> Tensor:
    """(heads, tokens, value) of query (heads, tokens, nope) and turned (heads, tokens, rope)."""
    latent, key = cache[:, : g.kv_lora_rank], cache[None, :, g.kv_lora_rank :]
    heads = max(1, EXPANDED // (len(cache) * (g.qk_head_dim + g.v_head_dim)))
    attended = []
    for at in range(0, g.num_attention_heads, heads):
        mine = slice(at, at + heads)
        keys = rounded(torch.matmul(latent, weights.to_key[mine].to(torch.float32).transpose(1, 2)), numerics)
        values = rounded(torch.matmul(latent, weights.to_value[mine].to(torch.float32).transpose(1, 2)), numerics)
        keys = torch.cat((keys, key.expand(len(keys), -1, -1)), -1)  # (heads, context, nope + rope)
        attended.append(_in_blocks(torch.cat((query[mine], turned[mine]), -1), keys, values, g.softmax_scale, numerics))
    return torch.cat(attended)


def _absorbed(
    query: Tensor, turned: Tensor, cache: Tensor, weights: AttentionWeights, g: Geometry, numerics: Numerics
) -> Tensor:
    """As `_expanded`; all heads share the cache as keys, and its first columns as values."""
    inside = torch.bmm(query, weights.to_key.to(torch.float32))  # (heads, tokens, rank)
    whole = torch.cat((rounded(inside, numerics), turned), -1)
    weighed = _in_blocks(whole, cache[None], cache[None, :, : g.kv_lora_rank], g.softmax_scale, numerics)
    return torch.bmm(rounded(weighed, numerics), weights.to_value.to(torch.float32).transpose(1, 2))


def _in_blocks(query: Tensor, keys: Tensor, values: Tensor, scale: float, numerics: Numerics) -> Tensor:
    """Causal attention of the last tokens.

    Args:
        query: (heads, tokens, width).
        keys, values: (heads, context, …), or (1, context, …) that all heads share.
        scale: of scores.
        numerics: says how shares are rounded.

    Returns:
        (heads, tokens, …) like values.
    """
    heads, tokens, _ = query.shape
    first, block = keys.shape[1] - tokens, max(1, min(BLOCK, SCORES // (heads * keys.shape[1])))
    pieces = []
    for at in range(0, tokens, block):
        rows = query[:, at : at + block]
        count = rows.shape[1]
        seen = first + at + count
        scores = _times(rows, keys[:, :seen].transpose(1, 2)).mul_(scale)
        if count > 1:  # of the block's own keys each query sees those up to its place
            later = torch.ones((count, count), dtype=torch.bool, device=query.device).triu_(1)
            scores[..., first + at :].masked_fill_(later, float("-inf"))
        pieces.append(_times(rounded(torch.softmax(scores, -1), numerics), values[:, :seen]))
    return torch.cat(pieces, 1)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Batched product; where all of *a* meet one *b* (1, …), as one plain product."""
    if len(b) == len(a):
        return torch.bmm(a, b)
    return (a.reshape(-1, a.shape[-1]) @ b[0]).view(*a.shape[:2], -1)
