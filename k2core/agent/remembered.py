"""What became of a run's memory, from its events: what was kept, hidden, left out, rolled back and recalled."""

from collections.abc import Iterable, Sequence
from typing import Literal

from attrs import define, field, frozen

from k2core.agent.kept import notes_of
from k2core.events import NoteKept, Recalled, ResultsHidden, Stalled, StepsLeftOut, Stored, ToolReturned, TurnEnded

What = Literal["note", "pinned", "remembered", "hidden", "left out", "rolled back", "recalled"]


@frozen(kw_only=True)
class Remembered:
    """One thing that was kept, taken from what the model sees, or given back to it.

    Attributes:
        event: number of the event that says so.
        what: ``note``, ``pinned`` and ``remembered`` (a text in the place of steps) are kept; ``hidden`` (results),
            ``left out`` and ``rolled back`` (steps) are taken; ``recalled`` is given back.
        by: the memory that said so, ``model`` for what the model asked for, ``framework`` for a roll-back.
        calls: numbers of the calls; of a text all that it stands for.
        characters: of what was kept, taken or given back.
        text: what was kept; empty of the others.
    """

    event: int
    what: What
    by: str
    calls: tuple[int, ...]
    characters: int
    text: str = ""


@define
class _Sizes:
    """Characters of each call's step and of its result, and what is taken already."""

    steps: dict[int, int] = field(factory=dict)
    results: dict[int, int] = field(factory=dict)
    gone: set[int] = field(factory=set)
    hidden: set[int] = field(factory=set)
    called: int = 0

    def see(self, event: object) -> None:
        if isinstance(event, TurnEnded):
            said = len(event.reasoning or "") + len(event.content)
            for place, call in enumerate(event.calls):
                self.steps[self.called + place] = len(call.arguments) + (said if place == 0 else 0)
            self.called += len(event.calls)
        elif isinstance(event, ToolReturned):
            self.results[event.index] = len(event.text)

    def hide(self, calls: Iterable[int]) -> tuple[tuple[int, ...], int]:
        """Those of *calls* whose results are hidden only now, and their characters."""
        fresh = tuple(one for one in sorted(set(calls)) if one not in self.hidden | self.gone)
        self.hidden.update(fresh)
        return fresh, sum(self.results.get(one, 0) for one in fresh)

    def take(self, calls: Iterable[int]) -> tuple[tuple[int, ...], int]:
        """Those of *calls* whose steps are taken only now, and what the model has seen of them up to then."""
        fresh = tuple(one for one in sorted(set(calls)) if one not in self.gone)
        self.gone.update(fresh)
        seen = (self.steps.get(one, 0) + (0 if one in self.hidden else self.results.get(one, 0)) for one in fresh)
        return fresh, sum(seen)


def remembered(events: Sequence[Stored]) -> list[Remembered]:
    """Everything that happened to a run's memory, in order."""
    found: list[Remembered] = []
    sizes, makers = _Sizes(), iter(notes_of(events))
    for stored in events:
        at, event = stored.sequence, stored.event
        sizes.see(event)
        calls: tuple[int, ...]
        if isinstance(event, NoteKept):
            index, text = next(makers)
            calls = () if index is None else (index,)
            found.append(Remembered(event=at, what="note", by="model", calls=calls, characters=len(text), text=text))
        elif isinstance(event, ResultsHidden | StepsLeftOut):
            found += _room(at, event, sizes)
        elif isinstance(event, Stalled) and event.action == "roll-back":
            calls, characters = sizes.take(event.calls)
            found.append(Remembered(event=at, what="rolled back", by="framework", calls=calls, characters=characters))
        elif isinstance(event, Recalled):
            given = Remembered(event=at, what="recalled", by="model", calls=(event.call,), characters=event.characters)
            found.append(given)
    return found


def _room(at: int, event: ResultsHidden | StepsLeftOut, sizes: _Sizes) -> list[Remembered]:
    """What one event took, and what it kept."""
    by, found = event.by or "window", []
    if isinstance(event, StepsLeftOut):
        calls, characters = sizes.take(range(event.through + 1))
        found.append(Remembered(event=at, what="left out", by=by, calls=calls, characters=characters))
    calls, characters = sizes.hide(event.calls if isinstance(event, ResultsHidden) else event.hidden)
    if calls:
        found.append(Remembered(event=at, what="hidden", by=by, calls=calls, characters=characters))
    found += [Remembered(event=at, what="pinned", by=by, calls=(), characters=len(one), text=one) for one in event.pinned]
    if event.text:
        stands_for = tuple(sorted(sizes.gone | sizes.hidden))
        text = event.text
        found.append(Remembered(event=at, what="remembered", by=by, calls=stands_for, characters=len(text), text=text))
    return found
