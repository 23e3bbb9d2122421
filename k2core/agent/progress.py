"""No endless loops: a step makes progress when it brings new information; too many without any are answered with firmness.

A call brings nothing new when it was made before and gives what it gave before, or when a tool that only looks (pure, read)
answers other arguments with a text that it has given already, the arguments in it aside. Such steps in a row are counted,
those of the second kind by a quarter, since different questions may well have the same answer, unless an argument merely
contains the one before. Then, in this order:

    STEER      the tool may not be called in the next turn; where it is the only one, the calls made so far may not
    ROLL_BACK  the steps since the last progress leave the conversation, and a note says so
    STOP       the model is told to conclude

So a run ends at the latest `STOP` / `SIMILAR` calls and a few turns after its last progress. A model that no mask holds may
still make a call it must not make: that one is answered from the log.
"""

import json
from collections.abc import Iterable
from typing import Any

from attrs import define, field

from k2core.events import MessageAdded, RunResumed, Stalled, Stored, ToolIntent, ToolReturned
from k2core.interfaces import Effect

STEER, ROLL_BACK, STOP = 2.0, 4.0, 6.0
SIMILAR = 0.25  # what another question with a known answer counts
GROWN = 3  # characters from which on an argument counts that is contained in the next one
NOT_MADE = "same_as"  # in a result's details: the call was answered from the log, or refused, because it brings nothing new
LOOKING: tuple[Effect, ...] = ("pure", "read")
ASIDE = ("answer",)  # has limits of its own
KNOWN = ("recall",)  # what it brings is nothing new, and no fault either where it is asked for the first time


@define
class Progress:
    """What the calls of one question have brought so far.

    Attributes:
        idle: how much since the last progress brought nothing new.
        since: number of the first call since then.
        told: how far the model was told already: the highest bound that was acted upon since then.
        made: every call so far with its number and what came back.
    """

    idle: float = 0.0
    since: int = 0
    told: float = 0.0
    made: dict[tuple[str, str], tuple[int, str]] = field(factory=dict)
    written: dict[tuple[str, str], tuple[str, str]] = field(factory=dict)  # as the model wrote it, for the newest spelling
    _outcomes: set[tuple[str, str]] = field(factory=set)

    @classmethod
    def of(cls, events: Iterable[Stored]) -> "Progress":
        """Of the events of a question."""
        progress, intents = cls(), dict[int, ToolIntent]()
        for stored in events:
            event = stored.event
            if isinstance(event, MessageAdded) and event.role == "user":
                progress = cls()
            elif isinstance(event, ToolIntent):
                intents[event.index] = event
            elif isinstance(event, ToolReturned) and event.index in intents:
                progress.see(intents[event.index], event)
            elif isinstance(event, RunResumed) and event.without:
                progress.idle = progress.told = 0.0
            elif isinstance(event, Stalled):
                progress.told = max(progress.told, event.idle)
        return progress

    def see(self, intent: ToolIntent, returned: ToolReturned) -> None:
        """Account for a call and what came back."""
        if intent.name in ASIDE:
            return
        if NOT_MADE in returned.details:
            self.idle += 1.0
            return
        text = returned.text
        arguments = canonical(intent.arguments)
        call, outcome = (intent.name, arguments), (intent.name, _without(text, intent.arguments))
        before = self.made.get(call)
        if before is not None and before[1] == text:
            step = 1.0
        elif intent.name in KNOWN:
            step = 0.0
        elif before is None and outcome in self._outcomes and intent.effect in LOOKING:
            step = 1.0 if self._is_grown(call) else SIMILAR
        else:
            step, self.idle, self.told, self.since = 0.0, 0.0, 0.0, intent.index + 1
        self.idle += step
        self.made.pop(call, None)
        self.made[call] = (intent.index, text)  # the newest is the last
        self.written[call] = (intent.name, intent.arguments)
        self._outcomes.add(outcome)

    def _is_grown(self, call: tuple[str, str]) -> bool:
        """Whether an argument of the newest call is contained in one of this."""
        if not self.made or next(reversed(self.made))[0] != call[0]:
            return False
        old, new = (_strings(arguments) for arguments in (next(reversed(self.made))[1], call[1]))
        return any(len(one) >= GROWN and one != other and one in other for one in old for other in new)

    def before(self, name: str, arguments: str) -> tuple[int, str] | None:
        """Number and result of the same call, where it was made before."""
        return self.made.get((name, canonical(arguments)))


def canonical(arguments: str) -> str:
    """The arguments in one spelling; text that is no JSON as it is."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return arguments


def _without(text: str, arguments: str) -> str:
    """*text* with the arguments' values taken out, so that an echo of them is nothing new."""
    for value in sorted({one for one in _strings(arguments) if one}, key=len, reverse=True):
        text = text.replace(value, "\0")
    return text


def _strings(arguments: str) -> list[str]:
    """The arguments' values as text; arguments that are no JSON whole."""
    try:
        return _leaves(json.loads(arguments))
    except (ValueError, RecursionError):
        return [arguments]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value if isinstance(value, str) else json.dumps(value)]
