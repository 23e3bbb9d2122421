"""INT4 weights as compressed-tensors packs them (``pack-quantized``, symmetric, one scale per group of columns).

A code q is stored as the nibble q + 8. Eight nibbles make an int32 word, lowest nibble first, along the input axis::

    codes   -7  0  1  7 -1  2 -2  3          columns 0 … 7 of one row
    nibbles  1  8  9 15  7 10  6 11
    word    0xB6A7F981                       -1230505599 as int32

Weights are exactly ``q * scale``. The training grid of Kimi K2 uses -7 … 7; a reader must accept -8.

Source: neuralmagic/compressed-tensors, compressors/quantized_compressors/pack_quantized.py @52792be.
"""

from typing import Any

import ml_dtypes
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.errors import ShapeError

CODES_PER_WORD = 8
SMALLEST_SCALE = 1e-30  # of a group that is all zeros, so that 0 / scale stays 0


@frozen(kw_only=True)
class PackedMatrix:
    """One quantised matrix, as views into its checkpoint.

    Attributes:
        packed: (out, in // 8) int32 words of eight codes.
        scale: (out, in // group) bfloat16.
        shape: (out, in).
    """

    packed: NDArray[np.int32] = field(eq=False)
    scale: NDArray[Any] = field(eq=False)
    shape: tuple[int, int]

    @property
    def group(self) -> int:
        """Columns per scale."""
        return self.shape[1] // int(self.scale.shape[1])

    def dequantise(self) -> NDArray[np.float32]:
        """(out, in) float32, exactly code * scale."""
        return dequantise(self.packed, self.scale)


def pack(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """Put eight codes into a word.

    Args:
        codes: (rows, cols) int8 in -8 … 7; cols a multiple of 8.

    Returns:
        (rows, cols // 8) int32.

    Raises:
        ShapeError: cols is no multiple of 8, or a code is outside -8 … 7.
    """
    rows, cols = codes.shape
    if cols % CODES_PER_WORD:
        raise ShapeError(f"pack: {cols} columns are no multiple of {CODES_PER_WORD}")
    if codes.size and (codes.min() < -8 or codes.max() > 7):
        raise ShapeError(f"pack: codes reach from {codes.min()} to {codes.max()}, expected -8 to 7")
    nibbles = (codes.astype(np.int16) + 8).astype(np.uint8).reshape(rows, cols // 2, 2)
    pairs = nibbles[..., 0] | (nibbles[..., 1] << 4)  # (rows, cols / 2) bytes: even column low, odd column high
    return np.ascontiguousarray(pairs).view("<i4").astype(np.int32, copy=False)


def unpack(packed: NDArray[np.int32]) -> NDArray[np.int8]:
    """(rows, words) int32 to (rows, words * 8) int8 codes in -8 … 7; the inverse of `pack`."""
    rows, words = packed.shape
    pairs = np.ascontiguousarray(packed.astype("<i4", copy=False)).view(np.uint8)  # (rows, words * 4)
    codes = np.empty((rows, words * CODES_PER_WORD), np.int8)
    codes[:, 0::2] = pairs & 15
    codes[:, 1::2] = pairs >> 4
    codes -= 8
    return codes


def dequantise(packed: NDArray[np.int32], scale: NDArray[Any]) -> NDArray[np.float32]:
    """Unpack INT4 weights to real values.

    Args:
        packed: (rows, cols // 8) int32.
        scale: (rows, cols // group) bfloat16 or float32; the group follows from the two shapes.

    Returns:
        (rows, cols) float32, exactly ``code * scale`` (a bfloat16 times four bits fits float32).

    Raises:
        ShapeError: the two disagree on rows, or the scales do not divide the columns.
    """
    rows, cols = packed.shape[0], packed.shape[1] * CODES_PER_WORD
    if scale.ndim != 2 or scale.shape[0] != rows or not scale.shape[1] or cols % scale.shape[1]:
        raise ShapeError(f"dequantise: packed is {packed.shape} ({rows} rows, {cols} columns) but scale is {scale.shape}")
    grouped = unpack(packed).reshape(rows, scale.shape[1], -1).astype(np.float32)
    grouped *= scale.astype(np.float32)[..., None]
    return grouped.reshape(rows, cols)


def quantise(weight: NDArray[Any], group: int = 32) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Round to the grid -7 … 7 with one bfloat16 scale per group: the largest magnitude over 7.

    Args:
        weight: (rows, cols) float; cols a multiple of *group*, *group* a multiple of 8.
        group: columns per scale.

    Returns:
        (rows, cols // 8) int32 words and (rows, cols // group) bfloat16 scales. An element is off by at most half a scale,
        or by the scale's own rounding (2^-8) of the largest element where the scale was rounded down.

    Raises:
        ShapeError: *group* does not divide cols, or is no multiple of 8.
    """
    rows, cols = weight.shape
    if group < 1 or group % CODES_PER_WORD or cols % group:
        raise ShapeError(f"quantise: groups of {group} do not fit {cols} columns of words of {CODES_PER_WORD}")
    grouped = weight.astype(np.float32).reshape(rows, cols // group, group)
    scale = np.maximum(np.abs(grouped).max(-1) / np.float32(7), np.float32(SMALLEST_SCALE)).astype(ml_dtypes.bfloat16)
    codes = np.rint(grouped / scale.astype(np.float32)[..., None]).clip(-7, 7).astype(np.int8)
    return pack(codes.reshape(rows, cols)), scale
