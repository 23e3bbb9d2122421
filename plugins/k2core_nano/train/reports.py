"""Short reports: one or two attributes of several entities, looked up one by one, as a table that cites the calls."""

import random
from collections.abc import Callable, Sequence
from functools import cache

from k2core_nano.train import facts, phrasing
from k2core_nano.train.fact_policies import Found, look_up
from k2core_nano.train.fact_wordings import ATTRIBUTES
from k2core_nano.train.oracle import Policy, Stopped, final, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.sorting import listing
from k2core_nano.train.task_wordings import REPORT

FAMILY = "report"


def question(rng: random.Random, level: int | None) -> Question:
    """A report; levels as of `phrasing.phrase`."""
    held_out = level is not None
    first = rng.choice(list(ATTRIBUTES))
    kind = rng.choice(ATTRIBUTES[first].kinds)
    second = rng.choice([name for name, words in ATTRIBUTES.items() if kind in words.kinds and name != first] or [first])
    macros = {"A": ATTRIBUTES[first].terms, "B": ATTRIBUTES[second].terms}
    frames = REPORT if second != first else tuple(frame for frame in REPORT if "<B>" not in frame)
    place, template = _drawn(rng, frames, macros, f"report {first} {second}", level)
    attributes = (first, second) if "<B>" in frames[place] else (first,)
    count = rng.choice((2, 2, 3)) if len(attributes) == 2 else rng.choice((2, 3, 3, 4))
    asked: list[str] = []
    while len(asked) < count:
        name = facts.entity(rng, kind, held_out)
        if all(name.lower() != other.lower() for other in asked):
            asked.append(name)
    world = tuple(facts.row(rng, name, attribute) for name in asked for attribute in attributes)
    text = template.format_map({"l": listing(rng, [facts.in_prose(rng, name) for name in asked])})
    return Question(
        family=FAMILY,
        level=level,
        text=text[0].upper() + text[1:],
        needed=("facts",),
        world=world,
        faults=tuple(rng.choice(("", "", "", "", "", "", "timeout", "busy", "negative")) for _ in range(12)),
        expected=tuple(row.value for row in world),
        policy=_policy(attributes, asked),
    )


def _drawn(
    rng: random.Random, frames: Sequence[str], macros: dict[str, str], family: str, level: int | None
) -> tuple[int, str]:
    """A frame's place and its text, drawn as `phrasing.phrase` does."""
    template, place = phrasing.phrase(rng, family, _marked(tuple(frames), *sorted(macros.items())), level)
    return int(place), template


@cache
def _marked(frames: tuple[str, ...], *macros: tuple[str, str]) -> tuple[str, ...]:
    """The frames with their macros expanded and their places as the unit of the answer."""
    return tuple(f"{frame}=>{place}" for place, frame in enumerate(phrasing.with_macros(frames, dict(macros))))


def _policy(attributes: Sequence[str], asked: Sequence[str]) -> Callable[[], Policy]:
    def policy() -> Policy:
        wanted = [(entity, attribute) for entity in asked for attribute in attributes]
        think = f"Plan report: {' and '.join(attributes)} of {len(asked)}. First {attributes[0]} of {asked[0]}."
        found: list[Found] = []
        for place, (entity, attribute) in enumerate(wanted):
            item = yield from look_up(entity, attribute, ATTRIBUTES[attribute].unit, think, 2 if place else 4)
            if isinstance(item, Stopped):
                return stop(item)
            found.append(item)
            then = wanted[place + 1] if place + 1 < len(wanted) else None
            think = f"{item.think} Next {then[1]} of {then[0]}." if then else f"{item.think} All found. Write the table."
        return final(think, table(attributes, found), [item.claim() for item in found], weight=3)

    return policy


def table(attributes: Sequence[str], found: Sequence[Found]) -> str:
    """The report: a head line and a Markdown table whose cells name the calls they come from."""
    lines = [f"| name | {' | '.join(attributes)} |", "|---" * (len(attributes) + 1) + "|"]
    for place in range(0, len(found), len(attributes)):
        row = found[place : place + len(attributes)]
        cells = (f"{one.value}{f' {one.unit}' if one.unit else ''} [{one.index}]" for one in row)
        lines.append(f"| {row[0].entity} | {' | '.join(cells)} |")
    return "\n".join(lines)
