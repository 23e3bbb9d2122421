"""Specifications as records: what must be true of an op, what a numerics rounds, and the sizes that expressions stand for."""

import ast
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from k2core.oracle.rounding import Rounding

VALUES = ("state", "normal", "gain", "int4", "choice", "positive")
DTYPES = ("float32", "int32")


@frozen(kw_only=True)
class Axis:
    """Sizes that an axis may have.

    Attributes:
        least, multiple: of every size.
        most: a number, or the name of an axis before this one.
    """

    name: str
    least: int
    most: int | str
    multiple: int = 1

    def sizes(self, others: Mapping[str, int]) -> range:
        """What it may be once the axes before it are *others*."""
        most = others[self.most] if isinstance(self.most, str) else self.most
        first = -(-self.least // self.multiple) * self.multiple
        return range(first, most + 1, self.multiple)


@frozen(kw_only=True)
class Input:
    """One array of a case.

    Attributes:
        shape: expressions over axes, e.g. ``heads * (nope + rope)``.
        values: how it is filled, one of `VALUES`.
        fan_in: an expression; values are divided by its root, so that products neither die nor explode.
        spread: factors, one of which multiplies each row.
        below: of a choice: the axis whose indices are chosen from.
    """

    name: str
    shape: tuple[str, ...]
    values: str
    fan_in: str = ""
    spread: tuple[float, ...] = (1.0,)
    below: str = ""


@frozen(kw_only=True)
class Output:
    """One array that is read of a backend.

    Attributes:
        shape: expressions over axes.
        dtype: one of `DTYPES`.
    """

    name: str
    shape: tuple[str, ...]
    dtype: str


@frozen(kw_only=True)
class Contract:
    """What must be true of one op.

    Attributes:
        file: that it was read from.
        source: where the formula is from.
        oracle: ``module:function`` of the float64 equation.
        axes: in the order in which they are drawn.
        parameters: scalars and the values they may take.
        inputs: arrays.
        outputs: arrays that are judged, or that others are judged by.
        properties: what holds, each of those that fit the op.
        profiles: fixed sizes by name, e.g. the family's own; they may exceed the numbers in `Axis.most`.
        bound: why the error bound is what it is.
    """

    file: str = field(eq=False)
    name: str
    summary: str
    source: str
    oracle: str
    axes: tuple[Axis, ...]
    parameters: Mapping[str, tuple[Any, ...]] = field(eq=False)
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    properties: tuple[str, ...]
    profiles: Mapping[str, Mapping[str, int]] = field(eq=False)
    bound: str


@frozen(kw_only=True)
class NumericsContract:
    """One numerics: what is rounded where, and how whole models are compared.

    Attributes:
        rounding: by place.
        logit_delta, greedy_margin: of `exact` only.
        nmse_factor: of all others.
    """

    name: str
    rounding: Rounding
    logit_delta: float | None = None
    greedy_margin: float | None = None
    nmse_factor: float | None = None


def evaluate(expression: str, sizes: Mapping[str, int]) -> int:
    """The value of an expression of axes, numbers, sums and products.

    Raises:
        KeyError: an unknown axis.
        ValueError: anything else than sums and products.
    """

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name):
                return sizes[name]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
        raise ValueError(f"'{expression}' is no sum or product of axes")

    try:
        return value(ast.parse(expression, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"'{expression}' is no sum or product of axes") from error
