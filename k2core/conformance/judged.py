"""What a backend gave beside what the oracle gives, element by element with what is allowed."""

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.errors import ShapeError
from k2core.oracle.arrays import AnyFloat, Float64


@frozen(kw_only=True)
class Judged:
    """One output of one case.

    Attributes:
        output: its name in the contract.
        got, expected, allowed: arrays of real numbers of one shape; |got - expected| must not exceed allowed.
    """

    output: str
    got: AnyFloat = field(eq=False, repr=False)
    expected: Float64 = field(eq=False, repr=False)
    allowed: Float64 = field(eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        check_real(self.output, self.got)
        if not np.shape(self.got) == np.shape(self.expected) == np.shape(self.allowed):
            wanted = f"{np.shape(self.expected)} ± {np.shape(self.allowed)}"
            raise ShapeError(f"{self.output}: got an array {np.shape(self.got)}, expected {wanted}")

    @property
    def excess(self) -> NDArray[np.float64]:
        """|got - expected| over allowed; infinite for NaN and where nothing but equality is allowed and missed."""
        difference = np.abs(np.asarray(self.got, np.float64) - self.expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(difference == 0, 0.0, difference / self.allowed)
        return np.where(np.isnan(ratio), np.inf, ratio)

    @property
    def worst(self) -> float:
        """The greatest excess; 0 where there is nothing."""
        return float(self.excess.max(initial=0.0))

    @property
    def place(self) -> tuple[int, ...]:
        """Index of the greatest excess."""
        return tuple(int(index) for index in np.unravel_index(int(self.excess.argmax()), self.excess.shape))


def check_real(output: str, got: AnyFloat) -> None:
    """See to it that an output holds real numbers.

    Raises:
        ShapeError: they are whole numbers, or none.
    """
    dtype = np.asarray(got).dtype
    if dtype.kind in "biu":
        raise ShapeError(f"{output}: got an array of {dtype}, expected real numbers")
