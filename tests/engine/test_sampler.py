"""The sampler: which tokens can be drawn, how often, and from which random numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from k2core.engine.sampler import Sampler, philox, uniform
from k2core.errors import InputError, K2Error

# few distinct values, so that ties are common; -inf forbids
values = st.one_of(st.integers(-6, 6).map(float), st.floats(-30, 30, width=32), st.just(-math.inf))
logits_rows = arrays.arrays(np.float32, st.integers(1, 150), elements=values).filter(lambda row: np.isfinite(row.max()))
temperatures = st.floats(0.05, 5)
shares = st.floats(0, 1)
samplers = st.builds(
    Sampler,
    temperature=st.just(0.0) | temperatures,
    top_p=st.just(1.0) | shares,
    min_p=st.just(0.0) | shares,
    seed=st.integers(-5, 2**70),
    path=st.integers(0, 2**33),
)


def reference_nucleus(row, temperature, top_p):
    """Ids of the nucleus by definition: sorted whole, summed one by one."""
    weights = np.exp((row.astype(np.float64) - float(row.max())) / temperature)
    order = sorted(range(len(row)), key=lambda one: (-weights[one], one))
    mass, chosen = 0.0, set()
    for one in order:
        if weights[one] == 0.0:
            break
        chosen.add(one)
        mass += weights[one]
        if mass >= top_p * weights.sum():
            break
    return chosen


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The generator gives the known answers that Random123 publishes for Philox4x32-10."""
    assert philox(counter, key) == words


@given(st.integers(), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_random_numbers_lie_in_the_half_open_interval(seed, path, position):
    """Every (seed, path, position) gives the same number in [0, 1) each time."""
    number = uniform(seed, path, position)

    assert 0.0 <= number < 1.0
    assert number == uniform(seed, path, position)


def test_seed_path_and_position_all_matter():
    """Numbers of different seeds, paths and positions, large ones included, do not repeat."""
    places = [0, 1, 2, 3, 2**31, 2**32 - 1]
    numbers = {uniform(seed, path, position) for seed in places for path in places for position in [*places, 2**32]}

    assert len(numbers) == 6 * 6 * 7


@given(logits_rows, samplers, st.integers(0, 10**6))
def test_only_allowed_tokens_are_drawn(row, sampler, position):
    """What is drawn is allowed, is not forbidden by -inf, is drawn again from the same place, and the logits stay."""
    before = row.copy()

    token = sampler.sample(row, position)

    assert token in sampler.allowed(row)
    assert row[token] > -math.inf
    assert token == sampler.sample(row, position)
    assert np.array_equal(row, before)


@given(logits_rows)
def test_greedy_takes_the_lowest_id_of_the_largest(row):
    """Temperature 0 takes the largest logit and of equals the lowest id."""
    token = Sampler().sample(row, 0)

    assert row[token] == row.max()
    assert (row[:token] < row.max()).all()


@given(logits_rows, temperatures, shares.filter(lambda share: share < 1))
def test_nucleus_is_the_smallest_set(row, temperature, top_p):
    """The nucleus is the one by definition, ties by lowest id (a set whose sum equals the limit up to rounding aside)."""
    allowed = set(Sampler(temperature=temperature, top_p=top_p).allowed(row).tolist())
    low = reference_nucleus(row, temperature, top_p * (1 - 1e-12))
    high = reference_nucleus(row, temperature, min(1.0, top_p * (1 + 1e-12)))

    assert low <= allowed <= high


@given(logits_rows, temperatures, shares, shares, shares, shares)
def test_allowed_sets_are_monotone(row, temperature, first_p, second_p, first_min, second_min):
    """A larger top_p or a smaller min_p never forbids what was allowed; the best token is always allowed."""
    top, least = sorted((first_p, second_p)), sorted((first_min, second_min))
    narrow = set(Sampler(temperature=temperature, top_p=top[0], min_p=least[1]).allowed(row).tolist())
    wide = set(Sampler(temperature=temperature, top_p=top[1], min_p=least[0]).allowed(row).tolist())

    assert narrow <= wide
    assert int(row.argmax()) in narrow


@given(logits_rows, temperatures, shares)
def test_min_p_is_relative_to_the_best(row, temperature, min_p):
    """min_p keeps exactly the tokens at least that probable relative to the best one."""
    weights = np.exp((row.astype(np.float64) - float(row.max())) / temperature)

    allowed = set(Sampler(temperature=temperature, min_p=min_p).allowed(row).tolist())

    assert allowed == {one for one, weight in enumerate(weights) if weight >= min_p and weight > 0}


@pytest.mark.parametrize("vocab", [7, 3000])
def test_large_vocabulary_nucleus_with_ties(vocab):
    """A nucleus among equals takes the lowest ids, also where the candidates are searched in steps."""
    allowed = Sampler(temperature=1.0, top_p=0.5).allowed(np.zeros(vocab, np.float32))

    assert allowed.tolist() == list(range(math.ceil(vocab / 2)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_distribution_is_softmax(temperature, count):
    """Drawn tokens follow softmax: chi-square over 11 tokens is below its 99.99 % quantile, and each path is another draw."""
    row = np.linspace(-2, 1, 11, dtype=np.float32)
    sampler = Sampler(temperature=temperature, seed=3)
    drawn = np.bincount([sampler.sample(row, position) for position in range(count)], minlength=11)
    softmax = np.exp(row.astype(np.float64) / temperature)
    expected = softmax / softmax.sum() * count

    assert ((drawn - expected) ** 2 / expected).sum() < 35.6  # 10 degrees of freedom
    others = Sampler(temperature=temperature, seed=3, path=1)
    assert [sampler.sample(row, n) for n in range(50)] != [others.sample(row, n) for n in range(50)]


def test_tiny_temperature_is_greedy():
    """A temperature near 0 draws the best token without overflow."""
    row = np.array([1.0, 1.0000001, -3.0], np.float32)

    assert Sampler(temperature=1e-300).sample(row, 5) == int(row.argmax())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_one_clear_line(bad, temperature):
    """NaN and +inf logits are refused with the token's id and the position."""
    row = np.zeros(50, np.float32)
    row[17] = bad

    with pytest.raises(K2Error, match=rf"position 9: the model's largest logit is {bad} \(token 17\)"):
        Sampler(temperature=temperature).sample(row, 9)


def test_all_forbidden_is_refused():
    """A row of -inf has nothing to draw."""
    with pytest.raises(K2Error, match="largest logit is -inf"):
        Sampler(temperature=1.0).sample(np.full(4, -np.inf, np.float32), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 1.5), ("min_p", -1.0)],
)
def test_options_out_of_range(name, value):
    """An option out of its range is refused with its name and value."""
    with pytest.raises(InputError, match=f"{name} is {value}"):
        Sampler(**{name: value})
