"""INT4 packing: the worked example, the inverse, exactness and the error bound."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from k2core.errors import ShapeError
from k2core.model.int4 import PackedMatrix, dequantise, pack, quantise, unpack

codes = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda size: arrays(np.int8, (size[0], size[1] * 8), elements=st.integers(-8, 7))
)
weights = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda size: arrays(np.float32, (size[0], size[1] * 32), elements=st.floats(-100, 100, width=32))
)


def test_worked_example() -> None:
    """The example of the module's docstring, bit for bit."""
    words = pack(np.array([[-7, 0, 1, 7, -1, 2, -2, 3]], np.int8))

    assert words.dtype == np.int32 and words.tolist() == [[-1230505599]]
    assert int(words[0, 0]) & 0xFFFFFFFF == 0xB6A7F981


def test_bytes_are_low_nibble_first() -> None:
    """Seen as bytes, the even column is the low nibble."""
    words = pack(np.array([[-8, 7, 0, 0, 0, 0, 0, 0]], np.int8))

    assert words.view(np.uint8)[0, 0] == 0xF0


@given(codes)
def test_unpack_inverts_pack(values: np.ndarray) -> None:
    """Every code from -8 to 7 survives, -8 too although the training grid has none."""
    assert unpack(pack(values)).tolist() == values.tolist()


@given(codes)
def test_unpack_is_shift_and_mask(values: np.ndarray) -> None:
    """The stated bit layout, computed the slow way."""
    words = pack(values)
    slow = [[((int(word) >> (4 * i)) & 15) - 8 for word in row for i in range(8)] for row in words]

    assert unpack(words).tolist() == slow


@given(weights)
def test_quantise(weight: np.ndarray) -> None:
    """Codes stay on -7 … 7, and no element is off by more than its scale allows."""
    packed, scale = quantise(weight)
    values = dequantise(packed, scale)

    assert scale.dtype == ml_dtypes.bfloat16 and scale.shape == (weight.shape[0], weight.shape[1] // 32)
    assert unpack(packed).min() >= -7
    wide = np.repeat(scale.astype(np.float64), 32, axis=1)
    allowed = np.maximum(0.5 * wide, np.abs(weight) * 2.0**-8) * (1 + 1e-6)
    assert (np.abs(values - weight) <= allowed).all()


@given(weights)
def test_quantise_is_idempotent(weight: np.ndarray) -> None:
    """What came off the grid goes back onto the same values, unless rounding left no element at the grid's end."""
    packed, scale = quantise(weight)
    values = dequantise(packed, scale)
    again = dequantise(*quantise(values))
    full = (np.abs(unpack(packed)).reshape(*scale.shape, 32).max(-1) == 7).repeat(32, axis=1)

    assert (again == values)[full].all()


def test_dequantise_is_exact() -> None:
    """A code times a bfloat16 scale has no rounding in float32."""
    random = np.random.default_rng(0)
    values = random.integers(-8, 8, (4, 64)).astype(np.int8)
    scale = random.standard_normal((4, 2)).astype(ml_dtypes.bfloat16)
    matrix = PackedMatrix(packed=pack(values), scale=scale, shape=(4, 64))
    exact = values.astype(np.float64) * np.repeat(scale.astype(np.float64), 32, axis=1)

    assert matrix.group == 32
    assert (matrix.dequantise().astype(np.float64) == exact).all()


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2, 0)])
def test_shapes_that_disagree(shape: tuple[int, int]) -> None:
    """Scales that do not fit the words are refused with both shapes."""
    with pytest.raises(ShapeError, match=r"\(2, 4\)"):
        dequantise(np.zeros((2, 4), np.int32), np.zeros(shape, np.float32))


def test_refused_inputs() -> None:
    """Columns that do not fill words, codes beyond four bits and groups that do not divide are refused."""
    with pytest.raises(ShapeError, match="7 columns"):
        pack(np.zeros((1, 7), np.int8))
    with pytest.raises(ShapeError, match="-9"):
        pack(np.full((1, 8), -9, np.int8))
    with pytest.raises(ShapeError, match="groups of 32"):
        quantise(np.zeros((1, 48), np.float32))
