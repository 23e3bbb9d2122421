"""Weights that hold no number: a damaged file is refused by the tensor's name, not found out by garbage in an answer."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from k2core.errors import CheckpointError

PIECE = 1 << 20  # values looked at in one go, so that no copy of a large tensor is made


def require_finite(tensor: NDArray[Any], name: str) -> None:
    """See that every value of *tensor* is finite.

    Args:
        tensor: bfloat16 or any NumPy float, C-contiguous as checkpoints' tensors are.
        name: of the tensor.

    Raises:
        CheckpointError: one is NaN or infinite.
    """
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        if piece.dtype == ml_dtypes.bfloat16:
            wrong = ((piece.view(np.uint16) & 0x7F80) == 0x7F80).any()  # all exponent bits set
        else:
            wrong = not np.isfinite(piece).all()
        if wrong:
            raise CheckpointError(
                f"cannot load {name}: it holds NaN or infinity. The file is damaged; fetch or export it again."
            )
