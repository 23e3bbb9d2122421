"""The loop: think → call → observe → … → answer → verify → revise or conclude.

Read `Agent.stream` top-down; each step is a method below it. Everything that happens is appended to the journal before it is
shown or acted upon: a call is dispatched only after its intent is durable, and an answer is final only after its event is.
"""

import asyncio
import contextlib
import hashlib
import json
import platform
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar

from attrs import define, evolve, field, frozen

import k2core
from k2core.agent import projection, window
from k2core.agent.budget import Budget, Limits, Reached
from k2core.agent.journal import Journal
from k2core.agent.prompts import SYSTEM
from k2core.control import ANSWER, NOTE, answer_from_arguments
from k2core.errors import CapacityError, InputError, JournalError, ToolError
from k2core.events import (
    AnswerGiven,
    AnswerStatus,
    BudgetReached,
    ClaimEvidence,
    Event,
    Live,
    MessageAdded,
    NoteKept,
    ResultsHidden,
    RunEnded,
    RunStarted,
    Stored,
    ToolIntent,
    ToolReturned,
    TurnEnded,
    VerdictGiven,
    Warned,
)
from k2core.interfaces import Answer, ChatModel, Effect, GenerateOptions, ToolResult, Verdict, Verifier
from k2core.messages import ContentDelta, Delta, Message, ReasoningDelta, ToolCall, TurnEnd
from k2core.tools import Registry
from k2core.verify import answer_from_text, check, outcome

Part = TypeVar("Part")
REVISIONS = 2  # a failed check goes back to the model at most this often
NUDGES = 2  # an empty or cut turn is answered with a hint at most this often in a row


