"""One question put to a session: stream, show, and what it amounts to. Shared by ``k2 run`` and ``k2 chat``."""

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Sequence
from typing import Any

from attrs import asdict, define, field

from k2core.agent import ledger
from k2core.agent.journal import Journal
from k2core.agent.loop import RunResult, result_of
from k2core.agent.session import Choice, Session
from k2core.cli.approving import terminal_asker
from k2core.cli.display import Display
from k2core.cli.hits import told_hits
from k2core.cli.limits import LIMITS
from k2core.cli.output import print_text
from k2core.cli.settings import Value
from k2core.cli.streams import Caught, strangers_code
from k2core.cli.text import counted, joined
from k2core.errors import K2Error
from k2core.events import BudgetReached, Live, PathChosen, PathEnded, Stored, ToolIntent, ToolReturned, TurnEnded, VerdictGiven
from k2core.messages import Usage
from k2core.plugins import Plugins

EXIT_CODES = {"answered": 0, "declined": 6, "partial": 3, "unverified": 4, "failed": 1, "waiting": 7}


@define(kw_only=True)
class Asked:
    """One question and what happened.

    Attributes:
        run: the run's id; None before anything was stored.
        events: everything stored for this question.
        cancelled: Ctrl-C ended it.
        placement: see `placement`.
    """

    run: str | None = None
    events: list[Stored] = field(factory=list)
    cancelled: bool = False
    placement: dict[str, str] = field(factory=dict)


def open_session(choice: Choice, plugins: Plugins, display: Display | None) -> Session:
    """Load everything; what takes long is shown as it goes on. Where a person is there to be asked, the agent may ask."""
    from k2core.events import StatusLine

    def progress(what: str, done: int, total: int) -> None:
        if display is not None:
            display.screen.status(StatusLine(text=what, done=done, total=total))

    try:
        with strangers_code():
            session = Session.open(choice, plugins=plugins, progress=progress)
        session.agent.asker = None if display is None else terminal_asker()
        return session
    finally:
        if display is not None:
            display.screen.status(None)


def ask(
    runner: asyncio.Runner,
    session: Session,
    stream: AsyncIterator[Stored | Live],
    asked: Asked,
    display: Display | None,
    caught: Caught,
) -> None:
    """Work on a question; Ctrl-C ends it with its run stored.

    What tools print meanwhile, *caught*, is shown on the display, and without one it goes to the log.

    Args:
        runner: runs it.
        session: whose agent works.
        stream: of the agent.
        asked: gets what happens.
        display: shows it.
        caught: what others printed.

    Raises:
        K2Error: ours or the journal's fault; its attribute ``run`` names the run that holds everything up to there.
    """

    async def work() -> None:
        closing: Any = stream
        async with contextlib.aclosing(closing) as items:
            async for item in items:
                show_printed(caught, display)
                if isinstance(item, Stored):
                    asked.run = item.run
                    asked.events.append(item)
                if display is not None:
                    display.show(item)

    try:
        runner.run(work())
    except KeyboardInterrupt:
        asked.cancelled = True
    except K2Error as error:
        if asked.run is not None and not hasattr(error, "run"):
            error.run = asked.run  # type: ignore[attr-defined]  # for the line that says where to look
        raise
    asked.placement = placement(session)


def show_printed(caught: Caught, display: Display | None) -> None:
    """What others printed since the last time."""
    if display is None:
        caught.log()
    elif lines := caught.take():
        display.printed(lines)


def to_json(asked: Asked, result: RunResult, model: dict[str, str]) -> dict[str, Any]:
    """The object of ``k2 run --json``."""
    answer = result.answer
    events = [stored.event for stored in asked.events]
    returned = {event.index: event for event in events if isinstance(event, ToolReturned)}
    verdicts = [event for event in events if isinstance(event, VerdictGiven)]
    support = {one.claim: one.events for one in answer.evidence}
    calls = []
    for intent in (event for event in events if isinstance(event, ToolIntent)):
        back = returned.get(intent.index)  # a model may write the same id twice
        calls.append(
            {
                "id": intent.call_id,
                "index": intent.index,
                "name": intent.name,
                "arguments": _parsed(intent.arguments),
                "result": None if back is None else back.text,
                "ok": back is not None and back.ok,
            }
        )
    return {
        "run": result.run,
        "status": result.status,
        "answer": answer.text,
        "reason": answer.reason,
        "partial": None if answer.partial is None else asdict(answer.partial),
        "claims": [
            {"text": claim.text, "evidence": list(claim.evidence), "events": list(support.get(number, ()))}
            for number, claim in enumerate(answer.claims)
        ],
        "calls": calls,
        "decisions": [_decision(index, state) for index, state in ledger.waiting(asked.events).items()],
        "paths": [
            {"path": one.path, "run": one.run, "status": one.status, "answer": one.text, "key": one.key}
            for one in events
            if isinstance(one, PathEnded)
        ],
        "verdict": None
        if not verdicts
        else {
            "accepted": verdicts[-1].accepted,
            "attempt": verdicts[-1].attempt,
            "findings": [
                {
                    "verifier": one.verifier,
                    "subject": one.subject,
                    "status": one.status,
                    "hint": one.hint,
                    "events": list(one.events),
                    "claim": one.claim,
                }
                for one in verdicts[-1].findings
            ],
        },
        "tokens": result.tokens,
        "reasoning_tokens": result.reasoning_tokens,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "computed_tokens": result.computed_tokens,
        "turns": [_accounts(event.usage) for event in events if isinstance(event, TurnEnded)],
        "seconds": round(result.seconds, 3),
        "tokens_per_second": tokens_per_second(asked),
        "model": model.get("model", ""),
        "backend": model.get("backend", ""),
        "numerics": model.get("numerics", ""),
        "placement": asked.placement,
    }


