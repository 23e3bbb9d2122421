"""How a question ended, computed from its events."""

import json
from collections.abc import Mapping, Sequence

from attrs import frozen

from k2core.agent import ledger, projection
from k2core.agent.approving import OPTIONS, exact, visible
from k2core.agent.around import WORDS
from k2core.agent.concluding import in_words
from k2core.agent.control import ANSWER
from k2core.events import (
    AnswerGiven,
    AnswerStatus,
    ResultsHidden,
    RunEnded,
    RunStarted,
    StepsLeftOut,
    Stored,
    TurnEnded,
)


@frozen(kw_only=True)
class RunResult:
    """How a question ended.

    Attributes:
        run: the run's id in the journal.
        status: see `AnswerGiven`.
        answer: the answer's event.
        calls: tool calls of this question.
        tokens: generated tokens of this question.
        prompt_tokens: of all turns' prompts together.
        cached_tokens: of these, the ones that needed no computing.
        computed_tokens: tokens that went through the model, prompts included.
        reasoning_tokens: generated tokens that were thinking.
        seconds: wall time.
        model_seconds: the part of it inside the backend.
        model: the model's identity.
    """

    run: str
    status: AnswerStatus
    answer: AnswerGiven
    calls: int
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    reasoning_tokens: int
    seconds: float
    model_seconds: float
    model: Mapping[str, str]


def result_of(events: Sequence[Stored]) -> RunResult:
    """The result that the events of one question amount to."""
    answer = waiting_answer(events) or projection.last_answer(events)
    end = next(stored.event for stored in reversed(events) if isinstance(stored.event, RunEnded))
    started = [stored.event for stored in events if isinstance(stored.event, RunStarted)]
    usages = [stored.event.usage for stored in events if isinstance(stored.event, TurnEnded | ResultsHidden | StepsLeftOut)]
    assert answer is not None  # a run that ended by itself has an answer
    return RunResult(
        run=events[-1].run,
        status=answer.status,
        answer=answer,
        calls=end.calls,
        tokens=end.tokens,
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        computed_tokens=sum(usage.computed_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        seconds=end.seconds,
        model_seconds=sum(usage.model_seconds for usage in usages),
        model=started[0].model if started else {},
    )


def _what_waits(index: int, state: ledger.CallState, events: Sequence[Stored]) -> str:
    """What a person is to decide about, in words; of a call that is to be approved, exactly what it would be made with."""
    needed = state.needed
    assert needed is not None
    if needed.about == "answer":
        return f"{index}, the answer {visible(_newest_answer(events))}"
    if needed.about != "call" or state.intent is None:
        return f"{index}, {WORDS.get(needed.about, 'what comes next')}"
    if needed.options == OPTIONS:
        return f"call {index}, {state.intent.name} {exact(needed.arguments)}"
    return f"call {index}, {state.intent.name} {in_words(state.arguments)}, begun {state.since}"


def _newest_answer(events: Sequence[Stored]) -> str:
    """The text of the answer that the newest turn wants to give."""
    turn = next((one.event for one in reversed(events) if isinstance(one.event, TurnEnded)), TurnEnded())
    calls = [one.arguments for one in turn.calls if one.name == ANSWER]
    if not calls:
        return turn.content.strip()
    try:
        return str(json.loads(calls[-1])["text"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return calls[-1]


def waiting_answer(events: Sequence[Stored]) -> AnswerGiven | None:
    """What stands for an answer while the run waits for a person's decision; None where it does not wait."""
    end = next((one.event for one in reversed(events) if isinstance(one.event, RunEnded)), None)
    if end is None or end.status != "waiting":
        return None
    lines = ["I wait for a decision:"]
    for index, state in ledger.waiting(events).items():
        assert state.needed is not None
        lines.append(f"- {_what_waits(index, state, events)}: {state.needed.why}. One of: {', '.join(state.needed.options)}.")
    return AnswerGiven(text="\n".join(lines), status="waiting", reason="it waits for a decision")
