"""Routed experts as two batched matrix products over (experts, capacity, hidden), for a GPU.

Every expert gets as many rows as the fullest one has tokens, so few kernels do what the loop of `experts` does with several per
expert; unused rows are zero. The capacity is read from the device, one wait per layer. Same numbers as the loop within
rounding (tested on the CPU; never run on CUDA): slots are unique, so no sum depends on the order in which threads finish.
"""

from typing import Any

import torch
from torch import Tensor

from k2core_nano.train.swiglu import SwiGlu


class _Scatter(torch.autograd.Function):
    """x (tokens, hidden) -> (rows, hidden) with `top_k` copies of every token at its slots and zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, rows: int, top_k: int) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.top_k = top_k
        copies = x.unsqueeze(1).expand(-1, top_k, -1).reshape(-1, x.shape[1])  # (tokens * top_k, hidden)
        return x.new_zeros(rows, x.shape[1]).index_copy_(0, slots, copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slots,) = ctx.saved_tensors
        gathered = grads[0].index_select(0, slots)
        return gathered.view(-1, ctx.top_k, gathered.shape[1]).sum(1), None, None, None


class _Gather(torch.autograd.Function):
    """y (rows, hidden) -> (tokens * top_k, hidden), the rows at the slots."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.rows = y.shape[0]
        return y.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.rows, grads[0].shape[1]).index_copy_(0, slots, grads[0]), None


def expert_counts(expert_ids: Tensor, experts: int, counted: Tensor | None = None) -> Tensor:
    """How many tokens chose each expert; the device is not waited for, as bincount would.

    Args:
        expert_ids: (tokens, top_k) int64.
        experts: how many there are.
        counted: (tokens,) bool, the tokens that count; None for all.

    Returns:
        (experts,) int64.
    """
    chosen = expert_ids.unsqueeze(-1) == torch.arange(experts, device=expert_ids.device)  # (tokens, top_k, experts)
    if counted is not None:
        chosen &= counted.view(-1, 1, 1)
    return chosen.sum((0, 1))


def padded_experts(x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of every token's experts; what `experts.routed_experts` gives, by other products.

    Args:
        x: (tokens, hidden) float.
        gate_up: (experts, 2, inner, hidden) in x's dtype, gate first; at most 256 experts.
        down: (experts, hidden, inner) in x's dtype.
        expert_ids: (tokens, top_k) int64, no duplicates in a row.
        weights: (tokens, top_k) in x's dtype or float32, in which the sum is then taken.

    Returns:
        (tokens, hidden) result in x's dtype and (experts,) int64 number of rows each expert saw.
    """
    experts, hidden, inner = down.shape
    tokens, top_k = expert_ids.shape
    counts = expert_counts(expert_ids, experts)
    capacity = int(counts.max())
    slots = _slots(expert_ids.reshape(-1), counts, capacity)
    rows: Tensor = _Scatter.apply(x, slots, experts * capacity, top_k)  # type: ignore[no-untyped-call]
    both = torch.bmm(rows.view(experts, capacity, hidden), gate_up.flatten(1, 2).mT)  # (experts, capacity, 2 * inner)
    activated: Tensor = SwiGlu.apply(both.flatten(0, 1))  # type: ignore[no-untyped-call]
    out = torch.bmm(activated.view(experts, capacity, inner), down.mT).flatten(0, 1)  # (experts * capacity, hidden)
    per_choice: Tensor = _Gather.apply(out, slots)  # type: ignore[no-untyped-call]
    mixed = (weights.unsqueeze(-1) * per_choice.view(tokens, top_k, hidden)).sum(1)
    return mixed.to(x.dtype), counts


def _slots(flat: Tensor, counts: Tensor, capacity: int) -> Tensor:
    """(choices,) expert of each choice -> (choices,) its row: expert * capacity + its place among the expert's choices."""
    order = flat.to(torch.uint8).argsort(stable=True)
    sorted_ids = flat[order]
    first = counts.cumsum(0) - counts  # (experts,), where each expert's run begins in the sorted order
    slots = torch.empty_like(order)
    slots[order] = sorted_ids * capacity + torch.arange(len(order), device=flat.device) - first[sorted_ids]
    return slots
