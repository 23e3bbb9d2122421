"""Contract to inputs: sizes, parameters and a seed decide a case, so that it can be drawn, shrunk, named and drawn again."""

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.conformance.records import Contract, Input, evaluate
from k2core.conformance.spec_files import SpecError
from k2core.errors import ShapeError, said
from k2core.model.int4 import PackedMatrix, pack

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

GROUP = 32  # columns per scale; the family has no other
SEEDS = 1 << 16


@frozen(kw_only=True)
class Case:
    """One drawn case.

    Attributes:
        axes, parameters, seed: what decides it.
        inputs: arrays; values "int4" are lists of `PackedMatrix`, one per index of the first axis.
    """

    contract: Contract = field(eq=False, repr=False)
    axes: Mapping[str, int]
    parameters: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, Any] = field(eq=False, repr=False)

    def __getitem__(self, name: str) -> Any:
        """An input, an axis or a parameter."""
        for table in (self.inputs, self.axes, self.parameters):
            if name in table:
                return table[name]
        raise KeyError(name)

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in {**self.axes, **self.parameters}.items())
        return f"{sizes} seed={self.seed}"


def make_case(contract: Contract, axes: Mapping[str, int], parameters: Mapping[str, Any], seed: int) -> Case:
    """The case that these decide.

    Raises:
        SpecError: an input of the contract cannot be filled as it says.
    """
    draw = np.random.default_rng([seed, sum(map(ord, contract.name))])
    inputs: dict[str, Any] = {}
    for one in contract.inputs:
        try:
            inputs[one.name] = _filled(one, axes, draw)
        except (ShapeError, ValueError) as error:
            found = f"{contract.file}: key 'inputs.{one.name}' is {one.values} {list(one.shape)}"
            raise SpecError(f"{found}, expected an array that can be filled: {said(error)}") from error
    return Case(contract=contract, axes=dict(axes), parameters=dict(parameters), seed=seed, inputs=inputs)


def drawn_case(contract: Contract, seed: int, profile: str | None = None) -> Case:
    """A case by a seed alone; the first seeds take the extremes of every axis.

    Args:
        contract: of the op.
        seed: 0 takes the least of every size, 1 the most.
        profile: fixed sizes instead.
    """
    draw = random.Random(f"{contract.name} {seed}")

    def pick(sizes: range) -> int:
        return sizes[0] if seed == 0 else sizes[-1] if seed == 1 else draw.choice(sizes)

    axes = dict(contract.profiles[profile]) if profile is not None else axes_of(contract, pick)
    return make_case(contract, axes, {name: draw.choice(values) for name, values in contract.parameters.items()}, seed)


def cases(contract: Contract) -> "SearchStrategy[Case]":
    """A Hypothesis strategy; shrinks towards the least sizes, the first parameters and seed 0."""
    from hypothesis import strategies as st

    @st.composite
    def case(draw: Any) -> Case:
        axes = axes_of(contract, lambda sizes: sizes[draw(st.integers(0, len(sizes) - 1))])
        parameters = {name: draw(st.sampled_from(values)) for name, values in contract.parameters.items()}
        return make_case(contract, axes, parameters, draw(st.integers(0, SEEDS - 1)))

    return case()


def axes_of(contract: Contract, pick: Callable[[range], int]) -> dict[str, int]:
    """Sizes of all axes, each picked from those that it may have."""
    axes: dict[str, int] = {}
    for axis in contract.axes:
        axes[axis.name] = pick(axis.sizes(axes))
    return axes


def _filled(one: Input, axes: Mapping[str, int], draw: np.random.Generator) -> Any:
    shape = tuple(evaluate(expression, axes) for expression in one.shape)
    scale = evaluate(one.fan_in, axes) ** -0.5 if one.fan_in else 1.0
    match one.values:
        case "int4":
            return [_packed(shape[1:], scale, draw) for _ in range(shape[0])]
        case "choice":
            rows = [draw.permutation(axes[one.below])[: shape[1]] for _ in range(shape[0])]
            return np.array(rows, np.int32).reshape(shape)
        case "positive":
            return draw.uniform(0.05, 1.0, shape).astype(np.float32)
        case "gain":
            return _bfloat16(1 + 0.1 * draw.standard_normal(shape))
    values = draw.standard_normal(shape) * scale
    if one.values == "state":
        return values.astype(np.float32)
    if one.spread != (1.0,):
        values *= draw.choice(one.spread, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return _bfloat16(values)


def _packed(shape: tuple[int, ...], scale: float, draw: np.random.Generator) -> PackedMatrix:
    """Codes over the whole range, -8 too, and a scale per group of 32 columns."""
    rows, columns = shape
    codes = draw.integers(-8, 8, shape).astype(np.int8)
    scales = _bfloat16(scale / 4.6 * draw.uniform(0.5, 1.5, (rows, columns // GROUP)))  # codes have a deviation of 4.6
    return PackedMatrix(packed=pack(codes), scale=scales, shape=(rows, columns))


def _bfloat16(values: NDArray[np.float64]) -> NDArray[Any]:
    """Rounded to bfloat16: as checkpoints keep weights, and exact in every numerics' inputs."""
    return values.astype(ml_dtypes.bfloat16)
