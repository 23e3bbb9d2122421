"""Unit conversion with exact factors (`k2core_tools.unit_table`)."""

from collections.abc import Mapping
from fractions import Fraction
from functools import cache

from k2core import tool
from k2core.errors import ToolError
from k2core_tools.nearest import nearest_names
from k2core_tools.numbers import parse_number, render
from k2core_tools.unit_table import Unit, all_units


@tool(effect="pure", timeout_s=10.0, name="units")
def units(to: str, unit: str, value: str) -> str:
    """Convert a value from one unit to another.

    Returns ``8.04672 km``: the number in the calculator's form and the target's symbol.

    Raises:
        ToolError: no such unit (with the nearest), units of different dimensions, no number, or a temperature below
            absolute zero.
    """
    source, target = find_unit(unit), find_unit(to)
    return f"{render(convert(parse_number(value), source, target))} {target.symbol}"


def convert(value: Fraction, source: Unit, target: Unit) -> Fraction:
    """*value* in *source*, expressed in *target*, exactly.

    Raises:
        ToolError: the two measure different things, or the temperature is below absolute zero.
    """
    if source.dimension != target.dimension:
        raise ToolError(f"cannot convert {source.symbol} ({source.dimension}) to {target.symbol} ({target.dimension})")
    size = value * source.factor + source.zero
    if source.dimension == "temperature" and size < 0:
        raise ToolError(f"{render(value)} {source.symbol} is below absolute zero")
    return (size - target.zero) / target.factor


def find_unit(name: str) -> Unit:
    """The unit written as *name*: exactly, or whatever its case where that leaves one unit.

    Raises:
        ToolError: there is none, or several that differ by case.
    """
    exact, folded = _spellings()
    wanted = " ".join(name.replace("_", " ").split())
    if wanted in exact:
        return exact[wanted]
    found = folded.get(wanted.casefold(), ())
    if len(found) == 1:
        return found[0]
    if found:
        raise ToolError(f"unit '{name}' is ambiguous: {', '.join(one.symbol for one in found)}")
    near = list(dict.fromkeys(folded[one][0].symbol for one in nearest_names(wanted.casefold(), folded, 6)))[:3]
    raise ToolError(f"no unit '{name}'. Nearest: {', '.join(near)}")


@cache
def _spellings() -> tuple[Mapping[str, Unit], Mapping[str, tuple[Unit, ...]]]:
    exact: dict[str, Unit] = {}
    folded: dict[str, tuple[Unit, ...]] = {}
    for unit in all_units():
        for spelling in (unit.symbol, unit.symbol.replace("_", " "), *unit.spellings):
            exact.setdefault(spelling, unit)
            key = spelling.casefold()
            if unit not in folded.get(key, ()):
                folded[key] = (*folded.get(key, ()), unit)
    return exact, folded
