"""One question being worked on: what it may use, what has happened so far, and the only ways to add to that.

The steps of the loop (`thinking`, `calling`, `answering`, `concluding`) are functions over a `Work`. Whatever they do goes
through `Work.append` or `Work.record`, which return when it is durable in the journal.
"""

import asyncio
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

import k2core
from k2core.agent import projection, resuming
from k2core.agent.approving import Approval, Asker
from k2core.agent.blobs import Blobs
from k2core.agent.budget import Budget, Reached
from k2core.agent.guarding import name_of
from k2core.agent.journal import Journal
from k2core.agent.lease import Lease
from k2core.agent.progress import Progress, canonical
from k2core.agent.prompts import SYSTEM
from k2core.agent.swap_events import following, in_force
from k2core.agent.swaps import Swaps, declarations_hash
from k2core.agent.window import Window
from k2core.errors import InputError, JournalError, UsageError
from k2core.events import (
    AnswerGiven,
    Artefact,
    Event,
    LimitsChanged,
    MessageAdded,
    RunEnded,
    RunResumed,
    RunStarted,
    Stored,
    ToolIntent,
    ToolReturned,
    TurnEnded,
    Warned,
)
from k2core.interfaces import ChatModel, GenerateOptions, Memory, ToolResult, Verifier
from k2core.messages import Delta, Message, ToolCall
from k2core.tools import Registry


@frozen(kw_only=True)
class Forbidden:
    """What one turn may not call: tools by name, and (name, arguments) as they were written."""

    tools: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()

    def covers(self, call: ToolCall) -> bool:
        """Whether *call* is one of them."""
        same = ((name, canonical(arguments)) for name, arguments in self.calls)
        return call.name in self.tools or (call.name, canonical(call.arguments)) in same


