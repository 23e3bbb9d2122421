"""Contracts of ops and numerics from their files. One that is wrong or cannot be satisfied is one error with file and key.

What an op's file says is held against the op's probe: it names the equation and the bound that it judges by, its properties are
those that fit it, and it is asked what it reads (`k2core.conformance.fitting`). So nothing of it is written down twice.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, get_args

from k2core.conformance.fitting import check_fit
from k2core.conformance.probes.all import PROBES
from k2core.conformance.properties import properties_of
from k2core.conformance.records import DTYPES, VALUES, Axis, Contract, Input, NumericsContract, Output, evaluate
from k2core.conformance.spec_files import SPECS, check_keys, opened, tables, text
from k2core.interfaces import Numerics
from k2core.model.fields import LARGEST, Fields
from k2core.oracle.rounding import Kind, Rounding

PLACES = ("dense", "experts", "attention")
DIMENSIONS = {"int4": 3, "choice": 2}  # of arrays that are filled in a way that asks for it


@cache
def contracts() -> dict[str, Contract]:
    """Every op's contract by name.

    Raises:
        SpecError: one is wrong.
    """
    found = sorted(files(SPECS).joinpath("ops").iterdir(), key=lambda file: file.name)
    return {one.name: one for one in (read_contract(file) for file in found if file.name.endswith(".toml"))}


@cache
def numerics_contract(name: Numerics) -> NumericsContract:
    """What *name* means.

    Raises:
        SpecError: the file is wrong.
    """
    return read_numerics(files(SPECS).joinpath("numerics.toml"))[name]


def read_contract(file: Traversable) -> Contract:
    """One op's file.

    Raises:
        SpecError: it is wrong, cannot be satisfied, or is not what the op's probe reads and judges by.
    """
    with opened(file) as top:
        required = ("name", "summary", "source", "oracle", "properties", "axes", "inputs", "outputs", "bound")
        check_keys(top, required, ("parameters", "profiles"))
        name = top.one_of("name", (file.name.removesuffix(".toml"),), "as the file is called")
        probe = PROBES[top.one_of("name", tuple(PROBES), "the ops that have a probe")]
        bound = top.inside("bound")
        check_keys(bound, ("derivation",), ("function",))
        for fields, key, function in ((top, "oracle", probe.oracle), (bound, "function", probe.bound)):
            if fields.get(key) != function:
                expected = (
                    "no such key: the op's probe judges by none" if function is None else f"{function}, as the op's probe"
                )
                raise fields.wrong(key, expected)
        axes = _axes(top)
        sizes = {axis.name: axis.least for axis in axes}
        contract = Contract(
            file=str(file),
            name=name,
            summary=text(top, "summary"),
            source=text(top, "source"),
            oracle=probe.oracle,
            axes=axes,
            parameters=_parameters(top),
            inputs=tuple(_input(one, name, sizes) for name, one in tables(top, "inputs").items()),
            outputs=tuple(_output(one, name, sizes) for name, one in tables(top, "outputs").items()),
            properties=_properties(top, properties_of(probe)),
            profiles={name: _profile(one, axes) for name, one in _optional(top, "profiles").items()},
            bound=text(bound, "derivation"),
        )
        check_fit(contract, probe, top)
        return contract


def read_numerics(file: Traversable) -> dict[str, NumericsContract]:
    """The file of all numerics.

    Raises:
        SpecError: one is missing, or a place is rounded in a way nobody knows.
    """
    found: dict[str, NumericsContract] = {}
    with opened(file) as top:
        check_keys(top, get_args(Numerics))
        for name, given in ((name, top.inside(name)) for name in top.data):
            check_keys(given, ("summary", *PLACES, "model"))
            text(given, "summary")
            kinds = {place: given.one_of(place, get_args(Kind), "what a place is rounded to") for place in PLACES}
            rules, wanted = given.inside("model"), ("logit_delta", "greedy_margin") if name == "exact" else ("nmse_factor",)
            check_keys(rules, wanted)
            limits = {rule: rules.number(rule, above=0.0) for rule in wanted}
            found[name] = NumericsContract(name=name, rounding=Rounding(**kinds), **limits)
    return found


def _optional(top: Fields, key: str) -> dict[str, Fields]:
    return tables(top, key) if key in top.data else {}


def _axes(top: Fields) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    least: dict[str, int] = {}
    for name, given in tables(top, "axes").items():
        check_keys(given, ("least", "most"), ("multiple",))
        most = given.get("most")
        if isinstance(most, str) and most not in least:
            raise given.wrong("most", f"a number or an axis before it ({', '.join(least) or 'none'})")
        axis = Axis(
            name=name,
            least=given.integer("least", least=0),
            most=most if isinstance(most, str) else given.integer("most"),
            multiple=given.integer("multiple") if "multiple" in given.data else 1,
        )
        if not axis.sizes(least):
            raise top.inside("axes").wrong(name, "a range that holds a size, whatever the axes before it are")
        least[name] = axis.sizes(least)[0]
        axes.append(axis)
    return tuple(axes)


def _profile(given: Fields, axes: Sequence[Axis]) -> dict[str, int]:
    check_keys(given, tuple(axis.name for axis in axes))
    sizes: dict[str, int] = {}
    for axis in axes:
        most = sizes[axis.most] if isinstance(axis.most, str) else LARGEST
        sizes[axis.name] = given.integer(axis.name, least=axis.least, most=most)
        if sizes[axis.name] % axis.multiple:
            raise given.wrong(axis.name, f"a multiple of {axis.multiple}")
    return sizes


def _parameters(top: Fields) -> dict[str, tuple[Any, ...]]:
    if "parameters" not in top.data:
        return {}
    given = top.inside("parameters")
    return {name: _numbers(given, name, switches=True) for name in given.data}


def _numbers(fields: Fields, key: str, *, switches: bool) -> tuple[Any, ...]:
    """A list of numbers above 0; of *switches* too where they may be."""
    given, kinds = fields.get(key), "numbers above 0, or of true and false" if switches else "numbers above 0"
    if not isinstance(given, list) or not given:
        raise fields.wrong(key, f"a list of {kinds}")
    for one in given:
        known = switches if isinstance(one, bool) else isinstance(one, int | float) and 0 < one < math.inf
        if not known:
            raise fields.wrong(key, f"a list of {kinds}; {one!r} is none")
    return tuple(given)


def _properties(top: Fields, known: Sequence[str]) -> tuple[str, ...]:
    given = top.get("properties")
    if not isinstance(given, list) or not given:
        raise top.wrong("properties", f"a list of some of {', '.join(known)}")
    for one in given:
        if one not in known:
            raise top.wrong("properties", f"some of {', '.join(known)}; {one!r} is no property that fits the op")
    return tuple(given)


def _input(given: Fields, name: str, sizes: Mapping[str, int]) -> Input:
    check_keys(given, ("shape", "values"), ("fan_in", "spread", "below"))
    values, shape = given.one_of("values", VALUES, "how an array is filled"), _shape(given, sizes)
    if values in DIMENSIONS and len(shape) != DIMENSIONS[values]:
        raise given.wrong("shape", f"{DIMENSIONS[values]} sizes, as values are '{values}'")
    below = given.get("below")
    if (values == "choice") != (below is not None) or (below is not None and below not in tuple(sizes)):
        raise given.wrong("below", "an axis" if values == "choice" else "no such key where values are no choice")
    if "fan_in" in given.data:
        _check_size(given, "fan_in", given.get("fan_in"), sizes)
    spread = _numbers(given, "spread", switches=False) if "spread" in given.data else (1.0,)
    return Input(
        name=name,
        shape=shape,
        values=values,
        fan_in=given.get("fan_in") or "",
        spread=tuple(map(float, spread)),
        below=below or "",
    )


def _output(given: Fields, name: str, sizes: Mapping[str, int]) -> Output:
    check_keys(given, ("shape", "dtype"))
    return Output(name=name, shape=_shape(given, sizes), dtype=given.one_of("dtype", DTYPES, "the numbers that there are"))


def _shape(given: Fields, sizes: Mapping[str, int]) -> tuple[str, ...]:
    shape = given.get("shape")
    if not isinstance(shape, list) or not shape:
        raise given.wrong("shape", "a list of sizes")
    for one in shape:
        _check_size(given, "shape", one, sizes)
    return tuple(shape)


def _check_size(given: Fields, key: str, expression: object, sizes: Mapping[str, int]) -> None:
    try:
        size = evaluate(expression, sizes) if isinstance(expression, str) else 0
    except (KeyError, ValueError):
        size = 0
    if size < 1:
        raise given.wrong(key, f"sums and products of {', '.join(sizes)}, at least 1; {expression!r} is none")
