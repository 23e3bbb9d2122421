"""Intervals of shares, and of the difference between two who were asked the same."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from k2core.testing.shares import Paired, Share


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_a_difference_lies_in_its_interval_and_turns_with_its_sides(first: int, second: int, same: int) -> None:
    """The interval holds the difference, lies within a whole, and changes its sign when the two change places."""
    by, low, high = Paired(first, second, first + second + same).interval()
    assert -1 <= low <= high <= 1
    assert low - 1e-9 <= by <= high + 1e-9 or first + second + same < 5
    other = Paired(second, first, first + second + same).interval()
    assert math.isclose(other[0], -by) and math.isclose(other[1], -high) and math.isclose(other[2], -low)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 2,000 experiments with 200 pairs about 95 in a hundred cover the true difference."""
    rng, covered = random.Random(1), 0
    for _ in range(2000):
        draws = [rng.random() for _ in range(200)]
        first, second = sum(one < 0.06 for one in draws), sum(0.06 <= one < 0.16 for one in draws)
        _, low, high = Paired(first, second, 200).interval()
        covered += low <= 0.04 <= high
    assert 0.93 <= covered / 2000 <= 0.975


def test_nothing_asked_says_nothing() -> None:
    """Without a question there is no share and no difference."""
    assert str(Share(0, 0)) == str(Paired(0, 0, 0)) == "–"
    assert str(Paired(5, 5, 100)).startswith("+0.0 [")
