"""A fork: a new run that begins as another one did, and goes on from there on its own.

It holds copies of the other run's first events, at their times, then ``run.forked``; the other run stays as it is. Calls among
the copies keep their results, or one of them gets a result that is given by hand. `Agent.resume` does the rest: a call that was
begun and has no result is settled under the key that it had in the other run (`k2core.agent.ledger.key_of`), while calls behind
the fork are the fork's own, side effects included.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from k2core.agent.journal import Journal
from k2core.agent.resuming import UNFINISHED, is_ended, last_answer
from k2core.errors import InputError
from k2core.events import AnswerGiven, Live, PathStarted, RunForked, Stored, ToolIntent, ToolReturned
from k2core.tools import CONTROL_NAMES

if TYPE_CHECKING:
    from k2core.agent.loop import Agent


@frozen(kw_only=True)
class Given:
    """A result that is given by hand; one that starts with ``error: `` stands for a call that failed."""

    tool: str
    text: str

    @classmethod
    def of(cls, text: str) -> "Given":
        """The result that ``TOOL=RESULT`` gives.

        Raises:
            InputError: there is no ``=``, no tool before it, or text that is not UTF-8.
        """
        tool, equals, result = text.partition("=")
        if not equals or not tool.strip():
            raise InputError(f"cannot give the result '{text}': expected TOOL=RESULT, e.g. calculator=42")
        try:
            result.encode()
        except UnicodeEncodeError:
            raise InputError(f"cannot give a result of {tool}: it is not UTF-8. Check the terminal's encoding.") from None
        return cls(tool=tool.strip(), text=result)


@frozen(kw_only=True)
class Cut:
    """What a fork begins with.

    Attributes:
        run: id of the run that is forked.
        copied: its first events.
        given: what stands behind them in the place of a call's result, at its time; None where all are copies.
    """

    run: str
    copied: Sequence[Stored]
    given: Stored | None = None

    @property
    def events(self) -> Sequence[Stored]:
        """All of them."""
        return self.copied if self.given is None else [*self.copied, self.given]


def place_of(text: str) -> tuple[str, int]:
    """The run and the number of ``RUN@STEP``.

    Raises:
        InputError: it is something else.
    """
    run, at, step = text.rpartition("@")
    if not at or not run or not step.isascii() or not step.isdigit():
        example = run or ("last" if at else text) or "last"
        raise InputError(
            f"cannot fork '{text}': expected RUN@STEP, where STEP is the number of an event as k2 runs show prints it, "
            f"e.g. {example}@6"
        )
    return run, int(step)


def cut_at(journal: Journal, run: str, step: int, given: Given | None = None) -> Cut:
    """What a fork of *run* at event number *step* begins with; a damaged run can be forked before its damage.

    Args:
        journal: has the run.
        run: an id, the beginning of one, or ``last``.
        step: the last event that is copied; with *given*, the call or the result that it stands for.
        given: what came back from a call, in the place of what did.

    Raises:
        UnknownName: no such run.
        InputError: there is no such event, or no call of that tool, nothing is left to do there, or it is the work of several
            paths, which are runs of their own.
    """
    events, damage = journal.sound(run)
    full = journal.find_run(run)
    what = f"cannot fork run {full} at event {step}"
    if damage is not None and (step >= damage.sequence or not events):
        rest = f" Fork it before that, e.g. k2 runs fork {full}@{len(events)}" if events else ""
        raise InputError(f"{what}: it is damaged at event {damage.sequence}.{rest}")
    if not 1 <= step <= len(events):
        raise InputError(f"{what}: it has the events 1 to {len(events)}, see k2 runs show {full}")
    cut = Cut(run=full, copied=events[:step]) if given is None else _with_result(what, events, step, given)
    paths = [one.event.run for one in cut.copied if isinstance(one.event, PathStarted)]
    if paths:
        raise InputError(f"{what}: it is worked on by several paths from there on. Fork one of their runs: {', '.join(paths)}")
    answer = last_answer(cut.events)
    if answer is not None and is_ended(cut.events) and answer.status not in UNFINISHED:
        number = next(one.sequence for one in reversed(cut.copied) if isinstance(one.event, AnswerGiven))
        raise InputError(
            f"{what}: its question is done there ({answer.status}). Fork it before the answer, which is event {number}, or ask "
            f'another question: k2 run -c {full} "…"'
        )
    return cut


def _with_result(what: str, events: Sequence[Stored], step: int, given: Given) -> Cut:
    """The cut before the result of a call, with the given one in its place."""
    at, run = events[step - 1].event, events[0].run
    if not isinstance(at, ToolIntent | ToolReturned):
        calls = [str(one.sequence) for one in events if isinstance(one.event, ToolReturned) and one.event.name == given.tool]
        known = f"results of {given.tool} are events {', '.join(calls)}" if calls else f"it has no result of {given.tool}"
        raise InputError(f"{what} with a result of {given.tool}: that event is no call but {at.kind}; {known}")
    if at.name != given.tool:
        raise InputError(f"{what} with a result of {given.tool}: the call there is one of {at.name}")
    if at.name in CONTROL_NAMES:
        raise InputError(f"{what} with a result of {given.tool}: its results are the agent's own")
    real = next((one for one in events if isinstance(one.event, ToolReturned) and one.event.index == at.index), None)
    copied = events[:step] if real is None else events[: real.sequence - 1]
    result = ToolReturned(
        call_id=at.call_id,
        index=at.index,
        name=at.name,
        text=given.text,
        ok=not given.text.startswith("error: "),
        full_bytes=len(given.text.encode()),
    )
    time = copied[-1].time if real is None else real.time
    return Cut(run=run, copied=copied, given=Stored(run=run, sequence=len(copied) + 1, time=time, event=result))


async def fork(journal: Journal, run: str, step: int, given: Given | None = None, *, seed: int | None = None) -> str:
    """Write a new run that begins with the first *step* events of *run*; `Agent.resume` goes on with it.

    Args:
        journal, run, step, given: see `cut_at`.
        seed: of the sampler, to be kept with the fork for `k2 resume`; an agent's own options say what it samples with.

    Returns:
        The new run's id.

    Raises:
        UnknownName, InputError: see `cut_at`.
        JournalError: it could not be stored.
    """
    return (await write(journal, cut_at(journal, run, step, given), seed=seed)).run


async def write(journal: Journal, cut: Cut, *, seed: int | None = None) -> Stored:
    """Write a new run that begins with a cut; its ``run.forked``."""
    returned = None if cut.given is None else cut.given.event
    forked = RunForked(
        run=cut.run,
        sequence=len(cut.copied),
        hash=journal.hash_of(cut.run, len(cut.copied)),
        replaced=returned.index if isinstance(returned, ToolReturned) else None,
        seed=seed,
    )
    return (await journal.copy(cut.events, journal.start_run(), forked))[-1]


async def work_on(
    agent: "Agent", cut: Cut, resume: Callable[[str], AsyncIterator[Stored | Live]], *, seed: int | None = None
) -> AsyncIterator[Stored | Live]:
    """Write a fork and go on with it; what happens, ``run.forked`` first.

    Args:
        agent: whose journal the fork is written to.
        cut: what it begins with.
        resume: goes on with the run of an id: `Agent.resume`, or that of several paths.
        seed: see `fork`.

    Raises:
        K2Error: as of *resume*.
    """
    forked = await write(agent.journal, cut, seed=seed)
    yield forked
    closing: Any = resume(forked.run)
    async with contextlib.aclosing(closing) as items:
        async for item in items:
            yield item
