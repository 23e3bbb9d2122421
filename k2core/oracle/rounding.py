"""What each numerics rounds before a matrix product, and how far that can move a number.

``none`` keeps float32. ``bfloat16`` keeps 8 significant bits, to nearest even: a relative 2**-8 at most. ``int8`` keeps
signed 8-bit codes and one factor per 32 values of the last axis, the largest magnitude over 127: half a step at most.
"""

from typing import Literal

import ml_dtypes
import numpy as np
from attrs import frozen

from k2core.oracle.arrays import AnyFloat, Float64, exact

Kind = Literal["none", "bfloat16", "int8"]
BFLOAT16_UNIT = 2.0**-8
INT8_BLOCK, INT8_MOST = 32, 127
FLOAT32_SLACK = 2.0**-21  # of factor, quotient and product of int8 codes, which are float32 themselves


@frozen(kw_only=True)
class Rounding:
    """Kinds by place.

    Attributes:
        dense: inputs of products with plain weights.
        experts: inputs of products with the routed experts' weights.
        attention: latents as they are cached, and whatever enters a product with them.
    """

    dense: Kind = "none"
    experts: Kind = "none"
    attention: Kind = "none"


EXACT = Rounding()


def rounded(x: AnyFloat, kind: Kind) -> Float64:
    """*x* as *kind* keeps it, float64."""
    values = exact(x)
    if kind == "bfloat16":
        return exact(values.astype(np.float32).astype(ml_dtypes.bfloat16))
    if kind == "int8":
        blocks = _blocks(values)
        step = np.abs(blocks).max(-1, keepdims=True) / INT8_MOST
        codes = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0))
        whole: Float64 = (codes * step).reshape(*values.shape[:-1], -1)[..., : values.shape[-1]]
        return whole
    return values


def rounding_error(x: AnyFloat, kind: Kind, x_error: AnyFloat | float = 0.0) -> Float64:
    """How far a number that is within *x_error* of *x* can be from *x* once it is rounded: an array like *x*."""
    magnitude = np.abs(exact(x)) + x_error
    error = np.broadcast_to(np.asarray(x_error, np.float64), magnitude.shape)
    if kind == "bfloat16":
        return error + magnitude * BFLOAT16_UNIT
    if kind == "int8":
        largest = np.repeat(_blocks(magnitude).max(-1), INT8_BLOCK, axis=-1)[..., : magnitude.shape[-1]]
        return error + largest * (0.5 / INT8_MOST + FLOAT32_SLACK)
    return error + 0.0


def _blocks(values: Float64) -> Float64:
    """(…, blocks, 32), the last block filled with zeros."""
    padding = -values.shape[-1] % INT8_BLOCK
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)])
    return padded.reshape(*values.shape[:-1], -1, INT8_BLOCK)
