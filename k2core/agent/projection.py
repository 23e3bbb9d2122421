"""The conversation as a projection of the event log.

Messages are never stored beside the log: they are computed from it, and the computation is total. A call whose result is
missing (the run was cut there) gets an ``error: interrupted`` result, so that what follows is always a valid conversation.
"""

import json
from collections.abc import Iterable, Sequence

from k2core.agent.kept import kept_text, makes_room
from k2core.events import (
    AnswerGiven,
    Event,
    GuardActed,
    MessageAdded,
    ResultsHidden,
    RunResumed,
    Stalled,
    StepsLeftOut,
    Stored,
    ToolIntent,
    ToolReturned,
    TurnEnded,
)
from k2core.interfaces import Observation, PastCall, Trajectory
from k2core.messages import Message, ToolCall
from k2core.tools import CONTROL_NAMES

HIDDEN = "(hidden)"
INTERRUPTED = "error: interrupted before a result came back"


def messages(events: Iterable[Stored], *, closed: bool = True) -> list[Message]:
    """The conversation that the next turn continues.

    Args:
        events: of the run.
        closed: whether calls of the newest turn that have no result get one; without, they are still to be carried out.
    """
    events = list(events)
    hidden = hidden_results(events)
    unseen, dropped = gone(events), _dropped(events)
    called = 0  # so far
    is_heard = False  # the last message is of an interrupted turn, or of an interrupted end
    asked = place = 0  # behind the newest question, and where that was when room was made last
    out: list[Message] = []
    open_calls: list[ToolCall] = []

    def close() -> None:
        for call in open_calls:
            out.append(tool_message(call.id, call.name, INTERRUPTED))
        open_calls.clear()

    for stored in events:
        event = stored.event
        place = asked if makes_room(event) else place
        if isinstance(event, MessageAdded):
            if stored.sequence in dropped:
                continue
            is_heard = event.role == "assistant"  # until its answer follows
            close()
            out.append(event.message())
            asked = len(out) if event.role == "user" else asked
        elif isinstance(event, AnswerGiven):
            is_heard = False
        elif isinstance(event, TurnEnded):
            close()
            is_heard = event.finish_reason == "cancelled"
            numbers = range(called, called + len(event.calls))
            called += len(event.calls)
            if stored.sequence in dropped or (event.calls and unseen.issuperset(numbers)):
                continue
            out.append(event.message())
            open_calls.extend(event.calls)
        elif isinstance(event, RunResumed):
            if is_heard and out[-1].role == "assistant":
                del out[-1]  # it is generated again
        elif isinstance(event, ToolReturned):
            if event.index in unseen and not open_calls:
                continue
            if open_calls:
                del open_calls[0]  # calls are made in order, so results are too
            text = HIDDEN if event.index in hidden else event.text
            out.append(tool_message(event.call_id, event.name, text))
    if closed:
        close()
    if place and (kept := kept_text(events, unseen)):
        out.insert(place, Message(role="system", name="framework", content=kept))
    return out


def hidden_results(events: Iterable[Stored]) -> frozenset[int]:
    """Numbers of the calls whose results the model no longer sees, whether their steps are shown or not."""
    found: set[int] = set()
    for stored in events:
        if isinstance(stored.event, ResultsHidden):
            found.update(stored.event.calls)
        elif isinstance(stored.event, StepsLeftOut):
            found.update(stored.event.hidden)
    return frozenset(found)


def gone(events: Iterable[Stored]) -> frozenset[int]:
    """Numbers of the calls whose steps the model no longer sees."""
    events = list(events)
    through, numbers, called, dropped = 0, set[int](), 0, _dropped(events)
    for stored in events:
        if isinstance(stored.event, TurnEnded):
            if stored.sequence in dropped:
                numbers.update(range(called, called + len(stored.event.calls)))
            called += len(stored.event.calls)
        elif isinstance(stored.event, StepsLeftOut):
            through = max(through, stored.event.through + 1)
        elif isinstance(stored.event, Stalled) and stored.event.action == "roll-back":
            numbers.update(stored.event.calls)
    return frozenset(numbers).union(range(through))


def _dropped(events: Iterable[Stored]) -> frozenset[int]:
    """Numbers of the events whose messages and turns are not shown since work went on with a larger budget."""
    resumed = ((one.event.without, one.sequence) for one in events if isinstance(one.event, RunResumed))
    return frozenset(number for first, last in resumed if first for number in range(first, last))


def tool_message(call_id: str, name: str, text: str) -> Message:
    """The message that carries a tool's result."""
    return Message(role="tool", content=text, tool_call_id=call_id, name=name)


def trajectory(events: Sequence[Stored]) -> Trajectory:
    """What an answer may rest on: the user's words and every tool result so far.

    Results of control tools are left out: a rejection quotes what was wrong, and must not become evidence for it.
    """
    questions: list[str] = []
    question_event = 0
    arguments: dict[int, str] = {}
    observations: list[Observation] = []
    for stored in events:
        event = stored.event
        if isinstance(event, MessageAdded) and event.role == "user":
            questions.append(event.content)
            question_event = stored.sequence
        elif (made := made_with(event)) is not None:
            arguments.update(made)
        elif isinstance(event, ToolReturned) and event.name not in CONTROL_NAMES:
            observations.append(
                Observation(
                    event=stored.sequence,
                    index=event.index,
                    tool=event.name,
                    arguments=arguments.get(event.index, "{}"),
                    text=event.text,
                    ok=event.ok,
                )
            )
    return Trajectory(question="\n".join(questions), question_event=question_event, observations=tuple(observations))


def made_with(event: Event) -> dict[int, str] | None:
    """What an event says of the arguments that a call is made with: the model's own, or what a guard made of them."""
    if isinstance(event, ToolIntent):
        return {event.index: event.arguments}
    if isinstance(event, GuardActed) and (event.action, event.hook) == ("changed", "before_call") and event.index is not None:
        return {event.index: event.after}
    return None


def past_calls(events: Iterable[Stored], name: str) -> tuple[PastCall, ...]:
    """The calls of one tool that returned something, in order; arguments that are no JSON object are left empty."""
    arguments: dict[int, str] = {}
    past: list[PastCall] = []
    for stored in events:
        event = stored.event
        if (made := made_with(event)) is not None:
            arguments.update(made)
        elif isinstance(event, ToolReturned) and event.name == name:
            try:
                given = json.loads(arguments.get(event.index, "{}"))
            except ValueError:
                given = {}
            if not isinstance(given, dict):
                given = {}
            past.append(PastCall(arguments=given, text=event.text, ok=event.ok, details=event.details))
    return tuple(past)


def calls_made(events: Iterable[Stored]) -> int:
    """Calls of the whole conversation: the IDX of the next one."""
    return sum(len(stored.event.calls) for stored in events if isinstance(stored.event, TurnEnded))


def last_answer(events: Iterable[Stored]) -> AnswerGiven | None:
    """The newest answer, or None."""
    answers = [stored.event for stored in events if isinstance(stored.event, AnswerGiven)]
    return answers[-1] if answers else None
