"""Where the model lies and in which precision it computes.

With bfloat16 the matrices and the embedding are bfloat16 copies of the float32 masters and so are the activations. Norm gains
and router weights stay float32; router scores, norm statistics, rotation, attention scores, softmax and loss are computed in
float32 (`wide`). On the CPU that is tested for its numbers; that it also holds with CUDA's kernels is not.
"""

import torch
from torch import nn


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums and exponentials of `dtype`: float32 for bfloat16, else `dtype` itself (float32 or float64)."""
    return torch.promote_types(dtype, torch.float32)


def stays_float32(name: str) -> bool:
    """Whether a parameter is kept in float32 in any precision: norm gains and router weights."""
    return "norm" in name or name.endswith("gate.weight")


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model's parameters and buffers, in place; a parameter becomes a new one of the same name.

    Args:
        device: of everything afterwards.
        dtype: of the parameters, but for those that stay float32. Buffers keep theirs.
    """
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            kept = parameter.dtype if stays_float32(f"{path}.{name}") else dtype
            setattr(module, name, nn.Parameter(parameter.detach().to(device, kept)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
