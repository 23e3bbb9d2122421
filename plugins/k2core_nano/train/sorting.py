"""Sorting and extremes: numbers of the question, or entities by a looked-up value; orders rest on computed differences."""

import random
import re
from collections.abc import Callable, Generator, Sequence
from functools import cache

from attrs import frozen

from k2core_nano.train import arithmetic, facts, names, phrasing
from k2core_nano.train.fact_policies import look_up
from k2core_nano.train.fact_wordings import ATTRIBUTES
from k2core_nano.train.oracle import Policy, Returned, Step, Stopped, final, persist, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.task_wordings import EXTREME_NUMBERS, SORT_FACTS, SORT_NUMBERS
from k2core_nano.train.world import Fact, evaluate

FAMILIES = ("sort", "extreme", "sort-facts")
_DOWN, _LESS = "=down", "=less"
_MEASURED = re.compile(r"kg|seconds|dollars|prices|rents| m long")  # what is never negative


@frozen(kw_only=True)
class Item:
    """Something that is sorted: its name (empty for a bare number), its value, and the calls it rests on."""

    name: str = ""
    value: str
    evidence: tuple[int, ...] = ()

    @property
    def shown(self) -> str:
        """As the answer lists it."""
        return self.name or self.value


@cache
def frames(family: str, terms: str = "") -> tuple[str, ...]:
    """The family's frames, in the words of an attribute."""
    own = {"sort": SORT_NUMBERS, "extreme": EXTREME_NUMBERS, "sort-facts": SORT_FACTS}[family]
    return phrasing.with_macros(own, {"A": terms})


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """One question of `FAMILIES`; levels as of `phrasing.phrase`."""
    if family == "sort-facts":
        return _of_facts(rng, level)
    held_out = level is not None
    template, _ = phrasing.phrase(rng, family, frames(family), level)
    count = rng.choice((3, 3, 3, 4)) if family == "sort" else rng.choice((2, 3, 3, 4))
    while True:
        values = [_number(rng, negative=not _MEASURED.search(template)) for _ in range(count)]
        if len(set(map(evaluate, values))) == count and names.is_held_out(" ".join(values)) == held_out:
            break
    turned = _DOWN in template or _LESS in template
    text = template.replace(_DOWN, "").replace(_LESS, "").format_map({"l": listing(rng, values)})
    items = [Item(value=value) for value in values]
    ordered = sorted(values, key=evaluate, reverse=family == "sort" and turned)
    best = min(values, key=evaluate) if turned else max(values, key=evaluate)
    return Question(
        family=family,
        level=level,
        text=text,
        needed=("calculator",),
        faults=_faults(rng),
        expected=(", ".join(ordered),) if family == "sort" else (best,),
        policy=_sorted_numbers(items, turned) if family == "sort" else _extreme(items, turned),
    )


def listing(rng: random.Random, words: Sequence[str]) -> str:
    """The words as a sentence lists them."""
    return ", ".join(words[:-1]) + rng.choice((" and ", " and ", ", ")) + words[-1]


def _number(rng: random.Random, *, negative: bool) -> str:
    value = str(names.number(rng, 2, 9999))
    return (
        arithmetic.with_decimals(rng, value)
        if rng.random() < 0.2
        else f"-{value}"
        if negative and rng.random() < 0.06
        else value
    )


def _faults(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.choice(("", "", "", "", "", "timeout", "busy")) for _ in range(6))


def _of_facts(rng: random.Random, level: int | None) -> Question:
    held_out = level is not None
    attribute = rng.choice([name for name, words in ATTRIBUTES.items() if words.compared])
    words = ATTRIBUTES[attribute]
    kind = rng.choice(words.kinds)
    rows: list[Fact] = []
    while len(rows) < rng.choice((3, 3, 3, 4)):
        fresh = facts.row(rng, facts.entity(rng, kind, held_out), attribute)
        if all(fresh.entity.lower() != other.entity.lower() and fresh.value != other.value for other in rows):
            rows.append(fresh)
    template, _ = phrasing.phrase(rng, f"sort-facts {attribute}", frames("sort-facts", words.terms), level)
    down = _DOWN in template
    asked = [fact.entity for fact in rows]
    text = template.replace(_DOWN, "").format_map({"l": listing(rng, [facts.in_prose(rng, name) for name in asked])})
    ordered = sorted(rows, key=lambda fact: evaluate(fact.value), reverse=down)
    return Question(
        family="sort-facts",
        level=level,
        text=text[0].upper() + text[1:],
        needed=("facts", "calculator"),
        world=tuple(rows),
        faults=tuple(rng.choice(("", "", "", "", "", "timeout", "negative")) for _ in range(8)),
        expected=(", ".join(fact.entity for fact in ordered),),
        policy=_sorted_facts(attribute, asked, down),
    )


