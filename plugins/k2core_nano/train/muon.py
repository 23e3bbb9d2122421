"""Muon: momentum whose update is replaced by its nearest (semi-)orthogonal matrix.

Formulas and constants: Moonlight's published training example (Newton-Schulz, 5 steps, scale 0.2 * sqrt(max(rows, cols))).
The orthogonalisation is the expensive part, so under data parallelism each rank does a share of the matrices and the
results are summed. `clip_queries_and_keys` is the other half of MuonClip (Kimi K2 report, algorithm 1).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix's singular value decomposition U S V^T.

    Args:
        matrices: (count, rows, cols) float32.
        steps: Newton-Schulz iterations.

    Returns:
        (count, rows, cols) float32 with singular values near 1 (about 0.7 to 1.2).
    """
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


class Muon:
    """Optimiser for matrices and stacks of matrices (all leading dimensions are stacked)."""

    def __init__(self, parameters: list[Tensor], *, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        self.parameters = parameters
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], learning_rate: float) -> None:
        """Apply one update in place; `gradients` is parallel to the parameters and must be equal on all ranks."""
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter, gradient, buffer in zip(self.parameters, gradients, self.buffers, strict=True):
            buffer.mul_(self.momentum).add_(gradient)
            update = gradient.add(buffer, alpha=self.momentum)
            rows, cols = parameter.shape[-2:]
            by_shape.setdefault((rows, cols), []).append((parameter.view(-1, rows, cols), update.view(-1, rows, cols)))
        parallel = dist.is_initialized()
        stacks = [torch.cat([update for _, update in members]) for members in by_shape.values()]
        total = torch.zeros(sum(stack.numel() for stack in stacks), device=stacks[0].device)
        offset, turn = 0, 0
        results = []
        for stack in stacks:
            view = total[offset : offset + stack.numel()].view_as(stack)
            if parallel:  # contiguous share of each stack; single matrices take turns
                world, rank = dist.get_world_size(), (dist.get_rank() + turn) % dist.get_world_size()
                share = slice(len(stack) * rank // world, len(stack) * (rank + 1) // world)
                turn += len(stack) % world
            else:
                share = slice(0, len(stack))
            if share.stop > share.start:
                view[share] = orthogonalise(stack[share])
            results.append(view)
            offset += stack.numel()
        if parallel:
            dist.all_reduce(total)
        for members, result in zip(by_shape.values(), results, strict=True):
            at = 0
            for parameter, _ in members:
                scale = 0.2 * max(parameter.shape[-2:]) ** 0.5
                parameter.mul_(1 - learning_rate * self.weight_decay)
                parameter.add_(result[at : at + len(parameter)], alpha=-learning_rate * scale)
                at += len(parameter)

    def state_dict(self) -> dict[str, Any]:
        """The momentum buffers, in parameter order."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over buffers written by `state_dict`."""
        for buffer, stored in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(stored)


@torch.no_grad()
def clip_queries_and_keys(query: Tensor, key_value: Tensor, peak: Tensor, limit: float, nope: int) -> int:
    """Shrink the projections of heads whose largest attention logit exceeds the limit, in place.

    Args:
        query: q_b_proj, (heads * (nope + rope), rank).
        key_value: kv_b_proj, (heads * (nope + value), rank); its value rows stay.
        peak: (heads,) largest scaled logit of each head.
        limit: the logit allowed.
        nope: rows of a head that are not rotated.

    Returns:
        How many heads were clipped.
    """
    heads = peak.shape[0]
    factor = (limit / peak.clamp_min(limit)).view(heads, 1, 1)
    per_head = query.view(heads, -1, query.shape[1])
    per_head[:, :nope] *= factor.sqrt()
    per_head[:, nope:] *= factor  # the rotated key is shared by all heads, so the query carries the whole factor
    key_value.view(heads, -1, key_value.shape[1])[:, :nope] *= factor.sqrt()
    return int((peak > limit).sum())