def _decision(index: int, state: ledger.CallState) -> dict[str, Any]:
    """What a person is to decide."""
    needed = state.needed
    assert needed is not None
    return {
        "index": index,
        "about": needed.about,
        "name": None if state.intent is None else state.intent.name,
        "arguments": _parsed(needed.arguments or state.arguments),
        "why": needed.why,
        "options": list(needed.options),
    }


def _accounts(usage: Usage) -> dict[str, Any]:
    """One turn's tokens and times, and its hit rate."""
    accounts = asdict(usage)
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in accounts.items()}
    return {**rounded, "hit_rate": round(usage.hit_rate, 4)}


def tokens_per_second(asked: Asked) -> float | None:
    """Generated tokens over the wall time of the model's turns, prompts included; None where that was not measured."""
    usages = [stored.event.usage for stored in asked.events if isinstance(stored.event, TurnEnded)]
    seconds = sum(usage.seconds for usage in usages)
    return round(sum(usage.completion_tokens for usage in usages) / seconds, 1) if seconds > 0 else None


def cost_parts(asked: Asked, result: RunResult, model: dict[str, str]) -> list[str]:
    """Tokens, calls, seconds, tokens/s, and in one part model, backend and numerics."""
    rate = tokens_per_second(asked)
    return [
        f"{counted(result.tokens, 'token')} ({result.reasoning_tokens:,} thinking)",
        counted(result.calls, "call"),
        f"{result.seconds:.2f} s",
        *([f"{rate:,.0f} tokens/s"] if rate else []),
        *([f"{100 * result.cached_tokens / result.prompt_tokens:.0f} % of prompts cached"] if result.cached_tokens else []),
        " · ".join(filter(None, (model.get("model"), _backends(model), model.get("numerics")))),
    ]


def _backends(model: dict[str, str]) -> str:
    """The backend, and that of the experts where it is another one."""
    backend, experts = model.get("backend", ""), model.get("experts", "")
    return f"{backend} (experts {experts})" if experts not in ("", backend) else backend


def show_command(run: str, store: Value) -> str:
    """The command that shows a run."""
    return f"k2 runs show {run}{_store(store)}"


def continue_command(run: str, store: Value) -> str:
    """The command that goes on with a run."""
    return f'k2 run -c {run}{_store(store)} "…"'


def resume_command(run: str, store: Value) -> str:
    """The command that resumes a run."""
    return f"k2 resume {run}{_store(store)}"


def larger_budget(asked: Asked) -> list[str]:
    """The flag that doubles the budget which ended the work, where one did."""
    reached = [one.event for one in asked.events if isinstance(one.event, BudgetReached)]
    flags = {budget: f"--{name.replace('_', '-')}" for name, budget in LIMITS.items()}
    return [f"{flags[one.which]} {2 * one.limit:g}" for one in reached[-1:] if one.which in flags]


def decide_commands(asked: Asked, store: Value) -> list[str]:
    """The commands that decide about calls."""
    return [
        f"k2 runs decide {asked.run} {index}{_store(store)} {'|'.join(state.needed.options)}"
        for index, state in ledger.waiting(asked.events).items()
        if state.needed is not None
    ]


def remember_chosen(display: Display, journal: Journal, events: Sequence[Stored]) -> None:
    """Where a question was worked on by several paths, know the calls of the one whose answer is given."""
    runs = {one.event.path: one.event.run for one in events if isinstance(one.event, PathEnded)}
    for stored in events:
        if isinstance(stored.event, PathChosen):
            display.remember(journal.known(runs[stored.event.path]))


def final_result(asked: Asked) -> RunResult:
    """The result of a question that ended by itself."""
    return result_of(asked.events)


def _store(store: Value) -> str:
    # what came from the environment or the file will be found there again
    return f" --store {shlex.quote(str(store.value))}" if store.origin.startswith("flag") else ""


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments  # what the model wrote is no JSON


def show_result(display: Display, asked: Asked, result: RunResult, identity: dict[str, str]) -> None:
    """The answer on stdout; its evidence, its cost, and what a shadow or a cache of experts has to say, on the display."""
    display.screen.gap()
    print_text(result.answer.text, bold=True)
    display.screen.gap()
    display.answer_details(result.answer)
    cost = joined(cost_parts(asked, result, identity), display.screen.width)
    display.screen.block("cost", [(cost, "dim")], "dim")
    for label, text in asked.placement.items():
        display.screen.block(label, [(text, "dim")], "dim")


def placement(session: Session) -> dict[str, str]:
    """How a model in the shadow compares, and how often experts lay ready, where there is such a thing; by label."""
    from k2core.engine.engine import EngineModel

    chat = session.agent.model
    if not isinstance(chat, EngineModel):
        return {}
    told = {}
    if hits := told_hits(chat.info()):
        told["experts"] = hits
    if chat.shadow is not None:
        told["shadow"] = str(chat.shadow)
    return told
