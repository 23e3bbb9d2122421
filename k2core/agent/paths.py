"""Several trajectories for one question (heavy mode): they share the model and its cache of prompts, and one budget.

Each trajectory is a run of its own in the same journal, so that it can be shown, replayed and verified as any run; the run of
the question keeps which there are, what came of each and which answer was chosen. A question that was cut off goes on:
trajectories that ended stay ended, the others are resumed.

Only tools without side effects are offered: several trajectories must not do a thing several times. They wait for nobody, so
tools that need a person's approval are not offered either.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from attrs import define, evolve, field

from k2core.agent.budget import Limits
from k2core.agent.lease import Lease
from k2core.agent.loop import Agent
from k2core.agent.prompts import SYSTEM
from k2core.agent.resuming import is_ended, last_answer, see_unfinished, spent
from k2core.agent.selecting import Judge, agreed, choose, key_of
from k2core.errors import InputError, JournalError, UsageError
from k2core.events import (
    AnswerGiven,
    ClaimEvidence,
    Event,
    Live,
    MessageAdded,
    PathChosen,
    PathEnded,
    PathStarted,
    RunEnded,
    RunResumed,
    RunStarted,
    StatusLine,
    Stored,
    ToolIntent,
    Warned,
)
from k2core.tools import Registry

MOST_PATHS = 64
SAFE = ("pure", "read")
STOPPED = "stopped"


@define(kw_only=True)
class Paths:
    """N trajectories of one agent.

    Attributes:
        agent: whose model, tools, verifiers, journal and limits they share.
        count: how many.
        temperature: of all but the first where the agent's own is 0, since greedy trajectories would all be the same.
        judge: asked last, see `k2core.agent.selecting`.
    """

    agent: Agent
    count: int
    temperature: float = 0.7
    judge: Judge | None = None
    _lease: Lease | None = field(default=None, init=False)
    _events: list[Stored] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        if not 2 <= self.count <= MOST_PATHS:
            raise UsageError(f"cannot work on {self.count} paths: expected 2 to {MOST_PATHS}")

    async def stream(self, question: str) -> AsyncIterator[Stored | Live]:
        """Work on *question* and yield the events of its run; what trajectories do meanwhile is told by status lines.

        Raises:
            InputError: the question is empty.
            K2Error: as of `Agent.stream`.
        """
        if not question.strip():
            raise InputError('the question is empty. Give one, e.g. k2 run "What is 23 times 47?"')
        run = self.agent.journal.start_run()
        async with contextlib.aclosing(self._worked_on(run, question)) as items:
            async for item in items:
                yield item

    async def resume(self, run: str) -> AsyncIterator[Stored | Live]:
        """Go on with a question whose work on several trajectories was cut off.

        Raises:
            InputError: it is done.
            RunBusy: another process works on it.
        """
        run = self.agent.journal.find_run(run)
        see_unfinished(run, self.agent.journal.events(run))
        async with contextlib.aclosing(self._worked_on(run, None)) as items:
            async for item in items:
                yield item

    async def _worked_on(self, run: str, question: str | None) -> AsyncGenerator[Stored | Live, None]:
        journal = self.agent.journal
        self._lease = await journal.take(run)
        ended = False
        try:
            self._events = journal.known(run)
            for stored in await self._begin(run, question):
                yield stored
            async for item in self._ends(run):
                yield item
            for stored in await self._conclude(run):
                yield stored
            ended = True
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.shield(self._append(run, RunEnded(status="cancelled", **self._totals())))
            raise
        except Exception:
            if not ended:
                with contextlib.suppress(JournalError):
                    await self._append(run, RunEnded(status="failed", **self._totals()))
            raise
        finally:
            lease, self._lease = self._lease, None
            if lease is not None:
                with contextlib.suppress(JournalError):
                    await asyncio.shield(journal.release(lease))

    async def _append(self, run: str, *events: Event) -> list[Stored]:
        stored = await self.agent.journal.append(run, *events, lease=self._lease) if events else []
        self._events.extend(stored)
        return stored

    async def _begin(self, run: str, question: str | None) -> list[Stored]:
        """The start of the run, or that it goes on, and which trajectories there are."""
        fresh: list[Event] = []
        agent = self.agent
        if question is not None:
            fresh += [
                agent.started(question, paths=self.count),
                MessageAdded(role="system", content=agent.model.profile.system or SYSTEM),
                MessageAdded(role="user", content=question),
            ]
            unsafe = self._unsafe()
            if unsafe:
                kept = "no tools with side effects or in need of approval"
                what = f"several paths are offered {kept}: {', '.join(unsafe)} are left out"
                fresh.append(Warned(text=what))
        else:
            fresh.append(RunResumed(limits=agent.limits.by_name()))
        known = {one.event.path for one in self._events if isinstance(one.event, PathStarted)}
        share = shared(agent.limits, self.count)
        for path in range(self.count):
            if path not in known:
                own = agent.options.temperature
                warm = own if own or path == 0 else self.temperature
                started = PathStarted(path=path, run=agent.journal.start_run(), limits=share.by_name(), temperature=warm)
                fresh.append(started)
        return await self._append(run, *fresh)

    async def _ends(self, run: str) -> AsyncIterator[Stored | Live]:
        """Work on all trajectories at once until each has ended, or enough agree."""
        started = [one.event for one in self._events if isinstance(one.event, PathStarted)]
        ended = {one.event.path: one.event for one in self._events if isinstance(one.event, PathEnded)}
        question = next(one.event.question for one in self._events if isinstance(one.event, RunStarted))
        heard: asyncio.Queue[PathEnded | Live | BaseException] = asyncio.Queue()
        tasks = {one.path: asyncio.ensure_future(self._walk(one, question, heard)) for one in started if one.path not in ended}
        try:
            while len(ended) < len(started):
                item = await heard.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Live):
                    yield item
                    continue
                ended[item.path] = item
                for stored in await self._append(run, item):
                    yield stored
                if agreed(list(ended.values()), len(started)) and len(ended) < len(started):
                    left = [one for one in started if one.path not in ended]
                    await _stop(tasks[one.path] for one in left)
                    for stored in await self._append(run, *(self._stopped(one) for one in left)):
                        yield stored
                    return
        finally:
            await _stop(tasks.values())

    async def _walk(self, started: PathStarted, question: str, heard: "asyncio.Queue[Any]") -> None:
        """One trajectory to its end."""
        agent = self._agent_of(started)
        try:
            known = agent.journal.known(started.run)
            if not is_ended(known) or last_answer(known) is None:
                closing: Any = agent.resume(started.run) if known else agent.stream(question, as_run=started.run)
                async with contextlib.aclosing(closing) as items:
                    async for item in items:
                        if isinstance(item, Stored) and isinstance(item.event, ToolIntent):
                            text = f"path {started.path}: call {item.event.index}, {item.event.name}"
                            await heard.put(Live(delta=StatusLine(text=text)))
            await heard.put(self._ended(started))
        except Exception as error:
            await heard.put(error)

    def _agent_of(self, started: PathStarted) -> Agent:
        agent = self.agent
        limits = agent.limits.changed(dict(started.limits))
        tools = [agent.tools.get(name) for name in agent.tools.names() if name not in self._unsafe()]
        return Agent(
            model=agent.model,
            tools=Registry.of(tools, result_limit=agent.tools.result_limit),
            verifiers=agent.verifiers,
            journal=agent.journal,
            limits=limits,
            options=evolve(agent.options, path=started.path, temperature=started.temperature),
            memory=agent.memory,
            prices=agent.prices,
            made_of={**agent.made_of, "path": started.path},
            guards=agent.guards,
            approval=agent.approval,
            waits=False,
        )

    def _unsafe(self) -> list[str]:
        tools = (self.agent.tools.get(name) for name in self.agent.tools.names())
        approved = self.agent.approval.classes
        return [one.name for one in tools if not one.control and (one.effect not in SAFE or one.effect in approved)]

    def _ended(self, started: PathStarted) -> PathEnded:
        """What the trajectory's own run says of its end."""
        events = self.agent.journal.known(started.run)
        answer, used = last_answer(events), spent(events)
        end = next((one.event for one in reversed(events) if isinstance(one.event, RunEnded)), None)
        if answer is None:
            status = end.status if end is not None else "failed"
            return PathEnded(path=started.path, run=started.run, status=status, calls=used.calls, tokens=used.tokens)
        return PathEnded(
            path=started.path,
            run=started.run,
            status=answer.status,
            text=answer.text,
            claims=answer.claims,
            evidence=answer.evidence,
            key=key_of(answer, events),
            calls=used.calls,
            tokens=used.tokens,
        )

    def _stopped(self, started: PathStarted) -> PathEnded:
        used = spent(self.agent.journal.known(started.run))
        return PathEnded(path=started.path, run=started.run, status=STOPPED, calls=used.calls, tokens=used.tokens)

    async def _conclude(self, run: str) -> list[Stored]:
        ended = [one.event for one in self._events if isinstance(one.event, PathEnded)]
        chosen, others, why = await choose(ended, self.judge)
        places = {one.event.path: one.sequence for one in self._events if isinstance(one.event, PathEnded)}
        sources = tuple(places[path] for path in (chosen.path, *others))  # what was seen stands in their runs
        given = AnswerGiven(
            text=chosen.text or "None of the paths came to an answer.",
            claims=chosen.claims,
            status=chosen.status if chosen.text else "failed",  # type: ignore[arg-type]  # an answer's, where there is one
            reason="" if chosen.status == "answered" else f"the best of {len(ended)} paths is {chosen.status}",
            evidence=tuple(ClaimEvidence(claim=one.claim, events=sources) for one in chosen.evidence),
        )
        return await self._append(
            run,
            PathChosen(path=chosen.path, agreeing=others, why=why),
            MessageAdded(role="assistant", content=given.text),
            given,
            RunEnded(status=given.status, **self._totals()),
        )

    def _totals(self) -> dict[str, Any]:
        ended = [one.event for one in self._events if isinstance(one.event, PathEnded)]
        seconds = spent(self._events).seconds
        return {
            "seconds": seconds,
            "tokens": sum(one.tokens for one in ended),
            "calls": sum(one.calls for one in ended),
        }


def shared(limits: Limits, count: int) -> Limits:
    """The share of one of *count* trajectories: of everything but time, which passes for all at once.

    Raises:
        UsageError: a budget is too small to be shared.
    """
    parts: dict[str, float | None] = {}
    for name, value in limits.by_name().items():
        whole = name not in ("seconds", "cost")
        parts[name] = value if value is None or name == "seconds" else value // count if whole else value / count
        if whole and parts[name] == 0:
            raise UsageError(f"cannot share a budget of {value:g} {name.replace('_', ' ')} among {count} paths: raise it")
    return limits.changed(parts)


async def _stop(tasks: "Any") -> None:
    tasks = [task for task in tasks if not task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def paths_of(events: Sequence[Stored]) -> int:
    """How many trajectories a run began with; 0 where it is a plain one."""
    started = next((one.event for one in events if isinstance(one.event, RunStarted)), None)
    count = started.options.get("paths", 0) if started is not None else 0
    return count if isinstance(count, int) else 0
