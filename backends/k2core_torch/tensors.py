"""A checkpoint's tensors for PyTorch: views of the mapped file on the CPU, elsewhere copies whose pages are given back."""

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from k2core.errors import CapacityError
from k2core.model.checkpoint import Checkpoint
from k2core.model.finite import require_finite

Tensor = torch.Tensor
SMALL = 32 << 20  # bytes of a checkpoint that is held in the form that is fastest, which takes up to three times its size


class Tensors:
    """Weights of one checkpoint on one device.

    Attributes:
        checkpoint: where they are from.
        device: where they are.
    """

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.checkpoint, self.device = checkpoint, device

    @property
    def layer_bytes(self) -> int:
        """Of the weights of one layer, about."""
        return self.checkpoint.tensor_bytes // self.checkpoint.geometry.num_hidden_layers

    def plain(self, name: str) -> Tensor:
        """A tensor as it is stored: bfloat16 or float32.

        Raises:
            CheckpointError: there is none, or a value is not finite.
            CapacityError: the device has no memory for it.
        """
        array = self.checkpoint.tensor(name)
        require_finite(array, name)
        return self._placed(name, array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array, array.dtype)

    def float32(self, name: str) -> Tensor:
        """A tensor as float32; where it is a copy, the file's pages of the original are given back."""
        stored = self.plain(name)
        if stored.dtype == torch.float32:
            return stored
        copied = stored.to(torch.float32)
        self.checkpoint.give_back(name)
        return copied

    def words(self, name: str) -> Tensor:
        """Packed codes as int32."""
        return self._placed(name, self.checkpoint.tensor(name, np.int32), np.dtype(np.int32))

    def _placed(self, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says that the array cannot be written to: nobody does
            tensor = torch.from_numpy(array)
        if dtype == ml_dtypes.bfloat16:
            tensor = tensor.view(torch.bfloat16)
        if self.device == "cpu":
            return tensor
        try:
            moved = tensor.to(self.device)
        except torch.OutOfMemoryError as error:
            free = torch.cuda.mem_get_info()[0]
            raise CapacityError(
                f"cannot load {name}: it takes {array.nbytes:,} bytes on {self.device}, where {free:,} are free. "
                "Put the experts on another backend, or limit their memory."
            ) from error
        self.checkpoint.give_back(name)
        return moved
