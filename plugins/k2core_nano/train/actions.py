"""An inventory of everyday tools, from which training and evaluation draw tools that a model has not seen.

A file of actions holds one per block of lines: ``n`` its stem, ``d`` descriptions, ``p`` a parameter, ``q`` questions, ``h``
held-out questions, ``r`` results; ``k`` are the values of a kind, ``x`` actions that are too alike to be declared together. So
are some of different files. A sixth of the actions, by the crc32 of the stem, is drawn by evaluation alone.
"""

import random
import re
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from attrs import frozen

from k2core_nano.train import arithmetic, names

FILES = ("home", "work")  # actions_home.txt, actions_work.txt
NAMED = {"person": names.PEOPLE, "country": names.COUNTRIES}  # kinds whose held-out names training never draws
_MADE_UP = ("city", "town", "station", "company", "school")  # names of these are mostly invented


@frozen(kw_only=True)
class Parameter:
    """One parameter: its name, its JSON type, what it is in a few words, and what its values are drawn from."""

    name: str
    type: str
    about: str
    choices: tuple[str, ...] = ()
    kind: str = ""
    low: int = 0
    high: int = 0

    def drawn(self, rng: random.Random, file: str, held_out: bool) -> str:
        """A value, as it is written in a question."""
        if self.choices:
            return rng.choice(self.choices)
        if self.type == "integer":
            return str(names.number(rng, self.low, self.high) if self.low >= 0 else rng.randint(self.low, self.high))
        if self.type == "number":
            return arithmetic.with_decimals(rng, str(rng.randint(self.low, max(self.low, self.high - 1))))
        return value_of(rng, file, self.kind, held_out)

    def value(self, text: str) -> object:
        """The value as JSON has it."""
        return int(text) if self.type == "integer" else float(text) if self.type == "number" else text

    def schema(self, described: bool) -> dict[str, object]:
        """The parameter's JSON Schema."""
        own: dict[str, object] = {"type": self.type}
        if self.choices:
            own["enum"] = list(self.choices)
        if described and self.about:
            own["description"] = self.about
        return own


@frozen(kw_only=True)
class Action:
    """What a tool does, however it is named."""

    file: str
    stem: str
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    held_out_asks: tuple[str, ...]
    results: tuple[str, ...]

    def values(self, rng: random.Random, held_out: bool) -> dict[str, str]:
        """Values of all parameters, no two the same."""
        while True:
            drawn = {one.name: one.drawn(rng, self.file, held_out) for one in self.parameters}
            if len(set(drawn.values())) == len(drawn):
                return drawn

    @property
    def is_held_out(self) -> bool:
        """Whether only evaluation draws it."""
        return zlib.crc32(self.stem.encode()) % 6 == 0


@frozen(kw_only=True)
class Inventory:
    """One file: its actions, the values of its kinds, and sets of actions that are too alike."""

    actions: tuple[Action, ...]
    kinds: Mapping[str, tuple[str, ...]]
    alike: tuple[frozenset[str], ...]


@cache
def inventory(file: str) -> Inventory:
    """What one of `FILES` holds."""
    found: list[Action] = []
    kinds: dict[str, tuple[str, ...]] = {}
    alike: list[frozenset[str]] = []
    for block in re.split(r"\n\s*\n", (Path(__file__).parent / f"actions_{file}.txt").read_text(encoding="utf-8")):
        lines: dict[str, list[str]] = {}
        for line in block.strip().splitlines():
            lines.setdefault(line[0], []).append(line[2:].strip())
        for line in lines.get("k", []):
            kind, _, values = line.partition(" ")
            kinds[kind] = (*kinds.get(kind, ()), *_parts(values, ";"))
        alike += [frozenset(line.split()) for line in lines.get("x", [])]
        if "n" in lines:
            found.append(_action(file, lines))
    return Inventory(actions=tuple(found), kinds=kinds, alike=tuple(alike))


@cache
def actions(file: str, held_out: bool) -> tuple[Action, ...]:
    """A file's actions of one side of the split."""
    return tuple(action for action in inventory(file).actions if action.is_held_out == held_out)


def too_alike(one: Action, other: Action) -> bool:
    """Whether a question for one may fit the other."""
    return one.file != other.file or any({one.stem, other.stem} <= set_ for set_ in inventory(one.file).alike)


def value_of(rng: random.Random, file: str, kind: str, held_out: bool) -> str:
    """A value of a kind: a listed one, or for names an invented one."""
    listed = inventory(file).kinds.get(kind, ())
    if kind in NAMED:
        return names.listed(rng, NAMED[kind], held_out) if rng.random() < 0.6 else names.invented(rng, held_out)
    if not listed or (kind in _MADE_UP and rng.random() < 0.7):
        return names.invented(rng, held_out)
    own = [value for value in listed if names.is_held_out(value) == held_out]
    return rng.choice(own or listed)


def _action(file: str, lines: Mapping[str, list[str]]) -> Action:
    descriptions, asks, held_out, results = (
        tuple(one for line in lines.get(letter, []) for one in _parts(line, " / ")) for letter in "dqhr"
    )
    return Action(
        file=file,
        stem=lines["n"][0],
        descriptions=descriptions,
        parameters=tuple(_parameter(line) for line in lines.get("p", [])),
        asks=asks,
        held_out_asks=held_out,
        results=results,
    )


def _parameter(line: str) -> Parameter:
    head, _, about = line.partition(" how:")
    name, kind = head.split(" ", 1)
    type_, _, rest = kind.strip().partition(":")
    if type_ == "enum":
        return Parameter(name=name, type="string", about=about, choices=tuple(rest.split("|")))
    if type_ in ("int", "num"):
        low, high = re.fullmatch(r"(-?[\d.]+)-(-?[\d.]+)", rest).groups()  # type: ignore[union-attr]
        type_ = "integer" if type_ == "int" else "number"
        return Parameter(name=name, type=type_, about=about, low=int(float(low)), high=int(float(high)))
    return Parameter(name=name, type="string", about=about, kind=rest)


def _parts(text: str, mark: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())
