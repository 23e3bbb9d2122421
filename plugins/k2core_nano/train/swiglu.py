"""SwiGLU of gate and up that stand side by side, with a hand-written backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up of (tokens, 2 * inner) -> (tokens, inner), in the dtype of the input."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """The activations."""
        ctx.save_for_backward(both)
        inner = both.shape[1] // 2
        return F.silu(both[:, :inner]).mul_(both[:, inner:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient in gate and up."""
        return swiglu_backward(grads[0], ctx.saved_tensors[0])


def swiglu_backward(d_activated: Tensor, both: Tensor) -> Tensor:
    """Gradient of silu(both[:, :inner]) * both[:, inner:] in `both` (tokens, 2 * inner)."""
    inner = both.shape[1] // 2
    gate, up = both[:, :inner], both[:, inner:]
    d_both = torch.empty_like(both)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    torch.mul(d_activated, silu, out=d_both[:, inner:])
    # silu'(g) = s + silu (1 - s)
    sigmoid.add_(silu.mul_(1 - sigmoid)).mul_(up)
    torch.mul(d_activated, sigmoid, out=d_both[:, :inner])
    return d_both
