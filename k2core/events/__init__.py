"""The stream of a run: what the agent yields, the journal stores, every face renders and replay reads again.

Two kinds of things travel in one stream:

- `Stored`: an event with its run, sequence number and time; it is in the journal, durably, when you see it.
- `Live`: a provisional piece (a streamed delta, a status line); never journalled, forgotten once its turn is stored.

Each event is a frozen record with a ``kind`` and versioned JSON: ``event.to_json()`` and `event_from_json`. A kind, or a
version of a kind, that this k2core does not know is kept as `UnknownEvent` and written back unchanged.

In the order of a run, where swap is model.switched, swapped, or a warning of a swap that was refused::

    run.started message* swap* (swap* turn (swap* tool.intent tool.result)* note? swap* verdict?)*
    budget? warning* swap* answer run.ended swap*

A run may stop anywhere. It goes on with run.resumed; a call whose result is missing then gets one, after tool.again, or after
decision.needed run.ended call.decided run.resumed. A call that needs approval is decision.needed (run.ended) call.decided
(run.resumed) tool.begun tool.result; what guards did stands before what follows from it, as events of the kind guard. A fork
begins with as many events of another run as its run.forked says. Before a turn, room may be made in the model's context: hidden
or left-out, behind a warning where a memory failed. What a call of recall is given stands behind its recalled.
"""

from collections.abc import Mapping
from typing import Any, cast, get_args

from attrs import frozen

from k2core.errors import FormatError
from k2core.events.answers import AnswerGiven, AnswerStatus, BudgetReached, ClaimEvidence, Known, Partial, VerdictGiven
from k2core.events.base import EVENT_FORMAT, Journalled
from k2core.events.calls import (
    About,
    Artefact,
    CallDecided,
    Decision,
    DecisionNeeded,
    ToolAgain,
    ToolBegun,
    ToolIntent,
    ToolReturned,
)
from k2core.events.guards import GuardActed
from k2core.events.memory import NoteKept, Recalled, ResultsHidden, Stalled, StepsLeftOut
from k2core.events.paths import PathChosen, PathEnded, PathStarted
from k2core.events.planning import HypothesisStated, HypothesisStatus, PlanMade, PlanStep, StepStatus
from k2core.events.run import (
    LimitsChanged,
    MessageAdded,
    ModelSwitched,
    Part,
    RunEnded,
    RunForked,
    RunResumed,
    RunStarted,
    Swapped,
    TurnEnded,
    Warned,
)
from k2core.messages import Delta

__all__ = [
    "EVENT_FORMAT", "KINDS", "About", "AnswerGiven", "AnswerStatus", "Artefact", "BudgetReached", "CallDecided",
    "ClaimEvidence", "Decision", "DecisionNeeded", "Event", "GuardActed", "HypothesisStated", "HypothesisStatus", "Journalled",
    "Known", "LimitsChanged", "Live", "MessageAdded", "ModelSwitched", "NoteKept", "Part", "Partial", "PathChosen", "PathEnded",
    "PathStarted", "PlanMade", "PlanStep", "Recalled", "ResultsHidden", "RunEnded", "RunForked", "RunResumed", "RunStarted",
    "Stalled", "StatusLine", "StepStatus", "StepsLeftOut", "Stored", "Swapped", "ToolAgain", "ToolBegun", "ToolIntent",
    "ToolReturned", "TurnEnded", "UnknownEvent", "VerdictGiven", "Warned", "event_from_json",
]  # fmt: skip


@frozen(kw_only=True)
class UnknownEvent:
    """An event of a kind or version that this k2core does not know.

    Attributes:
        kind: its kind.
        body: the whole JSON object, ``kind`` and ``v`` included.
    """

    kind: str
    body: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object it came from, unchanged."""
        return dict(self.body)


Event = (
    RunStarted
    | MessageAdded
    | ModelSwitched
    | Swapped
    | TurnEnded
    | ToolIntent
    | ToolReturned
    | ToolAgain
    | ToolBegun
    | DecisionNeeded
    | CallDecided
    | GuardActed
    | RunResumed
    | RunForked
    | LimitsChanged
    | NoteKept
    | ResultsHidden
    | StepsLeftOut
    | Recalled
    | PathStarted
    | PathEnded
    | PathChosen
    | PlanMade
    | HypothesisStated
    | Stalled
    | VerdictGiven
    | BudgetReached
    | Warned
    | AnswerGiven
    | RunEnded
    | UnknownEvent
)

KINDS: Mapping[str, type[Journalled]] = {one.kind: one for one in get_args(Event) if issubclass(one, Journalled)}


@frozen(kw_only=True)
class Stored:
    """An event that is in the journal.

    Attributes:
        run: id of the run.
        sequence: its number within the run, from 1, without gaps.
        time: UTC, ISO 8601 with milliseconds, e.g. ``2026-11-24T00:26:39.123Z``.
        event: the event.
    """

    run: str
    sequence: int
    time: str
    event: Event

    def to_json(self) -> dict[str, Any]:
        """The event's object with ``run``, ``sequence`` and ``time`` in front."""
        return {"run": self.run, "sequence": self.sequence, "time": self.time, **self.event.to_json()}


@frozen(kw_only=True)
class StatusLine:
    """Something slow is going on, e.g. ``compiling kernels (once)``, 7 of 14.

    Attributes:
        text: what happens.
        done: steps finished, None when they are not counted.
        total: steps in all, None when they are not counted.
    """

    text: str
    done: int | None = None
    total: int | None = None

    def __str__(self) -> str:
        return self.text if self.done is None or self.total is None else f"{self.text}: {self.done} of {self.total}"


@frozen(kw_only=True)
class Live:
    """A provisional piece of the stream; never journalled."""

    delta: Delta | StatusLine


def event_from_json(data: Mapping[str, Any]) -> Event:
    """The event that `to_json` wrote.

    Fields that a known kind does not have are ignored; a kind or version that is not known gives an `UnknownEvent`.

    Raises:
        FormatError: *data* has no ``kind``, or a field of a known kind is missing or of the wrong type; names the kind
            and the field.
    """
    import msgspec

    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str):
        raise FormatError('an event has no \'kind\'; expected an object such as {"v":1,"kind":"note","text":"…"}')
    known = KINDS.get(kind)
    if known is None or data.get("v") != EVENT_FORMAT:
        return UnknownEvent(kind=kind, body=dict(data))
    try:
        return cast("Event", msgspec.convert(data, type=known))
    except msgspec.ValidationError as error:
        raise FormatError(f"event '{kind}' is malformed: {error}") from error
