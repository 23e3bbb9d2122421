"""How far two models of one checkpoint may differ: by what the contracts of their numerics say, or by what somebody accepts."""

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import Any, Literal

import numpy as np
from attrs import frozen

from k2core.errors import InputError
from k2core.interfaces import Array, LoadedModel, Numerics
from k2core.model.config import Geometry
from k2core_specs import load

Measure = Literal["delta", "error"]
EXACT_DELTA = 1e-3  # of two backends in `exact`, end to end; greedy tokens agree wherever the best leads by twice as much
MEAN_SQUARES: Mapping[str, float] = {  # of a rounding's error over that of what it rounds, by `numerics.toml`'s kinds
    "none": 0.0,
    "bfloat16": 2.0**-14 / 12 * 0.541,  # steps of 2**-7 of the power of two below; 0.541 is the mean of 1 / mantissa²
    # steps of a 127th of the largest of 32, whose square is 5.7 times the mean one for normal values, which enter gate and up,
    # and 16 times for what comes out of them
    "int8": (5.7 + 16) / 2 / 127**2 / 12,
}


@frozen(kw_only=True)
class Limit:
    """The most that two models may differ by.

    Attributes:
        most: the largest value that is within it.
        measure: ``delta`` is the largest difference of two logits, ``error`` the median over positions of the normalised mean
            square error of their logits.
    """

    most: float
    measure: Measure = "delta"

    def __str__(self) -> str:
        short = f"{self.most:.0e}"
        return f"limit {short if float(short) == self.most else format(self.most, '.2e')}"


def accepted(limit: object) -> float:
    """A largest difference of two logits that somebody accepts.

    Raises:
        InputError: it is no positive number.
    """
    if not isinstance(limit, Real) or isinstance(limit, bool) or not isfinite(limit) or limit <= 0:
        raise InputError(
            f"limit is {limit!r}, but it must be a positive number: the largest difference of two logits to accept"
        )
    return float(limit)


def limit_of(old: LoadedModel, new: LoadedModel, limit: float | None) -> Limit:
    """*limit* as the most that two logits may differ by, or else what the contract of both models' numerics says.

    Raises:
        InputError: the numerics are two, and no limit is given; the limit is no positive number; or the vocabularies differ.
    """
    if old.geometry.vocab_size != new.geometry.vocab_size:
        raise InputError(
            f"cannot switch: the new model has {new.geometry.vocab_size} tokens, the old one {old.geometry.vocab_size}. "
            "Only the same checkpoint on another backend can go on with a conversation."
        )
    if limit is not None:
        return Limit(most=accepted(limit))
    see_one_contract(old.numerics, new.numerics)
    if old.numerics == "exact":
        return Limit(most=EXACT_DELTA)
    return Limit(most=between(old.numerics, old.geometry), measure="error")


def see_one_contract(old: Numerics, new: Numerics) -> None:
    """See that a contract says how far the logits of both numerics may differ.

    Raises:
        InputError: they are two numerics.
    """
    if old != new:
        raise InputError(
            f"cannot judge a switch from numerics '{old}' to '{new}': a contract holds within one numerics alone. Give the "
            "largest difference of two logits to accept: /backend NAME limit=X, --shadow-limit X, or session.use(…, limit=X)."
        )


def between(numerics: Numerics, geometry: Geometry) -> float:
    """The most that two implementations of *numerics* may differ by: the normalised mean square error (NMSE) of their logits.

    Each of the two keeps the contract of `specs/k2core_specs/numerics.toml`: with the experts that it took given, its NMSE
    against exact logits is at most f times N, that of the rounding itself; f is ``nmse_factor``. As lengths, both are within
    √(f N) |exact| of one point, so they are within 2 √(f N) |exact| of each other, whatever direction their errors take: an
    NMSE of 4 f N, to first order in N. N is `of_rounding`.

    Which experts are taken is given in the contract, but two models may take different ones where these are as good as each
    other, and differ there by more than rounding. Hence the limit is for the median over positions, which is free of that as
    long as most positions are.
    """
    return 4 * float(load("numerics.toml")[numerics]["model"]["nmse_factor"]) * of_rounding(numerics, geometry)


def of_rounding(numerics: Numerics, geometry: Geometry) -> float:
    """About the NMSE of logits that are rounded as *numerics* says, as real checkpoints are too large to measure it.

    Errors of a rounding have no direction of their own, so a product hands on the relative mean square error of what enters
    it, products in a row add theirs, and so do layers. In a row are, in each layer, four dense products (into and out of the
    query's latent, into the other latent, out of the heads), two of attention (queries with latents, shares with latents) and
    two of the MLP, where those of experts lie beside the shared ones; and the output head.

    The oracle measures 0.07 to 0.75 times this on checkpoints of 2 to 4 layers, and 0.95 to 1.2 times on one of 16 layers of
    random weights.
    """
    rules: Mapping[str, Any] = load("numerics.toml")[numerics]
    dense, experts, attention = (MEAN_SQUARES[rules[place]] for place in ("dense", "experts", "attention"))
    layers, moe_layers = geometry.num_hidden_layers, len(geometry.moe_layers)
    mlps = (layers - moe_layers) * 2 * dense + moe_layers * 2 * max(dense, experts)
    return layers * (4 * dense + 2 * attention) + mlps + dense


def row_errors(first: Array, second: Array) -> Array:
    """The NMSE of *second* against *first* by position: (tokens,) of (tokens, vocab); infinite where one is no number."""
    before, after = np.asarray(first, np.float64), np.asarray(second, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found = np.square(after - before).sum(1) / np.square(before).sum(1)
        same = (before == after).all(1)
    return np.where(same, 0.0, np.where(np.isfinite(found), found, np.inf))


def median_of(found: Array) -> float:
    """The median; infinite where one value is, since no rounding makes numbers that are none."""
    return float(np.median(found)) if np.isfinite(found).all() else float("inf")
