"""INT4 group-32 rounding of the routed experts and bfloat16 rounding of everything else.

Grid -7..7 (code -8 is not used, as in the released Kimi-K2-Thinking weights); one bfloat16 scale, absmax / 7, per 32 columns.
Packing: compressed-tensors `pack-quantized`, nibble i of an int32 word holds column 8 * w + i, stored as value + 8.
"""

import torch
from torch import Tensor

GROUP = 32


def quantise(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Round to the INT4 grid.

    Args:
        weight: (..., cols) float32, cols a multiple of `group`.
        group: columns per scale.

    Returns:
        (..., cols) int8 codes in -7..7 and (..., cols // group) bfloat16 scales.
    """
    grouped = _grouped(weight, group)
    scale = (grouped.abs().amax(-1) / 7).clamp_min(1e-30).bfloat16()
    codes = (grouped / scale.float().unsqueeze(-1)).round().clamp(-7, 7)
    return codes.to(torch.int8).flatten(-2), scale


def dequantise(codes: Tensor, scale: Tensor, group: int = GROUP) -> Tensor:
    """(..., cols) float32, exactly codes * scale."""
    return (_grouped(codes, group).float() * scale.float().unsqueeze(-1)).flatten(-2)


def fake_quantise(weight: Tensor) -> Tensor:
    """The float32 values an INT4 checkpoint of `weight` would hold; idempotent."""
    return dequantise(*quantise(weight))


def fake_bfloat16(weight: Tensor) -> Tensor:
    """The float32 values a bfloat16 checkpoint of `weight` would hold."""
    return weight.bfloat16().float()


def pack(codes: Tensor) -> Tensor:
    """(rows, cols) int8 codes -> (rows, cols // 8) int32 words, lowest nibble first."""
    nibbles = _grouped(codes.long() + 8, 8)
    words = (nibbles << (4 * torch.arange(8, device=codes.device))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: Tensor) -> Tensor:
    """Inverse of `pack`."""
    nibbles = (words.long().unsqueeze(-1) >> (4 * torch.arange(8, device=words.device))) & 15
    return (nibbles - 8).to(torch.int8).flatten(-2)


def _grouped(values: Tensor, size: int) -> Tensor:
    return values.reshape(*values.shape[:-1], -1, size)  # (..., groups, size)
