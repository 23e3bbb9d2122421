"""A device that is not the CPU, simulated, so that a tensor left on the wrong side is found without a GPU.

Inside `simulated`, PyTorch's name "meta" stands for that device: what is made there or moved there is an `Elsewhere`, which
computes on the CPU but refuses to meet a tensor of the CPU, except in a copy or as a single number (as CUDA does; unlike CUDA
it also refuses indices from the CPU). It says nothing about CUDA's kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
CROSSING = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class Elsewhere(torch.Tensor):
    """A tensor on the simulated device; `here` holds its numbers."""

    here: torch.Tensor  # on the CPU
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "Elsewhere":
        """A tensor of the device that has a CPU tensor's numbers."""
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """The numbers, brought back."""
        return self.here.tolist()


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def simulated() -> Iterator[torch.device]:
    """The device, for as long as the context lasts."""
    with _Mode():
        yield DEVICE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    away = [value for value in tensors if isinstance(value, Elsewhere)]
    strangers = [value for value in tensors if not isinstance(value, Elsewhere) and value.dim()]
    if away and strangers and func not in CROSSING:
        raise RuntimeError(f"{func}: a tensor of the CPU {tuple(strangers[0].shape)} meets the device")
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    stays = isinstance(args[0], Elsewhere) if func is CROSSING[0] else bool(away)
    wrapped = stays if device is None else torch.device(device) == DEVICE
    known = {id(value.here): value for value in away}
    inner = lambda value: value.here if isinstance(value, Elsewhere) else value  # noqa: E731
    result = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if not wrapped:
        return result
    return tree_map(
        lambda value: (
            (known[id(value)] if id(value) in known else Elsewhere(value)) if isinstance(value, torch.Tensor) else value
        ),
        result,
    )
