"""Arithmetic questions: eleven families, each an expression, its inverse and some thirty ways to ask."""

import random
from collections.abc import Callable
from functools import cache

from attrs import frozen

from k2core_nano.train import names, phrasing
from k2core_nano.train.oracle import Policy, Stopped, computed, final, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.wordings import FRAMES, GOODS, MACROS, PLACES
from k2core_nano.train.world import evaluate
from k2core_tools.calculator import render


@frozen
class Kind:
    """One family: the plan's word, the expression, its inverse (R is the result) and the operand the inverse gives back."""

    word: str
    expression: str
    inverse: str
    want: str


KINDS = {
    "times": Kind("times", "{n}*{p}", "R/{p}", "{n}"),
    "plus": Kind("plus", "{n}+{p}", "R-{p}", "{n}"),
    "minus": Kind("minus", "{n}-{p}", "R+{p}", "{n}"),
    "divide": Kind("divide", "{n}/{p}", "R*{p}", "{n}"),
    "percent": Kind("percent", "{n}*{p}/100", "R*100/{n}", "{p}"),
    "area": Kind("area", "{n}*{p}", "R/{p}", "{n}"),
    "perimeter": Kind("around", "2*({n}+{p})", "R/2-{p}", "{n}"),
    "speed": Kind("way", "{n}*{p}", "R/{p}", "{n}"),
    "change": Kind("change", "{q}-{n}*{p}", "R+{n}*{p}", "{q}"),
    "average": Kind("average", "({n}+{p}+{q})/3", "R*3-{p}-{q}", "{n}"),
    "average2": Kind("average", "({n}+{p})/2", "R*2-{p}", "{n}"),
    "twostep": Kind("two steps", "{n}*{p}+{q}", "(R-{q})/{p}", "{n}"),
}
FAMILIES = tuple(name for name in KINDS if name != "average2")
CURRENCIES = ("dollars", "dollars", "dollars", "euros", "euros", "pounds", "francs", "crowns", "rupees", "yen")


@cache
def frames(family: str) -> tuple[str, ...]:
    """The family's frames with their macros expanded."""
    return phrasing.with_macros(FRAMES[family], MACROS)


def operands(rng: random.Random, family: str) -> dict[str, str]:
    """Fresh operands n, p and q that suit the family; q is unused in most."""
    n, p, q = names.number(rng, 2, 9999), names.number(rng, 2, 999), 0
    if family == "times" and rng.random() < 0.3:
        p = names.number(rng, 2, 99)
    if family == "minus" and p > n:
        n, p = p, n
    if family in ("area", "perimeter", "speed"):
        n, p = names.number(rng, 2, 999), names.number(rng, 2, 99)
    if family == "divide":
        p = names.number(rng, 2, 99)
        n = p * names.number(rng, 2, 300) if rng.random() < 0.85 else names.number(rng, 3, 999)
    if family == "percent":
        p, n = (
            rng.randint(1, 99),
            rng.choice((names.number(rng, 10, 2000), names.number(rng, 2, 99) * 10, names.number(rng, 1, 99) * 100)),
        )
    if family == "change":
        n, p = names.number(rng, 2, 30), names.number(rng, 2, 60)
        q = n * p + names.number(rng, 1, 400)
    if family in ("average", "average2"):
        n, p, q = (names.number(rng, 2, 999) for _ in range(3))
        parts = 3 if family == "average" else 2
        if rng.random() < 0.7:
            n += -(n + p + (q if parts == 3 else 0)) % parts
    if family == "twostep":
        n, p, q = names.number(rng, 2, 99), names.number(rng, 2, 99), names.number(rng, 2, 500)
    return {"n": str(n), "p": str(p), "q": str(q)}


def fractional(rng: random.Random, family: str, unit: str, values: dict[str, str]) -> dict[str, str]:
    """The operands, some of those that measure (not count) with decimals; now and then with a trailing zero, as prices have."""
    if family in ("times", "change", "twostep"):
        keys = "np" if not unit and family == "times" else "pq" if unit == "{cur}" else ""
    elif family in ("plus", "minus"):
        keys = "np" if unit in ("", "{cur}", "km", "m", "kg", "liters") else ""
    else:
        keys = "np" if family in ("area", "speed") else ""
    changed = dict(values)
    for key in keys:
        if rng.random() < 0.6:
            changed[key] = with_decimals(rng, values[key])
            if unit == "{cur}" and len(changed[key].partition(".")[2]) == 1 and rng.random() < 0.5:
                changed[key] += "0"
    if family in ("minus", "change") and evaluate(KINDS[family].expression.format_map(changed)) <= 0:
        return values
    return changed


def with_decimals(rng: random.Random, value: str) -> str:
    """The number with one or two decimals, without a trailing zero."""
    return f"{value}.{rng.choice((5, 25, 75, rng.randint(1, 9), rng.randint(11, 99)))}".rstrip("0")


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """One arithmetic question with its oracle.

    Args:
        family: a name of FAMILIES.
        level: 0, 1 or 2 with names and numbers held out from training, or None for training.
    """
    held_out = level is not None
    kind_name = "average2" if family == "average" and rng.random() < 0.35 else family
    kind = KINDS[kind_name]
    template, unit = phrasing.phrase(rng, family, frames(kind_name), level)
    while True:
        values = operands(rng, kind_name)
        if rng.random() < 0.2:
            values = fractional(rng, kind_name, unit, values)
        used = [values[key] for key in "npq" if f"{{{key}}}" in kind.expression]
        if names.is_held_out(" ".join(used)) == held_out and len(set(used)) == len(used):
            break
    people = names.person(rng, held_out), names.person(rng, held_out)
    slots = dict(values, w=people[0], v=people[1], g=rng.choice(GOODS), cur=rng.choice(CURRENCIES), where=rng.choice(PLACES))
    text = phrasing.spelled(rng, template.format_map(slots))
    unit = unit.format_map(slots)
    expression, inverse, want = (part.format_map(values) for part in (kind.expression, kind.inverse, kind.want))
    want = render(evaluate(want))  # without trailing zeros
    return Question(
        family=family,
        level=level,
        text=text,
        needed=("calculator",),
        faults=faults(rng),
        expected=(render(evaluate(expression)).split(" ")[0],),
        policy=_oracle(kind.word, expression, inverse, want, unit),
    )


def _oracle(word: str, expression: str, inverse: str, want: str, unit: str) -> Callable[[], Policy]:
    def policy() -> Policy:
        tail = f" {unit}" if unit else ""
        value = yield from computed(f"Plan {word}: {expression}{tail}.", expression, inverse, want, 4)
        if isinstance(value, Stopped):
            return stop(value)
        return final(value.think, f"The answer is {value.shown}{tail}.", [(value.evidence, f"{expression} = {value.text}")])

    return policy


def faults(rng: random.Random) -> tuple[str, ...]:
    """Faults of one computation and its checks: a near miss in four of ten rounds, failures, rarely a broken tool."""
    planned: list[str] = []
    if rng.random() < 0.012:
        planned = ["timeout"] * 4
    elif rng.random() < 0.012:
        planned = ["wrong", ""] * 4
    chance = 0.45
    while len(planned) < 8:
        if rng.random() < 0.07:
            planned += [rng.choice(("timeout", "busy"))] * rng.choice((1, 1, 2))
        wrong = rng.random() < chance
        planned.append("wrong" if wrong else "")
        if rng.random() < 0.04:
            planned.append(rng.choice(("timeout", "busy")))
        check = not wrong and rng.random() < 0.05
        planned.append("wrong" if check else "")
        if not wrong and not check:
            break
        chance = 0.3
    return tuple(planned)