@define(kw_only=True)
class Work:
    """One question being worked on.

    Attributes:
        model: generates turns.
        tools: the session's tools.
        verifiers: asked about every answer.
        journal: keeps the run.
        options: sampling and the length of one turn.
        budget: what the question may use and has used.
        swaps: what carries out the session's parts by now.
        memory: says what makes room when the model's context is nearly full.
        made_of: see `Agent.made_of`.
        run: the run's id; empty before `begin`.
        events: of the run so far, those of earlier questions included.
        messages: the conversation that the model's next turn continues.
        heard: of the turn that is being generated.
        turn: the turn to act upon, None while there is none.
        attempts: answers that were verified.
        silences: turns in a row that were empty or cut.
        winding: the budget of which only the reserve is left, once the model was told; None before.
        words: turns that the model may still use to conclude, once it was told.
        progress: whether calls still bring anything new.
        forbidden: what the next turn may not call.
        guards: asked around steps, turns, calls and answers.
        approval: what needs a person's approval.
        asker: asks a person who is there; None where the run waits.
        waits: the run may wait for a person; what would have to is refused otherwise.
        wished: number of the newest wish that was heard, None before the first look.
        ended: the run's end is in the journal.
        lease: the right to write to the run.
    """

    model: ChatModel
    tools: Registry
    verifiers: Sequence[Verifier]
    journal: Journal
    options: GenerateOptions
    budget: Budget
    swaps: Swaps = field(factory=Swaps)
    memory: Memory = field(factory=Window)
    made_of: Mapping[str, Any] = field(factory=dict)
    run: str = ""
    events: list[Stored] = field(factory=list)
    messages: list[Message] = field(factory=list)
    heard: list[Delta] = field(factory=list)
    turn: TurnEnded | None = None
    attempts: int = 0
    silences: int = 0
    winding: Reached | None = None
    words: int = 0
    progress: Progress = field(factory=Progress)
    forbidden: Forbidden = field(factory=Forbidden)
    guards: Sequence[Any] = ()
    approval: Approval = field(factory=Approval)
    asker: Asker | None = None
    waits: bool = True
    wished: int | None = None
    ended: bool = False
    lease: Lease | None = None

    async def begin(self, question: str, run: str | None, as_run: str | None = None) -> list[Stored]:
        """Start a run, as *as_run* where that is given, or continue *run*, and put the question into the conversation."""
        fresh: list[Event] = []
        await self._take((as_run or self.journal.start_run()) if run is None else self.journal.find_run(run))
        if run is None:
            fresh.append(self.run_started(question))
            fresh.append(MessageAdded(role="system", content=self.model.profile.system or SYSTEM))
        stored = await self.append(*fresh, MessageAdded(role="user", content=question))
        stored += await self.record()
        self.messages = projection.messages(self.events)
        return stored

    async def reopen(self, run: str) -> list[Stored]:
        """Go on with the last question of *run* where it was cut off.

        Raises:
            InputError: there is nothing to go on with.
            RunBusy: another process works on it.
        """
        run = self.journal.find_run(run)
        resuming.see_unfinished(run, self.journal.events(run))
        await self._take(run)
        resuming.see_unfinished(run, self.events)
        before, answer = resuming.spent(self.events), resuming.last_answer(self.events)
        self.budget.go_on(before)
        self.attempts, self.silences = before.attempts, before.silences
        if answer is not None and not resuming.is_ended(self.events):
            self.ended = True
            return await self.append(RunEnded(status=answer.status, **self.totals()))
        stored = await self.hear()
        near = self.budget.near()
        if near is not None and answer is not None:
            raise InputError(f"cannot go on with run {run}: {near}. Give more of it, e.g. k2 resume {run} --{near.flag}")
        without = 0 if near is not None else resuming.concluding_from(self.events)
        self.attempts = 0 if without else self.attempts
        resumed = RunResumed(limits=self.budget.limits.by_name(), versions=_versions(), without=without)
        stored += await self.append(resumed)
        if not resuming.is_asked(self.events):
            system = any(isinstance(one.event, MessageAdded) for one in self.events)
            fresh = [] if system else [MessageAdded(role="system", content=self.model.profile.system or SYSTEM)]
            stored += await self.append(*fresh, MessageAdded(role="user", content=resuming.question_of(self.events)))
        stored += await self.record()
        self.turn = resuming.last_turn(self.events)
        self.progress = Progress.of(self.events)
        self.messages = projection.messages(self.events, closed=self.turn is None)
        return stored

    async def _take(self, run: str) -> None:
        """Become the one that works on *run*, and know its events."""
        self.lease = await self.journal.take(run)
        self.run = run
        self.events = self.journal.known(run)

    async def leave(self) -> None:
        """Let others work on the run."""
        lease, self.lease = self.lease, None
        if lease is not None:
            await self.journal.release(lease)

    async def see_lease(self) -> None:
        """Make sure, before something is done that cannot be undone, that nobody took the run over meanwhile.

        Raises:
            RunLost: somebody did.
        """
        if self.lease is not None:
            await self.journal.confirm(self.lease)

    async def hear(self) -> list[Stored]:
        """Meet what others asked for meanwhile: other budgets."""
        stored: list[Stored] = []
        for number, wanted in self.journal.asked_for(self.run, self._heard_of()):
            try:
                self.budget.limits = self.budget.limits.changed(wanted)
            except UsageError as error:
                stored += await self.append(Warned(text=f"cannot change budgets as asked: {error}"))
            self.wished = number
            stored += await self.append(LimitsChanged(limits=self.budget.limits.by_name(), request=number))
        if stored and self.budget.near() is None:
            self.winding = None
        return stored

    def _heard_of(self) -> int:
        """Number of the newest wish that the run knows of."""
        if self.wished is None:
            found = [one.event.request for one in self.events if isinstance(one.event, LimitsChanged)]
            self.wished = max(found, default=0)
        return self.wished

    async def wait(self) -> list[Stored]:
        """End the work until a person has decided."""
        self.ended = True
        return await self.record(RunEnded(status="waiting", **self.totals()))

    async def record(self, *events: Event) -> list[Stored]:
        """`append`, behind the swaps and refusals since the last time, and whatever else this run does not know of yet."""
        known, model = [one.event for one in self.events], self.model.identity()
        told = self.swaps.take()
        fresh = following(known, told, self.swaps)
        fresh += in_force([*known, *fresh], model, self.swaps, self.tools)
        try:
            return await self.append(*fresh, *events)
        except JournalError:
            self.swaps.give_back(told)
            raise

    async def append(self, *events: Event) -> list[Stored]:
        """Durable in the journal when it returns."""
        stored = await self.journal.append(self.run, *events, lease=self.lease) if events else []
        self.events.extend(stored)
        return stored

    @property
    def blobs(self) -> Blobs:
        """Where files that calls bring out are kept."""
        return Blobs.beside(self.journal.path)

    async def observe(self, call: ToolCall, index: int, result: ToolResult) -> Stored:
        """Put the result of call number *index* into the journal and the conversation."""
        files = [
            Artefact(name=name, size=len(content), sha256=await asyncio.to_thread(self.blobs.keep, content))
            for name, content in result.files.items()
        ]
        returned = ToolReturned(
            call_id=call.id,
            index=index,
            name=call.name,
            text=result.text,
            ok=result.ok,
            duration_ms=round(result.duration_ms, 3),
            full_bytes=result.full_bytes,
            truncated=result.truncated,
            files=tuple(files),
            details=result.details,
            untrusted=result.untrusted,
        )
        (stored,) = await self.append(returned)
        self.messages.append(projection.tool_message(call.id, call.name, result.text))
        intent = next(
            one.event for one in reversed(self.events) if isinstance(one.event, ToolIntent) and one.event.index == index
        )
        self.progress.see(intent, returned)
        return stored

    async def say(self, text: str) -> Stored:
        """A word of the framework to the model."""
        message = MessageAdded(role="system", name="framework", content=text)
        (stored,) = await self.append(message)
        self.messages.append(message.message())
        return stored

    async def end(self, given: AnswerGiven, *, write_message: bool) -> list[Stored]:
        """Write the answer and the end of the run; with *write_message* also as the assistant's last message."""
        self.ended = True
        told = self.messages[-1] if self.messages else None
        write_message &= told is None or (told.role, told.content) != ("assistant", given.text)  # an interrupted end wrote it
        message = [MessageAdded(role="assistant", content=given.text)] if write_message else []
        return await self.record(*message, given, RunEnded(status=given.status, **self.totals()))

    def totals(self) -> dict[str, Any]:
        """What the question cost so far, as `RunEnded` has it."""
        return {"seconds": round(self.budget.seconds, 3), "tokens": self.budget.tokens, "calls": self.budget.calls}

    def run_started(self, question: str) -> RunStarted:
        """What the run begins with."""
        limits, options = self.budget.limits, self.options
        return RunStarted(
            question=question,
            model=dict(self.model.identity()),
            seed=options.seed,
            limits=limits.by_name(),
            tools=self.tools.names(),
            declarations_hash=declarations_hash(self.tools.declarations()),
            versions=_versions(),
            options={
                "max_tokens": options.max_tokens,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "min_p": options.min_p,
                "masks": options.masks,
                **self.made_of,
                **({"guards": [name_of(one) for one in self.guards]} if self.guards else {}),
            },
        )


def _versions() -> dict[str, str]:
    return {"k2core": k2core.__version__, "python": platform.python_version()}
