"""Array types of the oracle."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
AnyFloat = NDArray[Any]


def exact(values: AnyFloat) -> Float64:
    """Any float array (bfloat16 included) as float64, unrounded."""
    return np.asarray(values).astype(np.float64)
