"""Chains: each look-up names where the next one goes, until a place is reached or so many steps are made.

A long chain does not fit into the context: old steps are gone, so every thought carries what is still needed. The number of a
call, which each result repeats, counts the steps.
"""

import itertools
import random
from collections.abc import Callable, Generator
from functools import cache

from attrs import define

from k2core_nano.train import names, phrasing
from k2core_nano.train.oracle import (
    FAILURES,
    TOOL_FAILS,
    Policy,
    Returned,
    Step,
    Stopped,
    compared,
    final,
    is_failure,
    persist,
    stop,
)  # fmt: skip
from k2core_nano.train.questions import Question
from k2core_nano.train.task_wordings import CHAIN_ATTRIBUTES, CHAIN_COUNT, CHAIN_STEPS
from k2core_nano.train.world import Fact

FAMILIES = ("chain-count", "chain-steps")
SHORT = 12  # calls of a chain in the mix at most; longer ones are drawn as windows


@cache
def frames(family: str) -> tuple[str, ...]:
    """The family's frames."""
    return phrasing.with_macros(CHAIN_COUNT if family == "chain-count" else CHAIN_STEPS, {})


def question(rng: random.Random, family: str, level: int | None, *, length: int | None = None) -> Question:
    """A chain of *length* look-ups; levels as of `phrasing.phrase`.

    Args:
        family: ``chain-count`` asks how many steps it is to a place, ``chain-steps`` where so many steps lead.
        length: 2 to `SHORT` where it is None.
    """
    held_out = level is not None
    length = length or rng.randint(2, SHORT)
    attribute = rng.choice(tuple(CHAIN_ATTRIBUTES))
    places: list[str] = []
    seen: set[str] = set()
    while len(places) <= length:
        name = names.invented(rng, held_out)
        if places and rng.random() < 0.08:  # names that begin alike
            name = (places[-1][:3] + name[1:])[:11]
            if names.is_held_out(name) != held_out:
                continue
        if name not in seen:
            seen.add(name)
            places.append(name)
    sources = [rng.choice(("Survey", "Register", "Atlas"))]
    world = tuple(
        Fact(entity=place, attribute=attribute, value=then, unit="", source=rng.choice(sources), year="")
        for place, then in itertools.pairwise(places)
    )
    counts = family == "chain-count"
    template, _ = phrasing.phrase(rng, family, frames(family), level)
    text = template.format_map(
        {"e": places[0], "f": places[-1], "n": str(length), "a": attribute, "thing": CHAIN_ATTRIBUTES[attribute]}
    )
    return Question(
        family=family,
        level=level,
        text=text,
        needed=("facts", "calculator") if counts else ("facts",),
        world=world,
        faults=tuple(rng.choice(("timeout", "busy")) if rng.random() < 0.06 else "" for _ in range(2 * length)),
        expected=(str(length),) if counts else (places[-1],),
        policy=_counted(attribute, places[0], places[-1]) if counts else _walked(attribute, places[0], length),
    )


@define
class Trail:
    """What a chain's thoughts carry on, whatever is still in the context.

    Attributes:
        place: where the chain has come to.
        think, weight: of the next look-up.
        first: number of the first call, -1 before it.
        failed: calls so far that failed.
    """

    place: str
    think: str
    weight: int = 4
    first: int = -1
    failed: int = 0


def _followed(attribute: str, trail: Trail, kept: Callable[[], str]) -> Generator[Step, Returned, "Returned | Stopped"]:
    """One look-up, asked for again while the tool fails; the trail moves on. *kept* is what such a thought carries on."""
    arguments: dict[str, object] = {"attribute": attribute, "entity": trail.place}
    returned = yield Step(trail.think, "facts", arguments, trail.weight)
    trail.first = returned.index if trail.first < 0 else trail.first
    trail.weight, tries = 2, 0
    while is_failure(returned.text):
        trail.failed += 1
        tries += 1
        if tries == FAILURES:
            return Stopped(f"Failure {tries}. Stop.", TOOL_FAILS)
        again = f"Failure {tries}. Try again: {attribute} of {trail.place}, {kept()}."
        returned = yield Step(again, "facts", arguments)
    if returned.text.startswith("error: "):
        return Stopped(f"No {attribute}. Stop.", f"I could not find the {attribute} of {trail.place}.")
    trail.place = returned.text.partition(" [")[0]
    return returned


def _counted(attribute: str, start: str, end: str) -> Callable[[], Policy]:
    """Follow the chain until *end*, then count: the last call's number, less the first one's and the failures."""

    def policy() -> Policy:
        trail = Trail(start, f"Plan follow {attribute} from {start} until {end}.")
        while True:
            returned = yield from _followed(attribute, trail, lambda: f"want {end}, {_kept(trail)}")
            if isinstance(returned, Stopped):
                return stop(returned)
            written, same = compared(trail.place, end)
            think = f"Got {trail.place}, want {end}: {written}, {_kept(trail)}."
            if same:
                break
            trail.think = f"{think} Next."
        claim = ((returned.index,), f"{attribute}: {trail.place}")
        expression = f"{returned.index}+1-{trail.first}-{trail.failed}"
        counted = yield from persist(Step(f"{think} Count {expression}.", "calculator", {"expression": expression}), expression)
        if isinstance(counted, Stopped):
            return stop(counted)
        steps = counted.text
        return final(f"Got {steps}.", f"It takes {steps} steps.", [claim, ((counted.index,), f"{expression} = {steps}")])

    return policy


def _walked(attribute: str, start: str, length: int) -> Callable[[], Policy]:
    """Follow the chain for so many calls; each failure moves the last one on."""

    def policy() -> Policy:
        trail = Trail(start, f"Plan follow {attribute} from {start}, {length} steps.")
        while True:
            returned = yield from _followed(attribute, trail, lambda: f"last call {_last(trail, length)}")
            if isinstance(returned, Stopped):
                return stop(returned)
            last = _last(trail, length)
            written, same = compared(str(returned.index), str(last))
            think = f"Got {trail.place}, call {returned.index}, last call {last}: {written}."
            if same:
                break
            trail.think = f"{think} Next."
        text = f"After {length} steps: {trail.place}."
        return final(think, text, [((returned.index,), f"{attribute}: {trail.place}")])

    return policy


def _last(trail: Trail, length: int) -> int:
    """The number of the call behind which so many have succeeded."""
    return trail.first + length - 1 + trail.failed


def _kept(trail: Trail) -> str:
    """The number of the chain's first call, and how many calls failed."""
    return f"from {trail.first}, failed {trail.failed}"
