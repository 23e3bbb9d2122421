"""The effects ledger: what the log says of each call of the newest turn, and what may become of a call without a result.

A call's intent is durable before the tool runs, its result before the model sees it. Where a run was cut off in between, the
effect class says what may happen (`security` of effects: a call that is neither repeatable nor known to have failed is never
made again unasked):

    pure, read     made again
    idempotent     made again under the same key
    reversible     undone, then made again
    external       the tool looks whether it happened (`Tool.reconcile`); where it cannot tell, a person decides

A call that waits for approval was not made yet: it is made when a person has approved it, and the mark before that (tool.begun)
uses the approval up. A call that a guard refused was not made either. In a fork nothing counts as decided that was decided
before it.
"""

from collections.abc import Sequence

from attrs import evolve, frozen

from k2core.calls import during
from k2core.deadline import DeadlineExceeded, run_with_deadline
from k2core.errors import ToolError, said
from k2core.events import (
    CallDecided,
    Decision,
    DecisionNeeded,
    GuardActed,
    NoteKept,
    RunForked,
    RunResumed,
    Stored,
    ToolAgain,
    ToolBegun,
    ToolIntent,
    ToolReturned,
    TurnEnded,
    VerdictGiven,
)
from k2core.interfaces import CallContext, Effect, Tool, ToolOutput
from k2core.tools import Registry, as_text

STRICTNESS: tuple[Effect, ...] = ("pure", "read", "idempotent", "reversible", "external")
OPTIONS: tuple[Decision, ...] = ("happened", "redo", "abandon")


@frozen(kw_only=True)
class CallState:
    """What the log says of one call.

    Attributes:
        intent: it was begun.
        arguments: that the newest attempt is made with: the model's own, or what guards made of them.
        refused: a guard refused the newest attempt, which is not made.
        since: when it was begun last, as in `Stored.time`.
        attempts: how often it was begun.
        needed: a person is to decide about the newest attempt.
        decision: about the newest attempt.
        noted: a `note` was kept.
        verdict: about an `answer`.
        returned: the model was told the result.
    """

    intent: ToolIntent | None = None
    arguments: str = ""
    refused: GuardActed | None = None
    since: str = ""
    attempts: int = 0
    needed: DecisionNeeded | None = None
    decision: CallDecided | None = None
    noted: bool = False
    verdict: VerdictGiven | None = None
    returned: bool = False


def call_states(events: Sequence[Stored]) -> dict[int, CallState]:
    """The states of the newest turn's calls, by number; those that were not begun are left out."""
    start = next((place for place in range(len(events) - 1, -1, -1) if isinstance(events[place].event, TurnEnded)), 0)
    states: dict[int, CallState] = {}
    newest: int | None = None
    for stored in events[start:]:
        event = stored.event
        if isinstance(event, ToolIntent):
            newest = event.index
            states[newest] = CallState(intent=event, arguments=event.arguments, since=stored.time, attempts=1)
        elif isinstance(event, GuardActed):
            if event.index in states and event.hook == "before_call":
                states[event.index] = _guarded(states[event.index], event)
        elif isinstance(event, ToolAgain | ToolBegun | DecisionNeeded | CallDecided | ToolReturned):
            state = states.get(event.index, CallState())
            if isinstance(event, ToolAgain | ToolBegun):
                newest = event.index
                state = evolve(state, attempts=event.attempt, since=stored.time, needed=None, decision=None)
            elif isinstance(event, DecisionNeeded):
                state = evolve(state, needed=event, decision=None)
            elif isinstance(event, CallDecided):
                state = evolve(state, decision=event)
            else:
                state = evolve(state, returned=True)
            states[event.index] = state
        elif isinstance(event, RunForked):  # what was decided was decided for the other run
            states = {index: state if state.returned else evolve(state, decision=None) for index, state in states.items()}
        elif newest is not None and isinstance(event, NoteKept):
            states[newest] = evolve(states[newest], noted=True)
        elif newest is not None and isinstance(event, VerdictGiven):
            states[newest] = evolve(states[newest], verdict=event)
    return states


def _guarded(state: CallState, acted: GuardActed) -> CallState:
    """The state of a call after a guard did something before it."""
    if acted.action == "changed":
        return evolve(state, arguments=acted.after)
    return evolve(state, refused=acted) if acted.action == "refused" else state


