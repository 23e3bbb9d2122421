"""Products with weights, with what goes in rounded as the numerics says and sums in float32."""

import torch

from k2core.interfaces import Numerics

Tensor = torch.Tensor
PIECE = 1 << 22  # weights made float32 in one go: the copy stays small beside the file


def rounded(x: Tensor, numerics: Numerics) -> Tensor:
    """*x* (float32) as it enters a product: itself, or the nearest bfloat16 values, as float32."""
    return x if numerics == "exact" else x.to(torch.bfloat16).to(torch.float32)


def product(x: Tensor, weight: Tensor, numerics: Numerics) -> Tensor:
    """x Wᵀ in float32.

    Args:
        x: (…, in) float32.
        weight: (out, in) bfloat16 or float32.
        numerics: says how *x* is rounded.

    Returns:
        (…, out) float32.
    """
    given = rounded(x, numerics)
    if weight.dtype == torch.float32:
        return given @ weight.t()
    if numerics != "exact" and weight.is_cuda and given.dim() == 2:
        return torch.mm(given.to(torch.bfloat16), weight.t(), out_dtype=torch.float32)
    rows = max(1, PIECE // weight.shape[1])
    if weight.shape[0] <= rows:
        return given @ weight.to(torch.float32).t()
    return torch.cat([given @ piece.to(torch.float32).t() for piece in torch.split(weight, rows)], dim=-1)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """gain * x / sqrt(mean(x²) + eps) over the last axis, float32."""
    return gain * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))
