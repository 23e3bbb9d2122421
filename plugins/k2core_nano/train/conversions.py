"""Conversions with the units tool, checked by converting back."""

import random
from collections.abc import Callable, Mapping
from fractions import Fraction

from k2core.errors import ToolError
from k2core_nano.train import arithmetic, names, phrasing
from k2core_nano.train.decline_wordings import CONVERT
from k2core_nano.train.oracle import CHECK_FAILS, WRONG, Policy, Step, Stopped, compared, final, persist, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.world import Handler, near_miss
from k2core_tools.numbers import parse_number, render
from k2core_tools.units import convert, find_unit

FAMILY = "convert"
LONGEST = 12  # characters of a result
_USED = tuple(
    line.split(",")
    for line in (
        "m,km,cm,mm,miles,feet,inches,yards", "kg,g,pounds,ounces,mg,tonnes", "hours,minutes,seconds,days,weeks",
        "liters,ml,gallons,pints", "km2,m2,hectares,acres", "km/h,m/s,mph", "MB,GB,kB", "celsius,kelvin",
    )
)  # fmt: skip


def question(rng: random.Random, level: int | None) -> Question:
    """A conversion whose result is a short decimal; levels as of `phrasing.phrase`."""
    held_out = level is not None
    template, _ = phrasing.phrase(rng, "convert", CONVERT, level)
    while True:
        unit, to = rng.sample(rng.choice(_USED), 2)
        value = str(names.number(rng, 2, 5000))
        if rng.random() < 0.2:
            value = arithmetic.with_decimals(rng, value)
        result = render(convert(parse_number(value), find_unit(unit), find_unit(to)))
        back = render(convert(parse_number(result.split(" ")[0]), find_unit(to), find_unit(unit)))
        if back == value and len(result) <= LONGEST and names.is_held_out(f"{value} {unit} {to}") == held_out:
            break
    return Question(
        family=FAMILY,
        level=level,
        text=template.format_map({"n": value, "u": unit, "u2": to}),
        needed=("units",),
        faults=arithmetic.faults(rng),
        expected=(result,),
        handlers=lambda: HANDLERS,
        policy=_policy(value, unit, to),
    )


def _convert(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
    try:
        source, target = find_unit(str(arguments["unit"])), find_unit(str(arguments["to"]))
        result = render(convert(parse_number(str(arguments["value"])), source, target))
    except ToolError as error:
        return f"error: {error}"
    if fault == "wrong" and " " not in result and Fraction(result):
        result = near_miss(rng, result)
    return f"{result} {target.symbol}"


HANDLERS: Mapping[str, Handler] = {"units": _convert}


def _policy(value: str, unit: str, to: str) -> Callable[[], Policy]:
    def policy() -> Policy:
        call = f"{value} {unit} to {to}"
        step = Step(f"Plan convert {call}.", "units", {"to": to, "unit": unit, "value": value}, 4)
        for count in range(1, WRONG + 1):
            result = yield from persist(step, call)
            if isinstance(result, Stopped):
                return stop(result)
            got = result.text.split(" ")[0]
            proof = yield from persist(
                Step(
                    f"Got {result.text}. Check {got} {to} to {unit}, want {value}.",
                    "units",
                    {"to": unit, "unit": to, "value": got},
                ),
                f"{got} {to} to {unit}",
            )
            if isinstance(proof, Stopped):
                return stop(proof)
            back = proof.text.split(" ")[0]
            written, same = compared(back, value)
            verdict = f"Got {back}, want {value}: {written}."
            if same:
                evidence = (result.index, proof.index)
                text = f"{value} {unit} is {result.text}."
                return final(f"{verdict} Right.", text, [(evidence, f"{value} {unit}: {result.text}")])
            step = Step(f"{verdict} Wrong {count}, convert again: {call}.", step.tool, step.arguments)
        return stop(Stopped(f"{verdict} Wrong {count}. Stop.", CHECK_FAILS))

    return policy
