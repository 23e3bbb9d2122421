"""The price of a step, and which guesses are worth it."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.step_cost import FORGET, StepCost, worthwhile

falling = st.lists(st.floats(0, 1), max_size=4).map(lambda chances: sorted(chances, reverse=True))


class Fixed(StepCost):
    """Given seconds for 1, 2, 3 … tokens."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def of(self, tokens):
        """As given; the last one for all beyond."""
        return self.seconds[min(tokens, len(self.seconds)) - 1]


@given(
    chances=st.lists(falling, min_size=1, max_size=3),
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
    most=st.integers(0, 6),
)
def test_the_lengths_are_the_best_of_all(chances, seconds, most):
    """No other choice of lengths, within the limit, promises more tokens per second."""
    cost = Fixed(seconds)

    def rate(lengths):
        tokens = len(chances) + sum(lengths)
        return (len(chances) + sum(sum(own[:length]) for own, length in zip(chances, lengths, strict=True))) / cost.of(tokens)

    found = worthwhile(chances, cost, most)
    choices = [one for one in product(*(range(len(own) + 1) for own in chances)) if sum(one) <= most]
    assert sum(found) <= most
    assert all(length <= len(own) for length, own in zip(found, chances, strict=True))
    assert rate(found) == pytest.approx(max(map(rate, choices)))


@given(turns=st.integers(1, 4), chance=st.floats(0, 1), slope=st.floats(0.001, 1), most=st.integers(1, 8))
def test_what_is_below_the_least_chance_never_pays(turns, chance, slope, most):
    """Where each row costs the same, a guess that is less likely than the least chance is not worth trying."""
    cost = Fixed([1 + slope * tokens for tokens in range(20)])
    if chance < cost.least_chance(turns, most) * (1 - 1e-9):
        assert worthwhile([[chance]] * turns, cost, most) == [0] * turns


def test_costs_are_measured():
    """Sizes cost what they took lately; one that nobody tried is hardly dearer than the next smaller one."""
    cost = StepCost()
    assert cost.of(1) == cost.of(9) == 1.0
    for _ in range(50):
        cost.observe(1, 0.001)
        cost.observe(4, 0.002)
    assert cost.of(1) == pytest.approx(0.001)
    assert cost.of(4) == pytest.approx(0.002)
    assert cost.of(1) < cost.of(2) < cost.of(3) < cost.of(4) < cost.of(9) < 0.003
    for _ in range(100):
        cost.observe(4, 0.004)
    assert cost.of(4) == pytest.approx(0.004, rel=0.01)


@given(bad=st.floats(1, 1000), size=st.integers(2, 9), first=st.booleans())
def test_a_bad_moment_is_forgotten(bad, size, first):
    """A step that somebody else's work made slow counts little, and is forgotten though nobody tries its size again."""
    cost = StepCost()
    cost.observe(1, 0.001)
    if not first:
        cost.observe(size, 0.0015)
    cost.observe(size, bad)
    assert cost.of(size) < 0.01
    for _ in range(3 * FORGET):
        cost.observe(1, 0.001)
    assert cost.of(size) < 0.002
