"""The loop: think → call → observe → … → answer → verify → revise or conclude.

Read `Agent.stream` first, then its steps in their order, each in a file of its own:

    thinking     one turn of the model
    calling      its calls, and what comes back
    answering    an answer, the verdict, a revision
    concluding   the final answer, or what is known when there is none

Guards stand around each of them (`around`, `gating`, `guarding`), and a person where one is to approve (`approving`).
The state that they share is `work.Work`. Everything that happens is appended to the journal before it is shown or acted upon:
a call is dispatched only after its intent is durable, and an answer is final only after its event is.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field

from k2core.agent import around, guarding, projection, resuming
from k2core.agent.answering import answer_in_words
from k2core.agent.approving import Approval, Asker
from k2core.agent.budget import Budget, Limits
from k2core.agent.calling import act
from k2core.agent.concluding import ask_to_conclude, wind_down
from k2core.agent.journal import Journal
from k2core.agent.result import RunResult, result_of
from k2core.agent.resuming import of_question
from k2core.agent.steering import steer
from k2core.agent.swap_events import following
from k2core.agent.swaps import Swaps
from k2core.agent.thinking import interrupted, think
from k2core.agent.window import Window
from k2core.agent.work import Work
from k2core.errors import InputError, JournalError, K2Error, said
from k2core.events import Live, RunEnded, RunStarted, Stored
from k2core.interfaces import Answer, ChatModel, GenerateOptions, Memory, Prices, Verifier
from k2core.tools import Registry

__all__ = ["Agent", "RunResult", "result_of"]


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
        swaps: what carries out the session's parts by now; see `k2core.agent.swapping`.
        memory: says what makes room when the model's context is nearly full.
        prices: of the model's tokens; the model's own unless given.
        made_of: what else a run should record of the session, for `k2 resume`; JSON values.
        guards: asked around every step, turn, call and answer, in their order; see `k2core.guards`.
        approval: what needs a person's approval.
        asker: asks a person who is there; None lets the run wait for `k2core.agent.deciding.decide`.
        waits: runs may wait for a person; what would have to is refused otherwise.
        last_run: the run of the question that was begun last, or that the next one goes on with; None before the first.
    """

    model: ChatModel
    tools: Registry
    verifiers: Sequence[Verifier] = ()
    journal: Journal
    limits: Limits = field(factory=Limits)
    options: GenerateOptions = field(factory=GenerateOptions)
    swaps: Swaps = field(factory=Swaps)
    memory: Memory = field(factory=Window)
    prices: Prices | None = None
    made_of: Mapping[str, Any] = field(factory=dict)
    guards: Sequence[Any] = ()
    approval: Approval = field(factory=Approval)
    asker: Asker | None = None
    waits: bool = True
    last_run: str | None = None
    _running: int = field(default=0, init=False)  # questions that are being worked on
    _writing: threading.Lock = field(factory=threading.Lock, init=False, repr=False, eq=False)  # swaps, between two questions

    def __attrs_post_init__(self) -> None:
        self.swaps.told = self.write_swaps

    async def stream(self, question: str, *, run: str | None = None, as_run: str | None = None) -> AsyncIterator[Stored | Live]:
        """Work on *question* and yield what happens.

        Args:
            question: the user's text.
            run: a run to continue; None starts a new one.
            as_run: id of the new run, from `Journal.start_run`; None makes one.

        Raises:
            InputError: the question is empty.
            K2Error: ours or the journal's fault; everything up to that point is in the journal.
        """
        if not question.strip():
            raise InputError('the question is empty. Give one, e.g. k2 run "What is 23 times 47?"')
        async with contextlib.aclosing(self._worked_on(lambda work: work.begin(question, run, as_run))) as items:
            async for item in items:
                yield item

    async def resume(self, run: str) -> AsyncIterator[Stored | Live]:
        """Go on with the last question of *run* where it was cut off, and yield what happens.

        Calls that were begun and have no result are settled as the effects ledger allows (`k2core.agent.ledger`); where only a
        person can say what became of one, the run ends with the status ``waiting``.

        Args:
            run: a run's id, the beginning of one, or ``last``.

        Raises:
            InputError: its last question is done.
            RunBusy: another process works on it.
            JournalDamaged: it cannot be read whole; names the first event that does not fit.
            K2Error: as of `stream`.
        """
        async with contextlib.aclosing(self._worked_on(lambda work: work.reopen(run))) as items:
            async for item in items:
                yield item

    async def _worked_on(self, begin: Callable[[Work], Awaitable[list[Stored]]]) -> AsyncGenerator[Stored | Live, None]:
        """A question from where *begin* puts it to its end."""
        work = Work(
            model=self.model,
            tools=self.tools,
            verifiers=self.verifiers,
            journal=self.journal,
            options=self.options,
            budget=Budget(limits=self.limits, prices=self.prices or self.model.profile.prices),
            swaps=self.swaps,
            memory=self.memory,
            made_of=self.made_of,
            guards=tuple(self.guards),
            approval=self.approval,
            asker=self.asker,
            waits=self.waits,
        )
        with self._writing:
            self._running += 1
        try:
            if self._running == 1:
                self.swaps.settle()
            for stored in await begin(work):
                yield stored
            while not work.ended:
                async for item in _step(work):
                    yield item
            async for stored in _after_answer(work):
                yield stored
        except (asyncio.CancelledError, GeneratorExit):
            if work.lease and not work.ended:
                await asyncio.shield(work.append(*interrupted(work), RunEnded(status="cancelled", **work.totals())))
            raise
        except Exception:
            if work.lease and not work.ended:
                with contextlib.suppress(JournalError):  # the journal may be what failed; the first error is the one to tell
                    await work.append(RunEnded(status="failed", **work.totals()))
            raise
        finally:
            self.last_run = work.run if work.events else self.last_run
            self._running -= 1
            with contextlib.suppress(JournalError):  # an unreleased lease lapses
                await asyncio.shield(work.leave())
            self.write_swaps()

    def started(self, question: str, **options: Any) -> RunStarted:
        """What a run on *question* begins with; *options* are recorded beside what it is made of."""
        work = Work(
            model=self.model,
            tools=self.tools,
            verifiers=self.verifiers,
            journal=self.journal,
            options=self.options,
            budget=Budget(limits=self.limits),
            made_of={**self.made_of, **options},
            guards=tuple(self.guards),
        )
        return work.run_started(question)

    def write_swaps(self) -> None:
        """Write what was swapped or refused between two questions into the run of the last one.

        A question that is worked on writes it itself, and so does the first one. What cannot be written waits for the next.
        """
        with self._writing:
            told = [] if self._running or self.last_run is None else self.swaps.take()
            if not told or self.last_run is None:
                return
            try:
                known = [one.event for one in self.journal.events(self.last_run)]
                self.journal.write(self.last_run, *following(known, told, self.swaps))
            except K2Error as error:
                import structlog  # it imports rich

                self.swaps.give_back(told)
                line = f"what was swapped or refused is not in run {self.last_run} yet: {error}"
                structlog.get_logger().warning("swaps.not_written", run=self.last_run, reason=str(error), line=line)

    async def ask(self, question: str, *, run: str | None = None) -> RunResult:
        """`stream` to its end, as one result."""
        return await self._result(self.stream(question, run=run))

    async def finish(self, run: str) -> RunResult:
        """`resume` to its end, as one result; what was used before counts too."""
        return await self._result(self.resume(run))

    async def _result(self, stream: AsyncIterator[Stored | Live]) -> RunResult:
        run = ""
        async for item in stream:
            run = item.run if isinstance(item, Stored) else run
        return evolve(result_of(of_question(self.journal.events(run))), model=dict(self.model.identity()))

    def run(self, question: str, *, run: str | None = None) -> RunResult:
        """`ask` for callers without an event loop."""
        return asyncio.run(self.ask(question, run=run))


