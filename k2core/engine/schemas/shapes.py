"""The values that a schema admits, as a graph of shapes that a grammar can be written from; `reader` makes it."""

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class Anything:
    """Any JSON value."""


@frozen
class Listed:
    """The values of a list, as their JSON texts."""

    texts: tuple[str, ...]


@frozen
class Written:
    """A string or a number, as a terminal over its JSON texts.

    Attributes:
        kind: ``string`` or ``number``.
        terminal: in Lark.
    """

    kind: str
    terminal: str


@frozen
class Multiple:
    """Integers that are multiples of a number, between two bounds."""

    of: int
    low: int
    high: int


@frozen
class Items:
    """An array; items are numbers of shapes.

    Attributes:
        first: of the first items, in order.
        rest: of all others.
        least: items at least.
        most: items at most; None is no limit.
        is_set: no item occurs twice.
    """

    first: tuple[int, ...]
    rest: int
    least: int
    most: int | None
    is_set: bool


@frozen
class Fields:
    """An object; values are numbers of shapes.

    Attributes:
        declared: (key, value, whether it must be there), keys sorted.
        others: (terminal over a key's JSON text, value) of keys that are not declared; no key matches two of them.
        least: properties at least.
        most: properties at most; None is no limit.
        is_closed: the schema itself admits no other keys.
    """

    declared: tuple[tuple[str, int, bool], ...]
    others: tuple[tuple[str, int], ...]
    least: int
    most: int | None
    is_closed: bool


@frozen
class Either:
    """Any of several shapes, by their numbers; none of them where nothing is admitted."""

    options: tuple[int, ...]


Shape = Anything | Listed | Written | Multiple | Items | Fields | Either


@frozen
class Shapes:
    """A schema as shapes.

    Attributes:
        shapes: by number; only those that admit something.
        root: number of the whole.
        unenforced: (path, keyword) of what the shapes do not hold to.
    """

    shapes: Mapping[int, Shape]
    root: int
    unenforced: tuple[tuple[str, str], ...]


def possible(shapes: Mapping[int, Shape]) -> dict[int, Shape]:
    """The shapes that some finite value has, without the parts of them that none has."""
    found: set[int] = set()
    while True:
        more = {number for number, shape in shapes.items() if number not in found and _is_possible(shape, found)}
        if not more:
            return {number: _without_impossible(shapes[number], found) for number in sorted(found)}
        found |= more


def _is_possible(shape: Shape, possible: set[int]) -> bool:
    match shape:
        case Listed(texts):
            return bool(texts)
        case Either(options):
            return any(option in possible for option in options)
        case Items(first, rest, least, _, _):
            return all(number in possible for number in first[:least]) and (least <= len(first) or rest in possible)
        case Fields(declared, others, least, most, _):
            needed = [number for _, number, is_needed in declared if is_needed]
            count = sum(number in possible for _, number, _ in declared)
            has_room = any(number in possible for _, number in others) or count >= least
            return (
                all(number in possible for number in needed) and has_room and (most is None or max(least, len(needed)) <= most)
            )
    return True


def _without_impossible(shape: Shape, possible: set[int]) -> Shape:
    match shape:
        case Either(options):
            return Either(tuple(option for option in options if option in possible))
        case Items(first, rest, least, most, is_set):
            end = next((place for place, number in enumerate(first) if number not in possible), None)
            if end is None and rest not in possible:
                end = len(first)
            return Items(first[:end], rest, least, least_of(most, end), is_set)
        case Fields(declared, others, least, most, is_closed):
            return Fields(
                tuple(one for one in declared if one[1] in possible),
                tuple(one for one in others if one[1] in possible),
                least,
                most,
                is_closed,
            )
    return shape


def least_of(one: int | None, other: int | None) -> int | None:
    """The smaller of two limits, None being no limit."""
    return other if one is None else one if other is None else min(one, other)


def kinds(shape: Shape) -> set[str]:
    """JSON types that a shape's values may have."""
    match shape:
        case Listed(texts):
            return {kind(json.loads(text)) for text in texts}
        case Written(written, _):
            return {written}
        case Multiple():
            return {"number"}
        case Items():
            return {"array"}
        case Fields():
            return {"object"}
        case _:
            return {"null", "boolean", "number", "string", "array", "object"}


def kind(value: Any) -> str:
    """The JSON type of a value; an integer is a number."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    names = {int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return kind(one) == kind(other) and bool(one == other)