def _way(down: bool) -> str:
    return "down" if down else "up"


def _sorted_numbers(items: Sequence[Item], down: bool) -> Callable[[], Policy]:
    def policy() -> Policy:
        listed = " ".join(item.value for item in items)
        done = yield from _inserted(f"Plan sort {_way(down)}: {listed}.", items, down, 4)
        if isinstance(done, Stopped):
            return stop(done)
        ordered, think, claims = done
        return final(think, f"Sorted: {', '.join(item.shown for item in ordered)}.", claims)

    return policy


def _sorted_facts(attribute: str, asked: Sequence[str], down: bool) -> Callable[[], Policy]:
    def policy() -> Policy:
        unit = ATTRIBUTES[attribute].unit
        think = f"Plan sort {_way(down)} by {attribute}. First {asked[0]}."
        items: list[Item] = []
        claims: list[tuple[Sequence[int], str]] = []
        for place, entity in enumerate(asked):
            found = yield from look_up(entity, attribute, unit, think, 2 if place else 4)
            if isinstance(found, Stopped):
                return stop(found)
            items.append(Item(name=found.entity, value=found.value, evidence=(found.index,)))
            claims.append(found.claim())
            think = f"{found.think} Next {asked[place + 1]}." if place + 1 < len(asked) else found.think
        done = yield from _inserted(think, items, down, 2)
        if isinstance(done, Stopped):
            return stop(done)
        ordered, think, _ = done
        return final(think, f"Sorted: {', '.join(item.shown for item in ordered)}.", claims)

    return policy


Ordered = tuple[list[Item], str, list[tuple[Sequence[int], str]]]


def _inserted(think: str, items: Sequence[Item], down: bool, weight: int) -> Generator[Step, Returned, "Ordered | Stopped"]:
    """Insert item after item; each difference tells on which side of a sorted one the new one stands."""
    ordered = [items[0]]
    claims: list[tuple[Sequence[int], str]] = []
    for item in items[1:]:
        place = len(ordered)
        while place:
            other = ordered[place - 1]
            expression = f"{other.value}-{_bracketed(item.value)}"
            step = Step(f"{think} Insert {item.value}: {expression}.", "calculator", {"expression": expression}, weight)
            returned = yield from persist(step, expression)
            if isinstance(returned, Stopped):
                return returned
            weight = 2
            claims.append(((returned.index,), f"{expression} = {returned.text}"))
            sign, of_first, of_second = signed(returned.text)
            think = f"Got {returned.text}: {sign}: {other.value} {of_first}, {item.value} {of_second}."
            if (sign == "negative") != down:  # it belongs behind the other
                break
            place -= 1
        ordered.insert(place, item)
        think += f" So {' '.join(one.value for one in ordered)}."
    return ordered, think, claims


def _extreme(items: Sequence[Item], less: bool) -> Callable[[], Policy]:
    def policy() -> Policy:
        side = "smaller" if less else "larger"
        think, weight, best = f"Plan find {side}: {' '.join(item.value for item in items)}.", 4, items[0]
        claims: list[tuple[Sequence[int], str]] = []
        for item in items[1:]:
            expression = f"{best.value}-{_bracketed(item.value)}"
            returned = yield from persist(
                Step(f"{think} Compute {expression}.", "calculator", {"expression": expression}, weight), expression
            )
            if isinstance(returned, Stopped):
                return stop(returned)
            weight = 2
            claims.append(((returned.index,), f"{expression} = {returned.text}"))
            sign, of_first, of_second = signed(returned.text)
            think = f"Got {returned.text}: {sign}: {best.value} {of_first}, {item.value} {of_second}."
            best = item if (sign == "negative") != less else best
            think += f" Want {side}: {best.value}."
        return final(think, f"The {'smallest' if less else 'largest'} is {best.value}.", claims)

    return policy


def signed(difference: str) -> tuple[str, str, str]:
    """What a difference tells: its sign, and which side each of the two is on."""
    return ("negative", "smaller", "larger") if difference.startswith("-") else ("positive", "larger", "smaller")


def _bracketed(value: str) -> str:
    return f"({value})" if value.startswith("-") else value