async def _step(work: Work) -> AsyncIterator[Stored | Live]:
    """One turn of the model and what follows from it; a turn that the log has already is taken from there."""
    for stored in await work.hear():
        yield stored
    if work.turn is None:
        reached = work.budget.reached()
        if reached is None and work.winding is not None and not work.words:
            reached = work.winding
        if reached is not None:
            async for stored in wind_down(work, reached):
                yield stored
            return
        near = work.budget.near()
        if near is not None and work.winding is None:
            for stored in await ask_to_conclude(work, near):
                yield stored
        async for stored in steer(work):
            yield stored
        async for stored in around.before(work, "step"):
            yield stored
        if work.ended:
            return
        work.words -= 1 if work.winding is not None else 0
        async for item in _think(work):
            yield item
        if work.turn is None:
            return
    turn, work.turn = work.turn, None
    async for stored in act(work, turn) if turn.calls else answer_in_words(work, turn):
        yield stored
    for stored in [] if _is_waiting(work) else await _tell(work, "after_step"):
        yield stored


def _is_waiting(work: Work) -> bool:
    """Whether the step goes on when a person has decided."""
    last = work.events[-1].event
    return work.ended and isinstance(last, RunEnded) and last.status == "waiting"


async def _think(work: Work) -> AsyncIterator[Stored | Live]:
    """One turn of the model, with the guards around it."""
    async for stored in around.before(work, "model"):
        yield stored
    if work.ended:
        return
    try:
        async for item in think(work):
            yield item
    except Exception as error:
        with contextlib.suppress(JournalError):  # the first error is the one to tell
            for stored in await _tell(work, "on_model_error", said(error)):
                yield stored
        raise
    if work.turn is not None:
        for stored in await _tell(work, "after_model", work.turn.message()):
            yield stored
    elif work.ended:  # the prompt does not fit
        answer = resuming.last_answer(work.events)
        for stored in await _tell(work, "on_model_error", "" if answer is None else answer.reason):
            yield stored


async def _after_answer(work: Work) -> AsyncIterator[Stored]:
    """Tell the guards of the answer that the work has ended with."""
    answer = resuming.last_answer(work.events) if work.guards else None
    if answer is not None:
        given, seen = Answer(text=answer.text, claims=answer.claims), projection.trajectory(work.events)
        for stored in await guarding.tell(work, "after_answer", given, seen):
            yield stored


async def _tell(work: Work, hook: str, *more: Any) -> list[Stored]:
    """Tell the guards of a step or of a turn."""
    return await guarding.tell(work, hook, guarding.step_of(work), *more) if work.guards else []