def waiting(events: Sequence[Stored]) -> dict[int, CallState]:
    """Calls about which a person is to decide, by number."""
    states = call_states(events)
    return {
        index: state
        for index, state in states.items()
        if state.needed is not None and state.decision is None and not state.returned
    }


def is_resumed(events: Sequence[Stored]) -> bool:
    """Whether the newest turn's calls are carried out after an interruption."""
    for stored in reversed(events):
        if isinstance(stored.event, TurnEnded):
            return False
        if isinstance(stored.event, RunResumed):
            return True
    return False


def key_of(events: Sequence[Stored], index: int) -> str:
    """The key under which every attempt at a call is made: the run that it was begun in first, and its number.

    A fork makes the calls that it was copied with under the keys that they had, so that a service that does a thing once per
    key does not do it once more; calls that it makes itself have keys of their own.
    """
    begun = next(one for one in reversed(events) if isinstance(one.event, ToolIntent) and one.event.index == index)
    forks = (one.event for one in events if isinstance(one.event, RunForked))
    return f"{next((fork.run for fork in forks if begun.sequence <= fork.sequence), begun.run)}:{index}"


def until_begun(events: Sequence[Stored], index: int) -> Sequence[Stored]:
    """The events up to the newest intent of call number *index*: whatever the call depends on, however often it is made."""
    for place in range(len(events) - 1, -1, -1):
        event = events[place].event
        if isinstance(event, ToolIntent) and event.index == index:
            return events[: place + 1]
    return events


@frozen
class Again:
    """The call may be made again."""

    why: str


@frozen
class Happened:
    """The call took effect and is not made again; the model is told *text*."""

    text: str
    by: str = "user"


@frozen
class Abandoned:
    """The call is not made again, and nobody says that it took effect."""


@frozen
class Undecided:
    """Only a person can say what becomes of the call."""

    why: str


Outcome = Again | Happened | Abandoned | Undecided


async def outcome_of(state: CallState, tool: Tool | None, tools: Registry, context: CallContext) -> Outcome:
    """What becomes of a call that was begun and has no result.

    Args:
        state: what the log says of it.
        tool: its tool in this session; None where there is none of that name.
        tools: for reading its arguments.
        context: of the call, with its key.
    """
    assert state.intent is not None
    if state.decision is not None:
        return _decided(state.decision)
    effect = state.intent.effect if tool is None else max(state.intent.effect, tool.effect, key=STRICTNESS.index)
    if effect in ("pure", "read"):
        return Again(f"its effect is {effect}")
    if effect == "idempotent":
        return Again("it is idempotent and gets the same key")
    if tool is None:
        return Undecided(f"there is no tool '{state.intent.name}' here any more that could look whether it happened")
    why = "the tool cannot look whether it happened"
    if tool.reconcile is not None:
        try:
            found = await _ask(tool, tool.reconcile, state, tools, context)
        except (ToolError, DeadlineExceeded) as error:
            why = f"the tool cannot tell whether it happened: {error}"
        except Exception as error:  # a plugin's fault decides nothing
            why = f"looking whether it happened failed: {said(error)}"
        else:
            if found is None:
                return Again("its tool found that it did not happen")
            return Happened(as_text(found.text if isinstance(found, ToolOutput) else found), by="tool")
    if effect == "reversible" and tool.undo is not None:
        try:
            await _ask(tool, tool.undo, state, tools, context)
        except Exception as error:
            return Undecided(f"taking it back failed: {said(error)}")
        return Again("it was taken back")
    return Undecided(why)


def _decided(decision: CallDecided) -> Outcome:
    if decision.decision == "happened":
        return Happened(decision.text, by=decision.by)
    return Again(f"the {decision.by} decided so") if decision.decision == "redo" else Abandoned()


async def _ask(tool: Tool, function: object, state: CallState, tools: Registry, context: CallContext) -> object:
    from k2core.messages import ToolCall

    assert state.intent is not None and callable(function)
    call = ToolCall(id=state.intent.call_id, name=state.intent.name, arguments=state.arguments)
    arguments = tools.arguments_of(call)
    with during(evolve(context, left_s=tool.timeout_s)):
        return await run_with_deadline(function, tool.timeout_s, **arguments)
