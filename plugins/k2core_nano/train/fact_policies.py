"""What a perfect agent does with facts questions: look up, add, subtract, compare, and cite every value.

Each policy is a coroutine (see oracle) over the entities as they were asked, which may be misspelt.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial

from attrs import frozen

from k2core_nano.train import names
from k2core_nano.train.fact_wordings import ATTRIBUTES
from k2core_nano.train.oracle import Policy, Returned, Step, Stopped, computed, final, persist, stop


@frozen
class Found:
    """A looked-up value with the names under which it was found and the thought about it."""

    entity: str
    attribute: str
    value: str
    unit: str
    index: int
    think: str

    def claim(self) -> tuple[tuple[int, ...], str]:
        """The claim this look-up supports."""
        unit = f" {self.unit}" if self.unit else ""
        return (self.index,), f"{self.attribute} of {self.entity}: {self.value}{unit}"


def policy(family: str, attribute: str, asked: Sequence[str], *, less: bool) -> Callable[[], Policy]:
    """The policy of one question, to be started afresh for every run.

    Args:
        family: fact, total, difference or compare.
        attribute: a name of ATTRIBUTES.
        asked: entities in the order of the question, one for fact.
        less: whether a comparison wants the smaller value.
    """
    if family == "fact":
        return partial(_one, attribute, asked[0])
    if family == "compare":
        return partial(_compare, attribute, asked, less)
    return partial(_several, family, attribute, asked)


def look_up(name: str, attribute: str, unit: str, think: str, weight: int = 2) -> Generator[Step, Returned, "Found | Stopped"]:
    """Look a value up; answer errors with a synonym or an obvious spelling, refuse a wrong unit or an impossible sign.

    Args:
        unit: in which the value must come; empty for names and counts, which are taken as they are.
        think: the thought before the first call.
        weight: loss weight of the first call's tokens; later ones have 2.
    """
    asked, wanted = attribute, name
    while True:
        step = Step(think, "facts", {"attribute": attribute, "entity": name}, weight)
        returned = yield from persist(step, f"{attribute} of {name}")
        if isinstance(returned, Stopped):
            return returned
        weight = 2
        missing = Stopped("", f"I could not find the {asked} of {wanted}.")
        text = returned.text
        if text.startswith("error: no entity"):
            near = text.partition("Nearest: ")[2].split(", ")[0]
            if not names.is_variant(name, near):
                return Stopped(f"No {name}. Nearest {near} is another name. Stop.", missing.answer)
            think, name = f"No {name}. Nearest {near} is one letter off. Use {near}.", near
            continue
        if text.startswith("error: no attribute"):
            known = [word for word in text.partition("Known: ")[2].split(", ") if word in ATTRIBUTES[asked].synonyms]
            if not known:
                return Stopped(f"No {attribute}. None known is the same. Stop.", missing.answer)
            think, attribute = f"No {attribute}. Known {known[0]} is the same. Use {known[0]}.", known[0]
            continue
        value = text.partition(" [")[0]
        if not unit:
            return Found(name, attribute, value, "", returned.index, f"Got {value}.")
        number, got = value.split(" ")
        if got != unit:
            think = f"Got {value}, want {unit}: differ. Ask again: {attribute} of {name}."
        elif number.startswith("-"):
            think = f"Got {value}: negative, wrong. Ask again: {attribute} of {name}."
        else:
            return Found(name, attribute, number, unit, returned.index, f"Got {value}, want {unit}: same.")


def _one(attribute: str, entity: str) -> Policy:
    found = yield from look_up(entity, attribute, ATTRIBUTES[attribute].unit, f"Look up {attribute} of {entity}.", 4)
    if isinstance(found, Stopped):
        return stop(found)
    return final(found.think, f"The {attribute} of {found.entity} is {found.value}{_tail(attribute)}.", [found.claim()])


def _several(family: str, attribute: str, asked: Sequence[str]) -> Policy:
    think, sign = f"Plan {family} of {attribute}. First {asked[0]}.", "+" if family == "total" else "-"
    found: list[Found] = []
    for place, entity in enumerate(asked):
        item = yield from look_up(entity, attribute, ATTRIBUTES[attribute].unit, think, 2 if place else 4)
        if isinstance(item, Stopped):
            return stop(item)
        found.append(item)
        expression = sign.join(value.value for value in found)
        then = f" Next {asked[place + 1]}." if place + 1 < len(asked) else " Compute."
        think = f"{item.think} Have {expression}.{then}"
    back = "-" if sign == "+" else "+"
    inverse = "R" + back + back.join(value.value for value in found[1:])
    value = yield from computed(think, expression, inverse, found[0].value, 2)
    if isinstance(value, Stopped):
        return stop(value)
    name = f"total {attribute}" if family == "total" else "difference"
    claims = [*(item.claim() for item in found), (value.evidence, f"{expression} = {value.text}")]
    return final(value.think, f"The {name} is {value.text}{_tail(attribute)}.", claims)


def _compare(attribute: str, asked: Sequence[str], less: bool) -> Policy:
    side = "smaller" if less else "larger"
    think = f"Plan compare {attribute}, want {side}. First {asked[0]}."
    found: list[Found] = []
    best = 0
    for place, entity in enumerate(asked):
        item = yield from look_up(entity, attribute, ATTRIBUTES[attribute].unit, think, 2 if place else 4)
        if isinstance(item, Stopped):
            return stop(item)
        found.append(item)
        if place == 0:
            think = f"{item.think} Have {item.value}. Next {asked[1]}."
            continue
        first = found[best]
        expression = f"{first.value}-{item.value}"
        step = Step(f"{item.think} Have {expression}. Compute.", "calculator", {"expression": expression}, 2)
        returned = yield from persist(step, expression)
        if isinstance(returned, Stopped):
            return stop(returned)
        negative = returned.text.startswith("-")
        if negative != less:
            best = place
        sign, of_first, of_second = ("negative", "smaller", "larger") if negative else ("positive", "larger", "smaller")
        think = f"Got {returned.text}: {sign}: {first.entity} {of_first}, {item.entity} {of_second}."
        think += f" Want {side}: {found[best].entity} {found[best].value}."
        think += f" Next {asked[place + 1]}." if place + 1 < len(asked) else ""
    winner = found[best]
    text = f"{winner.entity} has the {side} {attribute}: {winner.value}{_tail(attribute)}."  # the others' are in the claims
    return final(think, text, [item.claim() for item in found])


def _tail(attribute: str) -> str:
    unit = ATTRIBUTES[attribute].unit
    return f" {unit}" if unit else ""