@frozen(kw_only=True)
class RunResult:
    """How a question ended.

    Attributes:
        run: the run's id in the journal.
        status: see `AnswerGiven`.
        answer: the answer's event.
        calls: tool calls of this question.
        tokens: generated tokens of this question.
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
    computed_tokens: int
    reasoning_tokens: int
    seconds: float
    model_seconds: float
    model: Mapping[str, str]


@define(kw_only=True)
class Agent:
    """A model, its tools and its verifiers, writing to one journal.

    Attributes:
        model: anything that generates turns.
        tools: the session's tools, control tools included.
        verifiers: asked about every answer.
        journal: where runs are kept.
        limits: budgets of one question.
        options: sampling and the length of one turn.
    """

    model: ChatModel
    tools: Registry
    verifiers: Sequence[Verifier] = ()
    journal: Journal
    limits: Limits = field(factory=Limits)
    options: GenerateOptions = field(factory=GenerateOptions)

    async def stream(self, question: str, *, run: str | None = None) -> AsyncIterator[Stored | Live]:
        """Work on *question* and yield what happens.

        Args:
            question: the user's text.
            run: a run to continue; None starts a new one.

        Raises:
            InputError: the question is empty.
            K2Error: ours or the journal's fault; everything up to that point is in the journal.
        """
        if not question.strip():
            raise InputError('the question is empty. Give one, e.g. k2 run "What is 23 times 47?"')
        work = _Work(agent=self, budget=Budget(limits=self.limits))
        try:
            async for item in work.begin(question, run):
                yield item
            while not work.ended:
                async for item in work.step():
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.shield(work.append(*work.interrupted(), RunEnded(status="cancelled", **work.totals())))
            raise
        except Exception:
            if work.run and not work.ended:
                with contextlib.suppress(JournalError):  # the journal may be what failed; the first error is the one to tell
                    await work.append(RunEnded(status="failed", **work.totals()))
            raise

    async def ask(self, question: str, *, run: str | None = None) -> RunResult:
        """`stream` to its end, as one result."""
        events: list[Stored] = []
        async for item in self.stream(question, run=run):
            if isinstance(item, Stored):
                events.append(item)
        return evolve(result_of(events), model=dict(self.model.identity()))

    def run(self, question: str, *, run: str | None = None) -> RunResult:
        """`ask` for callers without an event loop."""
        return asyncio.run(self.ask(question, run=run))


def result_of(events: Sequence[Stored]) -> RunResult:
    """The result that the events of one question amount to."""
    answer = projection.last_answer(events)
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
        computed_tokens=sum(usage.computed_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        seconds=end.seconds,
        model_seconds=sum(usage.model_seconds for usage in usages),
        model=started[0].model if started else {},
    )


@contextlib.asynccontextmanager
async def _closing(parts: AsyncIterator[Part]) -> AsyncIterator[AsyncIterator[Part]]:
    """Close *parts* afterwards, where it can be closed: that is how a turn is cancelled."""
    try:
        yield parts
    finally:
        close = getattr(parts, "aclose", None)
        if close is not None:
            await close()


@define(kw_only=True)
class _Work:
    """One question being worked on."""

    agent: Agent
    budget: Budget
    run: str = ""
    events: list[Stored] = field(factory=list)
    messages: list[Message] = field(factory=list)
    attempts: int = 0
    nudges: int = 0
    tokens: int = 0
    ended: bool = False
    heard: list[Delta] = field(factory=list)  # of the turn that is being generated
    _started: float = field(factory=time.perf_counter)

    async def begin(self, question: str, run: str | None) -> AsyncIterator[Stored | Live]:
        """Start or continue the run and put the question into the conversation."""
        agent = self.agent
        fresh: list[Event] = []
        if run is None:
            self.run = agent.journal.start_run()
            fresh.append(self._run_started(question))
            fresh.append(MessageAdded(role="system", content=agent.model.profile.system or SYSTEM))
        else:
            self.run = run
            self.events = list(agent.journal.events(run))
        fresh.append(MessageAdded(role="user", content=question))
        for stored in await self.append(*fresh):
            yield stored
        self.messages = projection.messages(self.events)

    async def step(self) -> AsyncIterator[Stored | Live]:
        """One turn of the model and what follows from it."""
        reached = self.budget.reached()
        if reached is not None:
            async for item in self.wind_down(reached):
                yield item
            return
        for stored in await self.trim():
            yield stored
        end: TurnEnd | None = None
        self.heard = []
        async with _closing(self.generate()) as parts:
            async for part in parts:
                if isinstance(part, TurnEnd):
                    end = part
                elif isinstance(part, CapacityError):
                    async for item in self.wind_down(None, str(part)):
                        yield item
                    return
                else:
                    self.heard.append(part)
                    yield Live(delta=part)
        if end is None:  # the seconds ran out in the middle of the turn; the next step winds down
            for stored in await self.append(*self.interrupted()):
                yield stored
            return
        self.heard = []
        turn = TurnEnded(
            reasoning=end.message.reasoning,
            content=end.message.content,
            calls=end.message.tool_calls,
            token_ids=end.message.token_ids,
            finish_reason=end.finish_reason,
            usage=end.usage,
        )
        self.budget.spend(end.usage)
        self.tokens += end.usage.completion_tokens
        base = projection.calls_made(self.events)
        for stored in await self.append(turn):
            yield stored
        self.messages.append(turn.message())
        if turn.calls:
            self.nudges = 0
            for offset, call in enumerate(turn.calls):
                if self.ended:
                    break  # what comes after an accepted answer is not run
                async for item in self.act(call, base + offset, cut=turn.finish_reason == "length"):
                    yield item
        else:
            async for item in self.answer_in_words(turn):
                yield item

    def interrupted(self) -> list[Event]:
        """What was heard of a turn that did not end, as an event; its calls may be incomplete and are left out."""
        reasoning = "".join(part.text for part in self.heard if isinstance(part, ReasoningDelta))
        content = "".join(part.text for part in self.heard if isinstance(part, ContentDelta))
        self.heard = []
        return [TurnEnded(reasoning=reasoning, content=content, finish_reason="cancelled")] if reasoning or content else []

    async def generate(self) -> AsyncIterator[Delta | TurnEnd | CapacityError]:
        """The model's parts, until the turn ends, the seconds run out, or the prompt turns out not to fit."""
        agent = self.agent
        options = evolve(agent.options, max_reasoning_tokens=self.budget.reasoning_left())
        async with _closing(agent.model.generate(self.messages, agent.tools.declarations(), options)) as parts:
            while True:
                left = self.budget.seconds_left()
                try:
                    # the deadline surrounds one part only: a timeout across a yield could hit the consumer's code
                    async with asyncio.timeout(left):
                        part = await anext(parts)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if self.budget.reached() is None:
                        raise  # somebody else's timeout, not the budget's
                    return
                except CapacityError as error:
                    yield error
                    return
                yield part

    async def trim(self) -> list[Stored]:
        """Hide the oldest tool results, in one block, when the context is nearly full."""
        turns = [stored.event for stored in self.events if isinstance(stored.event, TurnEnded)]
        if not turns:
            return []
        hidden = window.to_hide(self.messages, turns[-1].usage, self.agent.model.profile.context)
        if not hidden:
            return []
        stored = await self.append(ResultsHidden(calls=hidden))
        self.messages = projection.messages(self.events)
        return stored

    # ── act and observe ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def act(self, call: ToolCall, index: int, *, cut: bool) -> AsyncIterator[Stored | Live]:
        """Carry out one call; its result is what the model sees next. Calls of a turn that was *cut* are not run."""
        agent = self.agent
        known = call.name in agent.tools.names()
        effect: Effect = agent.tools.get(call.name).effect if known else "pure"
        intent = ToolIntent(call_id=call.id, index=index, name=call.name, arguments=call.arguments, effect=effect)
        yield (await self.append(intent))[0]
        reached = self.budget.reached()
        self.budget.calls += 1 if reached is None else 0
        why = f"the turn was cut at its limit of {agent.options.max_tokens} tokens" if cut else str(reached or "")
        if why:
            yield await self.observe(call, index, ToolResult(text=f"error: not run: {why}", ok=False))
        elif known and agent.tools.get(call.name).control:
            async for item in self.control(call, index):
                yield item
        else:
            yield await self.observe(call, index, await agent.tools.call(call, most_s=self.budget.seconds_left()))

    async def observe(self, call: ToolCall, index: int, result: ToolResult) -> Stored:
        """Put a result into the journal and the conversation."""
        returned = ToolReturned(
            call_id=call.id,
            index=index,
            name=call.name,
            text=result.text,
            ok=result.ok,
            duration_ms=round(result.duration_ms, 3),
            full_bytes=result.full_bytes,
            truncated=result.truncated,
        )
        self.messages.append(projection.tool_message(call.id, call.name, result.text))
        return (await self.append(returned))[0]

    async def control(self, call: ToolCall, index: int) -> AsyncIterator[Stored | Live]:
        """`answer` and `note`."""
        try:
            arguments = self.agent.tools.arguments_of(call)
        except ToolError as error:
            yield await self.observe(call, index, ToolResult(text=f"error: {error}", ok=False))
            return
        if call.name == NOTE:
            yield (await self.append(NoteKept(text=str(arguments["text"]))))[0]
            yield await self.observe(call, index, ToolResult(text="noted", ok=True))
        elif call.name == ANSWER:
            answer = answer_from_arguments(arguments)
            verdict, stored = await self.verify(answer)
            for one in stored:
                yield one
            yield await self.observe(call, index, ToolResult(text=verdict.render(), ok=verdict.accepted))
            if verdict.accepted or self.attempts > REVISIONS:
                for one in await self.conclude(answer, verdict, write_message=True):
                    yield one
        else:
            yield await self.observe(call, index, ToolResult(text=f"error: no control tool '{call.name}' here", ok=False))

    # ── answer, verify, revise, conclude ────────────────────────────────────────────────────────────────────────────────

    async def verify(self, answer: Answer) -> tuple[Verdict, list[Stored]]:
        """Ask the verifiers; the verdict and any trouble they had go into the journal."""
        self.attempts += 1
        verdict, warnings = await check(answer, projection.trajectory(self.events), self.agent.verifiers)
        given = VerdictGiven(attempt=self.attempts, accepted=verdict.accepted, findings=verdict.findings)
        return verdict, await self.append(*(Warned(text=line) for line in warnings), given)

    async def answer_in_words(self, turn: TurnEnded) -> AsyncIterator[Stored | Live]:
        """A turn without calls: its text is an answer, and a turn without text is answered with a hint."""
        limit = self.agent.options.max_tokens
        if turn.finish_reason == "length" or not turn.content.strip():
            self.nudges += 1
            reached = self.budget.reached()
            what = f"was cut at its limit of {limit} tokens" if turn.finish_reason == "length" else "was empty"
            if self.nudges > NUDGES or reached is not None:
                async for item in self.wind_down(reached, f"the model's turn {what}, {self.nudges} times in a row"):
                    yield item
                return
            hint = f"Your turn {what}. Call a tool, or answer."
            async for item in self.say(hint):
                yield item
            return
        if ANSWER in self.agent.tools.names() and (turn.reasoning or "").strip():
            dropped = Warned(text="answered in plain content: the family's history rule drops its reasoning from now on")
            yield (await self.append(dropped))[0]
        answer = answer_from_text(turn.content)
        verdict, stored = await self.verify(answer)
        for one in stored:
            yield one
        if verdict.accepted or self.attempts > REVISIONS:
            for one in await self.conclude(answer, verdict, write_message=False):
                yield one
        else:
            async for item in self.say(f"Your answer was {verdict.render()}. Correct it."):
                yield item

    async def conclude(self, answer: Answer, verdict: Verdict, *, write_message: bool) -> list[Stored]:
        """The answer is final: verified, or marked with what it lacks."""
        status, reason = outcome(answer, verdict, projection.trajectory(self.events))
        evidence: dict[int | None, set[int]] = {}
        for finding in verdict.findings:
            if finding.status == "supported":
                evidence.setdefault(finding.claim, set()).update(finding.events)
        given = AnswerGiven(
            text=answer.text,
            claims=answer.claims,
            status=status,
            reason=reason,
            evidence=tuple(
                ClaimEvidence(claim=claim, events=tuple(sorted(events)))
                for claim, events in sorted(evidence.items(), key=lambda item: (item[0] is not None, item[0] or 0))
            ),
        )
        return await self.end(given, write_message=write_message)

    async def wind_down(self, reached: Reached | None, why: str = "") -> AsyncIterator[Stored | Live]:
        """End with what is known."""
        events: list[Event] = []
        if reached is not None:
            events.append(BudgetReached(which=reached.which, limit=float(reached.limit), used=float(reached.used)))
        reason = str(reached) if reached is not None else why
        for stored in await self.append(*events):
            yield stored
        known = [one for one in projection.trajectory(self.events).observations if one.ok]
        lines = [f"I stopped before an answer: {reason.rstrip('.')}."]
        if known:
            lines.append("Known so far:")
            lines += [f"- {one.tool} {one.arguments}: {one.text.splitlines()[0] if one.text else ''}" for one in known[-10:]]
        status: AnswerStatus = "partial" if reached is not None or known else "failed"
        given = AnswerGiven(text="\n".join(lines), status=status, reason=reason)
        for stored in await self.end(given, write_message=True):
            yield stored

    async def end(self, given: AnswerGiven, *, write_message: bool) -> list[Stored]:
        """Write the answer and the end of the run."""
        self.ended = True
        message = [MessageAdded(role="assistant", content=given.text)] if write_message else []
        return await self.append(*message, given, RunEnded(status=given.status, **self.totals()))

    async def say(self, text: str) -> AsyncIterator[Stored | Live]:
        """A word of the framework to the model."""
        message = MessageAdded(role="system", name="framework", content=text)
        yield (await self.append(message))[0]
        self.messages.append(message.message())

    # ── bookkeeping ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, *events: Event) -> list[Stored]:
        """Durable in the journal when it returns."""
        stored = await self.agent.journal.append(self.run, *events) if events else []
        self.events.extend(stored)
        return stored

    def totals(self) -> dict[str, Any]:
        """What the question cost so far."""
        seconds = round(time.perf_counter() - self._started, 3)
        return {"seconds": seconds, "tokens": self.tokens, "calls": self.budget.calls}

    def _run_started(self, question: str) -> RunStarted:
        agent = self.agent
        declarations = json.dumps(agent.tools.declarations(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        options = agent.options
        return RunStarted(
            question=question,
            model=dict(agent.model.identity()),
            seed=options.seed,
            limits={name: getattr(agent.limits, name) for name in ("calls", "reasoning_tokens", "seconds")},
            tools=agent.tools.names(),
            declarations_hash=hashlib.sha256(declarations.encode()).hexdigest(),
            versions={"k2core": k2core.__version__, "python": platform.python_version()},
            options={
                "max_tokens": options.max_tokens,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "min_p": options.min_p,
            },
        )
