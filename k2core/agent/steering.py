"""What is done when a run goes round in circles; `progress` says when."""

from collections.abc import AsyncIterator

from attrs import frozen

from k2core.agent import projection
from k2core.agent.budget import Reached
from k2core.agent.concluding import ask_to_conclude
from k2core.agent.control import ANSWER
from k2core.agent.progress import ROLL_BACK, STEER, STOP
from k2core.agent.prompts import ROLLED_BACK
from k2core.agent.work import Forbidden, Work
from k2core.events import Stalled, Stored, ToolIntent
from k2core.tools import CONTROL_NAMES


@frozen(kw_only=True)
class NoProgress(Reached):
    """The bound of steps that bring nothing new, as what ends a run."""

    which: str = "calls without progress"

    def __str__(self) -> str:
        return f"the last {self.used:g} calls brought nothing new"


async def steer(work: Work) -> AsyncIterator[Stored]:
    """Before a turn: see whether the calls so far brought anything new, and act where they did not."""
    work.forbidden = Forbidden()
    progress = work.progress
    if progress.idle < STEER or work.winding is not None:
        return
    newest = next(one.event for one in reversed(work.events) if isinstance(one.event, ToolIntent))
    calls = tuple(range(progress.since, newest.index + 1))
    others = [name for name in work.tools.names() if name not in (newest.name, ANSWER)]
    if newest.name in CONTROL_NAMES or any(name not in CONTROL_NAMES for name in others):
        work.forbidden = Forbidden(tools=(newest.name,))
    else:
        work.forbidden = Forbidden(calls=tuple(progress.written.values()))
    tool = "".join(work.forbidden.tools)
    if progress.idle >= STOP:
        near = NoProgress(limit=STOP, used=float(len(calls)), near=True)
        (stored,) = await work.append(Stalled(action="stop", idle=progress.idle, calls=calls))
        yield stored
        for stored in await ask_to_conclude(work, near):
            yield stored
    elif progress.idle >= ROLL_BACK > progress.told:
        for stored in await work.append(Stalled(action="roll-back", idle=progress.idle, calls=calls, tool=tool)):
            yield stored
        work.messages = projection.messages(work.events)
        yield await work.say(ROLLED_BACK.format(first=calls[0], last=calls[-1]))
    elif progress.told < STEER:
        for stored in await work.append(Stalled(action="steer", idle=progress.idle, calls=calls, tool=tool)):
            yield stored
    progress.told = progress.idle
