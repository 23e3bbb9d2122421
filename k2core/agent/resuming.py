"""Where a run stands, from its events alone: what its last question has used, and what is to be done next.

A run may have been cut off anywhere: by a kill, an error, Ctrl-C, a decision that it waits for. Nothing but the log is needed
to go on.
"""

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen

from k2core.errors import InputError
from k2core.events import (
    AnswerGiven,
    BudgetReached,
    CallDecided,
    DecisionNeeded,
    GuardActed,
    MessageAdded,
    ResultsHidden,
    RunEnded,
    RunForked,
    RunResumed,
    RunStarted,
    StepsLeftOut,
    Stored,
    ToolIntent,
    ToolReturned,
    TurnEnded,
    VerdictGiven,
)
from k2core.messages import Usage

NOT_RUN = "error: not run: "  # what the result of a call says that was not made
UNFINISHED = ("partial", "failed")  # answers that a larger budget, or another try, may better


@frozen(kw_only=True)
class Spent:
    """What the last question has used so far.

    Attributes:
        calls: begun.
        usages: of its turns, and of what a memory asked the model.
        tokens: generated.
        seconds: of work; while nobody worked on it no time passed.
        attempts: answers that were verified.
        silences: turns at the end that were empty or cut.
    """

    calls: int = 0
    usages: tuple[Usage, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    attempts: int = 0
    silences: int = 0


def of_question(events: Sequence[Stored]) -> Sequence[Stored]:
    """The events from the last question on; all where there is none."""
    for place in range(len(events) - 1, -1, -1):
        event = events[place].event
        if isinstance(event, MessageAdded) and event.role == "user":
            return events[place:]
    return events


def since_resumed(events: Sequence[Stored]) -> Sequence[Stored]:
    """The events of the last question since work on it went on last with something left out."""
    asked = of_question(events)
    last = (place for place, one in enumerate(asked) if isinstance(one.event, RunResumed) and one.event.without)
    return asked[max(last, default=0) :]


def is_asked(events: Sequence[Stored]) -> bool:
    """Whether the run has a question in its conversation."""
    return any(isinstance(one.event, MessageAdded) and one.event.role == "user" for one in events)


def question_of(events: Sequence[Stored]) -> str:
    """The first question, as the run began with it."""
    return next((one.event.question for one in events if isinstance(one.event, RunStarted)), "")


def last_answer(events: Sequence[Stored]) -> AnswerGiven | None:
    """The answer of the last question, unless work on it went on afterwards."""
    for stored in reversed(of_question(events)):
        if isinstance(stored.event, AnswerGiven):
            return stored.event
        if isinstance(stored.event, RunResumed | TurnEnded):
            return None
    return None


def is_ended(events: Sequence[Stored]) -> bool:
    """Whether nobody works on the run any more: its last question's end is in the log."""
    for stored in reversed(of_question(events)):
        if isinstance(stored.event, RunEnded):
            return True
        if isinstance(stored.event, RunResumed | TurnEnded):
            return False
    return False


def see_unfinished(run: str, events: Sequence[Stored]) -> None:
    """Whether there is something to resume.

    Raises:
        InputError: the last question is answered for good.
    """
    answer = last_answer(events)
    if answer is not None and is_ended(events) and answer.status not in UNFINISHED:
        raise InputError(
            f"cannot resume run {run}: its last question is done ({answer.status}). "
            f'Ask another with k2 run -c {run} "…", or fork it: k2 runs fork {run}@STEP'
        )


def concluding_from(events: Sequence[Stored]) -> int:
    """Number of the event with which the model was told to conclude, or was concluded for it; 0 where it is still at work."""
    answer = last_answer(events)
    for stored in since_resumed(events):
        if isinstance(stored.event, BudgetReached):
            return stored.sequence
        if isinstance(stored.event, MessageAdded) and stored.event.role == "assistant" and answer is not None:
            return stored.sequence
    return 0


def last_turn(events: Sequence[Stored]) -> TurnEnded | None:
    """The turn to act upon: the newest of the last question, unless it was interrupted, left out or answered by a message."""
    for stored in reversed(of_question(events)):
        event = stored.event
        if isinstance(event, RunResumed) and event.without:
            return None
        if isinstance(event, TurnEnded):
            return None if event.finish_reason == "cancelled" else event
        if isinstance(event, MessageAdded) and event.role != "assistant":
            return None
    return None


def spent(events: Sequence[Stored]) -> Spent:
    """What the last question has used."""
    asked = of_question(events)
    turns = [one.event for one in asked if isinstance(one.event, TurnEnded)]
    usages = tuple(one.event.usage for one in asked if isinstance(one.event, TurnEnded | ResultsHidden | StepsLeftOut))
    silences = 0
    for turn in reversed(turns):
        if turn.finish_reason == "cancelled":
            continue
        if turn.calls or (turn.content.strip() and turn.finish_reason != "length"):
            break
        silences += 1
    return Spent(
        calls=sum(isinstance(one.event, ToolIntent) for one in asked) - _not_run(asked),
        usages=usages,
        tokens=sum(usage.completion_tokens for usage in usages),
        seconds=_worked(asked),
        attempts=sum(isinstance(one.event, VerdictGiven) for one in asked),
        silences=silences,
    )


def _not_run(events: Sequence[Stored]) -> int:
    """Calls that were not made for want of a budget; those that a guard refused, or a person, count like any other."""
    refused = {one.event.index for one in events if isinstance(one.event, GuardActed) and one.event.action == "refused"}
    refused |= {one.event.index for one in events if isinstance(one.event, CallDecided) and one.event.decision == "deny"}
    found = [one.event for one in events if isinstance(one.event, ToolReturned) and one.event.text.startswith(NOT_RUN)]
    return sum(one.index not in refused for one in found)


def _worked(events: Sequence[Stored]) -> float:
    """Seconds between events while somebody worked on the question; how long a person took to decide is left out."""
    total, before = 0.0, None
    for stored in events:
        moment = _moment(stored.time)
        if before is not None and moment is not None and not isinstance(stored.event, RunResumed | RunForked):
            total += max(0.0, (moment - before).total_seconds())
        before = None if isinstance(stored.event, RunEnded | DecisionNeeded) else moment
    return round(total, 3)


def _moment(time: str) -> datetime | None:
    try:
        return datetime.fromisoformat(time)
    except ValueError:
        return None
