"""Remember: when the context is nearly full, the memory says what makes room, and the log keeps what it said.

A memory that raises, gives nonsense or makes too little room is told of by a warning, and the framework's own rules (`window`)
make room instead. What it decides is one event, so that a run that is cut off anywhere goes on with all of it or none.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from attrs import evolve, fields

from k2core.agent import projection
from k2core.agent.control import RECALL
from k2core.agent.room import event_of, fault_of, view_of
from k2core.agent.window import WINDOW, room_by_rules
from k2core.agent.work import Work
from k2core.errors import K2Error, said
from k2core.events import Event, Live, StatusLine, Stored, Warned
from k2core.interfaces import GenerateOptions, Room
from k2core.memory import Ask
from k2core.messages import Message, TurnEnd, Usage


async def make_room(work: Work) -> AsyncIterator[Stored | Live]:
    """Make room for the next turn where the context is nearly full; `Work.messages` are what it will see."""
    can_recall = RECALL in work.tools.names()
    view = view_of(work.events, work.messages, work.model.profile.context, can_recall=can_recall)
    if view is None:
        return
    rules = room_by_rules(view) or Room()
    spent: list[Usage] = []
    yield Live(delta=StatusLine(text="making room in the model's context"))
    given: object = None
    try:
        async with asyncio.timeout(work.budget.left("seconds", reserve=True)):
            given = await work.memory.make_room(view, _asker(work, spent))
        fault = fault_of(given, view, work.events, rules)
    except Exception as error:  # a stranger's memory may raise anything; the run goes on by the framework's own rules
        fault = "took more time than the question has" if isinstance(error, TimeoutError) else said(error)
    warnings = []
    if fault:
        warnings.append(f"memory '{work.memory.name}': {fault}; the framework's own rules make room instead")
    elif isinstance(given, Room) and given.warning:
        warnings.append(f"memory '{work.memory.name}': {given.warning}")
    known = {one.event.text for one in work.events if isinstance(one.event, Warned)}
    fresh: list[Event] = [Warned(text=text) for text in warnings if text not in known]
    room, by = (rules, WINDOW) if fault or not isinstance(given, Room) else (given, work.memory.name)
    made = event_of(room, by, _together(spent))
    if made is not None:
        fresh.append(made)
    for stored in await work.append(*fresh):
        yield stored
    work.messages = projection.messages(work.events)


def _asker(work: Work, spent: list[Usage]) -> Ask:
    """Puts messages to the model in a turn without tools; what that costs counts, and is added to *spent*."""

    async def ask(messages: Sequence[Message]) -> str:
        near = work.winding or work.budget.near()
        if near is not None:
            raise K2Error(f"the model was not asked: {near}")
        most = work.budget.tokens_left(reserve=False)
        options = evolve(
            work.options,
            max_tokens=work.options.max_tokens if most is None else min(most, work.options.max_tokens),
            max_reasoning_tokens=work.budget.reasoning_left(reserve=False),
        )
        end = await _turn(work, messages, options)
        spent.append(end.usage)
        work.budget.spend(end.usage)
        if end.finish_reason != "stop" or end.message.tool_calls:
            what = f"was cut at its limit of {options.max_tokens} tokens" if end.finish_reason == "length" else "called a tool"
            raise K2Error(f"the model's turn {what}")
        return end.message.content

    return ask


async def _turn(work: Work, messages: Sequence[Message], options: GenerateOptions) -> TurnEnd:
    """One turn without tools, whole."""
    parts = work.model.generate(list(messages), (), options)
    end: TurnEnd | None = None
    try:
        async for part in parts:
            end = part if isinstance(part, TurnEnd) else end
    except (K2Error, TimeoutError):
        raise
    except Exception as error:  # a stranger's model may raise anything
        raise K2Error(f"the model's turn {said(error)}") from error
    finally:
        close = getattr(parts, "aclose", None)
        if close is not None:
            await close()
    if end is None:
        raise K2Error("the model's turn had no end")
    return end


def _together(usages: Sequence[Usage]) -> Usage:
    return Usage(**{one.name: sum(getattr(usage, one.name) for usage in usages) for one in fields(Usage)})
