"""Causal attention over a packed batch whose documents share prefixes, with a hand-written backward pass.

The batch is one flat row of tokens. A `Block` is a rectangle in it: `rows` documents of `length` tokens, one after another.
Every document attends to the block's prefix (rows computed once, elsewhere in the same flat batch) and causally to itself,
which is exactly attention over the sequence prefix + document. Written out as matmul, softmax, matmul: on CPU at head size
64 this is several times faster than the fused kernel's backward.

With bfloat16 inputs, scores and softmax and the gradients through them are float32, as are the sums over the documents of a
prefix; the other products are bfloat16. For a GPU the rectangles should be few and large (`packing`).
"""

from functools import lru_cache
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from k2core_nano.train.precision import wide


@frozen(kw_only=True)
class Block:
    """`rows` documents of `length` tokens at `start` of the flat batch, after `prefix_length` tokens at `prefix_start`."""

    start: int
    rows: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def end(self) -> int:
        """First flat index after the block."""
        return self.start + self.rows * self.length


@lru_cache(maxsize=512)
def _causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)  # (query, key)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: tuple[Block, ...],
        scale: float,
        peak: Tensor | None,
    ) -> Tensor:
        heads, width = query.shape[1], value.shape[2]
        dtype, full = query.dtype, wide(query.dtype)  # the same but for bfloat16, and then every cast below does nothing
        out = torch.empty_like(value)
        kept: list[Tensor] = []
        for block in blocks:
            rows, length, prefix = block.rows, block.length, block.prefix_length
            here = slice(block.start, block.end)
            q = query[here].to(full).mul(scale).transpose(0, 1).contiguous()  # (heads, rows * length, dim)
            k = key[here].transpose(0, 1).reshape(heads * rows, length, -1)
            v = value[here].transpose(0, 1).reshape(heads * rows, length, width)
            own = torch.baddbmm(_causal_mask(length, full, q.device), q.view(heads * rows, length, -1), k.mT.to(full))
            scores = own.view(heads, rows * length, length)
            if prefix:
                before = slice(block.prefix_start, block.prefix_start + prefix)
                shared = torch.bmm(q, key[before].permute(1, 2, 0).to(full))
                scores = torch.cat([shared, scores], -1)  # (heads, rows * length, prefix + length)
            if peak is not None:
                torch.maximum(peak, scores.amax((1, 2)), out=peak)
            p = scores.softmax(-1)
            share = p.to(dtype)
            o = torch.bmm(share[..., prefix:].view(heads * rows, length, length), v).view(heads, rows * length, width)
            if prefix:
                o = o.baddbmm_(share[..., :prefix], value[before].transpose(0, 1))
            out[here] = o.transpose(0, 1)
            kept += [q, k, v, p]
        ctx.save_for_backward(key, value, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        key, value, *kept = ctx.saved_tensors
        heads, width = value.shape[1], value.shape[2]
        dtype, full = key.dtype, wide(key.dtype)
        d_query, d_key, d_value = (torch.zeros_like(like, dtype=full) for like in (key, key, value))
        # documents first, so that a prefix block adds to what its documents left on the prefix rows
        for index in reversed(range(len(ctx.blocks))):
            block = ctx.blocks[index]
            q, k, v, p = kept[4 * index : 4 * index + 4]
            rows, length, prefix = block.rows, block.length, block.prefix_length
            here = slice(block.start, block.end)
            d_out = grads[0][here].transpose(0, 1).contiguous()  # (heads, rows * length, width)
            d_own = d_out.view(heads * rows, length, width)
            share = p.to(dtype)
            p_own = share[..., prefix:].view(heads * rows, length, length)
            d_value[here] += torch.bmm(p_own.mT, d_own).view(heads, -1, width).transpose(0, 1)
            d_p = torch.bmm(d_own.to(full), v.mT.to(full)).view(heads, rows * length, length)
            if prefix:
                before = slice(block.prefix_start, block.prefix_start + prefix)
                d_value[before] += torch.bmm(share[..., :prefix].mT, d_out).transpose(0, 1)
                d_p = torch.cat([torch.bmm(d_out.to(full), value[before].permute(1, 2, 0).to(full)), d_p], -1)
            d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype).to(dtype)
            q = q.to(dtype)
            d_s_own = d_s[..., prefix:].view(heads * rows, length, length)
            d_q = torch.bmm(d_s_own, k).view(heads, rows * length, -1)
            d_key[here] += (
                torch.bmm(d_s_own.mT, q.view(heads * rows, length, -1)).view(heads, rows * length, -1).transpose(0, 1)
            )
            if prefix:
                d_q = d_q.baddbmm_(d_s[..., :prefix], key[before].transpose(0, 1))
                d_key[before] += torch.bmm(d_s[..., :prefix].mT, q).transpose(0, 1)
            d_query[here] = d_q.mul_(ctx.scale).transpose(0, 1)
        return d_query.to(dtype), d_key.to(dtype), d_value.to(dtype), None, None, None


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float, peak: Tensor | None = None
) -> Tensor:
    """Softmax attention of every token to its prefix and, causally, to its own document.

    Args:
        query: (tokens, heads, dim) float, positions already encoded.
        key: (tokens, heads, dim) in query's dtype.
        value: (tokens, heads, value_dim) in query's dtype.
        blocks: rectangles that tile the flat batch without overlap; a prefix is itself a block of one row.
        scale: factor on the dot products.
        peak: (heads,) float32 when given, raised to the largest scaled logit of each head.

    Returns:
        (tokens, heads, value_dim), differentiable in query, key and value.
    """
    result: Tensor = _BlockAttention.apply(query, key, value, blocks, scale, peak)  # type: ignore[no-untyped-call]
    return result
