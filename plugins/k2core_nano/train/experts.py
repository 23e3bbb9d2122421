"""Mixture of experts for training: sort the tokens by expert, one pair of matrix products per expert, undo the sort.

Dispatch and combine are autograd functions of their own because each token has exactly `top_k` copies: gradients then are
gathers along the inverse permutation instead of the slow scattered additions of index_select's own backward on CPU. A GPU takes
the form of `padded` instead, because a loop over experts is many small kernels there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from k2core_nano.train.swiglu import swiglu_backward


class _Dispatch(torch.autograd.Function):
    """x (tokens, hidden) -> (tokens * top_k, hidden) in expert order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return x.index_select(0, order.div(top_k, rounding_mode="floor"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        gathered = grads[0].index_select(0, inverse)
        return gathered.view(-1, ctx.top_k, gathered.shape[1]).sum(1), None, None, None


class _Combine(torch.autograd.Function):
    """y (tokens * top_k, hidden) in expert order -> (tokens, top_k, hidden)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order)
        return y.index_select(0, inverse).view(-1, top_k, y.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        return grads[0].reshape(-1, grads[0].shape[-1]).index_select(0, order), None, None, None


class _ExpertMlp(torch.autograd.Function):
    """Rows grouped by expert through each expert's own SwiGLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, counts: list[int]) -> Tensor:
        inner = down.shape[2]
        both = x.new_empty(x.shape[0], 2 * inner)
        out = torch.empty_like(x)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                here = slice(start, start + count)
                torch.mm(x[here], gate_up[expert].view(2 * inner, -1).T, out=both[here])
                start += count
        activated = F.silu(both[:, :inner]).mul_(both[:, inner:])
        start = 0
        for expert, count in enumerate(counts):
            if count:
                here = slice(start, start + count)
                torch.mm(activated[here], down[expert].T, out=out[here])
                start += count
        ctx.save_for_backward(x, gate_up, down, both, activated)
        ctx.counts = counts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate_up, down, both, activated = ctx.saved_tensors
        d_out = grads[0]
        inner = down.shape[2]
        d_gate_up, d_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        d_activated, d_x = torch.empty_like(activated), torch.empty_like(x)
        spans = [(e, slice(sum(ctx.counts[:e]), sum(ctx.counts[: e + 1]))) for e, count in enumerate(ctx.counts) if count]
        for expert, here in spans:
            torch.mm(d_out[here], down[expert], out=d_activated[here])
            torch.mm(d_out[here].T, activated[here], out=d_down[expert])
        d_both = swiglu_backward(d_activated, both)
        for expert, here in spans:
            torch.mm(d_both[here], gate_up[expert].view(2 * inner, -1), out=d_x[here])
            torch.mm(d_both[here].T, x[here], out=d_gate_up[expert].view(2 * inner, -1))
        return d_x, d_gate_up, d_down, None


def routed_experts(x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of every token's experts.

    Args:
        x: (tokens, hidden) float.
        gate_up: (experts, 2, inner, hidden) float, gate first.
        down: (experts, hidden, inner) float.
        expert_ids: (tokens, top_k) int64, no duplicates in a row.
        weights: (tokens, top_k) float, rounded to x's dtype.

    Returns:
        (tokens, hidden) result and (experts,) int64 number of rows each expert saw.
    """
    top_k = expert_ids.shape[1]
    flat = expert_ids.reshape(-1)
    order = flat.to(torch.uint8).argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    counts = torch.bincount(flat, minlength=gate_up.shape[0])
    rows: Tensor = _Dispatch.apply(x, order, inverse, top_k)  # type: ignore[no-untyped-call]
    rows = _ExpertMlp.apply(rows, gate_up, down, counts.tolist())  # type: ignore[no-untyped-call]
    per_choice: Tensor = _Combine.apply(rows, order, inverse, top_k)  # type: ignore[no-untyped-call]
    return torch.bmm(weights.to(x.dtype).unsqueeze(1), per_choice).squeeze(1), counts
