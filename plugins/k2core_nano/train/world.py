"""The world an episode happens in: facts, the product's calculator, and tools that fail as planned.

``World`` runs a question's tools; the oracle and a model under evaluation meet the same one.
"""

import difflib
import json
import random
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction

from attrs import define, field, frozen

from k2core_tools.calculator import ExpressionError, render
from k2core_tools.calculator import evaluate as shipped

TIMEOUT = "error: timed out after 10 s"
BUSY = "error: busy"
Handler = Callable[[Mapping[str, object], str, random.Random], str]  # arguments, fault, chance: the text of the result
_PLAIN = 40  # characters; longer expressions may pass limits that only the shipped calculator checks
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[-+*/()]", re.ASCII)


@frozen(kw_only=True)
class Fact:
    """One row of the facts tool; unit and year may be empty."""

    entity: str
    attribute: str
    value: str
    unit: str
    source: str
    year: str

    def shown(self) -> str:
        """The row as the tool prints it: ``VALUE UNIT [SOURCE, YEAR]``."""
        unit = f" {self.unit}" if self.unit else ""
        year = f", {self.year}" if self.year else ""
        return f"{self.value}{unit} [{self.source}{year}]"


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression of numbers, ``+ - * /``, unary minus and parentheses, as the shipped calculator has it.

    Kept beside the shipped one because it takes 14 us where that takes 37, and the generator calls it several times a document.

    Raises:
        ValueError: the text is no such expression.
        ZeroDivisionError: it divides by zero.
    """
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != expression:
        raise ValueError(f"cannot evaluate {expression!r}: unknown character")
    tokens.append("")
    place = 0

    def atom() -> Fraction:
        nonlocal place
        token = tokens[place]
        place += 1
        if token == "-":
            return -atom()
        if token == "(":
            inside = total()
            if tokens[place] != ")":
                raise ValueError(f"cannot evaluate {expression!r}: parenthesis not closed")
            place += 1
            return inside
        if not token[:1].isdigit():
            raise ValueError(f"cannot evaluate {expression!r}: number expected")
        return Fraction(token) if "." in token else Fraction(int(token))

    def product() -> Fraction:
        nonlocal place
        value = atom()
        while tokens[place] in ("*", "/"):
            place += 1
            value = value * atom() if tokens[place - 1] == "*" else value / atom()
        return value

    def total() -> Fraction:
        nonlocal place
        value = product()
        while tokens[place] in ("+", "-"):
            place += 1
            value = value + product() if tokens[place - 1] == "+" else value - product()
        return value

    value = total()
    if place != len(tokens) - 1:
        raise ValueError(f"cannot evaluate {expression!r}: {tokens[place]!r} left over")
    return value


def exact(expression: str) -> Fraction:
    """The value of any expression, as the shipped calculator has it.

    Raises:
        ExpressionError: the shipped calculator refuses it.
    """
    if len(expression) <= _PLAIN:
        with suppress(ValueError, ZeroDivisionError):
            return evaluate(expression)
    return shipped(expression)  # more than the generator writes: other operators, spaces, mistakes


NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?"  # what can be miscopied; a date cannot


def near_miss(rng: random.Random, value: str) -> str:
    """A wrong number that looks right: a digit off, swapped, dropped or doubled, the sign, a small difference."""
    while True:
        digits = [place for place, letter in enumerate(value) if letter.isdigit()]
        place = rng.choice(digits)
        kind = rng.random()
        if kind < 0.45:
            wrong = value[:place] + str((int(value[place]) + rng.choice((1, 9, rng.randint(1, 9)))) % 10) + value[place + 1 :]
        elif kind < 0.65 and place + 1 in digits:
            wrong = value[:place] + value[place + 1] + value[place] + value[place + 2 :]
        elif kind < 0.75:
            wrong = value[1:] if value[0] == "-" else "-" + value
        elif kind < 0.85 and len(digits) > 1:
            wrong = value[:place] + value[place + 1 :]
        elif kind < 0.93:
            wrong = value[: place + 1] + value[place:]
        else:
            wrong = render(Fraction(value) + rng.choice((-10, 10, -1, 1, 100)))
        if re.fullmatch(NUMBER, wrong) and Fraction(wrong) != Fraction(value) and Fraction(wrong) != 0:
            return wrong


@define
class World:
    """The faulty tools of one question. ``faults`` are used up in order, one per call; `handlers` are the question's own.

    A fault is "" (none), "timeout", "busy", "wrong" (a near miss), "negative" or "unit"; one that does not apply
    to the call does nothing.
    """

    facts: Mapping[tuple[str, str], Fact]
    faults: list[str]
    rng: random.Random
    handlers: Mapping[str, Handler] = field(factory=dict)
    used: list[str] = field(factory=list, init=False)  # faults so far, those too that did nothing

    def call(self, tool: str, arguments: Mapping[str, object]) -> str:
        """The text the model reads after this call."""
        fault = self.faults.pop(0) if self.faults else ""
        self.used += [fault] if fault else []
        if fault == "timeout":
            return TIMEOUT
        if fault == "busy":
            return BUSY
        if tool in self.handlers:
            return self.handlers[tool](arguments, fault, self.rng)
        if tool == "calculator":
            return self._calculate(str(arguments["expression"]), fault)
        if tool == "facts":
            return self._look_up(str(arguments["entity"]), str(arguments["attribute"]), fault)
        return f"error: no tool {json.dumps(tool)}"

    def _calculate(self, expression: str, fault: str) -> str:
        try:
            value = exact(expression)
        except ExpressionError as error:
            return f"error: {error}"
        result = render(value)
        if fault != "wrong":
            return result
        number, _, rest = result.partition(" ")
        if not rest:
            return near_miss(self.rng, number)
        return render(value + Fraction(self.rng.choice((1, -1, 2)), value.denominator))

    def _look_up(self, entity: str, attribute: str, fault: str) -> str:
        row = self.facts.get((entity, attribute))
        if row is None:
            known = sorted({name for owner, name in self.facts if owner == entity})
            if known:
                return f"error: no attribute '{attribute}' of {entity}. Known: {', '.join(known)}"
            names = sorted({owner for owner, _ in self.facts})
            near = difflib.get_close_matches(entity, names, n=2, cutoff=0.0)
            return f"error: no entity '{entity}'. Nearest: {', '.join(near)}"
        text = row.shown()
        if fault == "negative" and row.unit:
            return "-" + text
        if fault == "unit" and row.unit:
            other = self.rng.choice(
                [unit for unit in ("m", "km", "kg", "km2", "people", "K", "dollars", "g/cm3") if unit != row.unit]
            )
            return text.replace(f" {row.unit} ", f" {other} ", 1)
        return text
