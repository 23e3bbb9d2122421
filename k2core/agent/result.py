"""How a question ended, computed from its events."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from k2core.agent import ledger, projection
from k2core.agent.concluding import in_words
from k2core.events import AnswerGiven, AnswerStatus, RunEnded, RunStarted, Stored, TurnEnded


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
    usages = [stored.event.usage for stored in events if isinstance(stored.event, TurnEnded)]
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


def waiting_answer(events: Sequence[Stored]) -> AnswerGiven | None:
    """What stands for an answer while the run waits for a person's decision; None where it does not wait."""
    end = next((one.event for one in reversed(events) if isinstance(one.event, RunEnded)), None)
    if end is None or end.status != "waiting":
        return None
    lines = ["I wait for a decision:"]
    for index, state in ledger.waiting(events).items():
        assert state.intent is not None and state.needed is not None
        call = f"call {index}, {state.intent.name} {in_words(state.intent.arguments)}"
        lines.append(f"- {call}, begun {state.since}: {state.needed.why}. One of: {', '.join(state.needed.options)}.")
    return AnswerGiven(text="\n".join(lines), status="waiting", reason="it waits for a decision")
