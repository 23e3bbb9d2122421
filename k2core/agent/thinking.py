"""Think: one turn of the model, streamed as it comes, stored when it is whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

from attrs import evolve

from k2core.agent import asked, projection
from k2core.agent.concluding import wind_down
from k2core.agent.control import ANSWER
from k2core.agent.remembering import make_room
from k2core.agent.work import Work
from k2core.errors import CapacityError
from k2core.events import Live, Stored, TurnEnded
from k2core.interfaces import GenerateOptions
from k2core.messages import ContentDelta, Delta, ReasoningDelta, TurnEnd

Part = TypeVar("Part")


async def think(work: Work) -> AsyncIterator[Stored | Live]:
    """One turn of the model.

    Afterwards `Work.turn` is the turn to act upon. It is None where the seconds ran out in the middle (what was heard is
    stored, and the next step winds down), and where the prompt does not fit (the run has ended).
    """
    async for item in make_room(work):
        yield item
    end: TurnEnd | None = None
    work.turn, work.heard = None, []
    options, names = _options(work), work.tools.names()
    try:
        async with _closing(_parts(work, options)) as parts:
            async for part in parts:
                if isinstance(part, TurnEnd):
                    end = part
                else:
                    work.heard.append(part)
                    yield Live(delta=part)
    except CapacityError as error:
        async for stored in wind_down(work, str(error)):
            yield stored
        return
    if end is None:
        for stored in await work.append(*interrupted(work)):
            work.messages = projection.messages(work.events)
            yield stored
        return
    turn = TurnEnded(
        reasoning=end.message.reasoning,
        content=end.message.content,
        calls=end.message.tool_calls,
        token_ids=end.message.token_ids,
        finish_reason=end.finish_reason,
        usage=end.usage,
        options=asked.written(options, names, work.events),
    )
    work.heard = []
    work.budget.spend(end.usage)
    for stored in await work.record(turn):
        yield stored
    work.messages.append(turn.message())
    work.turn = turn


def interrupted(work: Work) -> list[TurnEnded]:
    """What was heard of a turn that did not end, as an event; its calls may be incomplete and are left out."""
    reasoning = "".join(part.text for part in work.heard if isinstance(part, ReasoningDelta))
    content = "".join(part.text for part in work.heard if isinstance(part, ContentDelta))
    work.heard = []
    return [TurnEnded(reasoning=reasoning, content=content, finish_reason="cancelled")] if reasoning or content else []


def _options(work: Work) -> GenerateOptions:
    """What the next turn is held to."""
    concluding = work.winding is not None
    most = work.budget.tokens_left(reserve=concluding)
    return evolve(
        work.options,
        max_tokens=work.options.max_tokens if most is None else min(most, work.options.max_tokens),
        max_reasoning_tokens=work.budget.reasoning_left(reserve=concluding),
        tool_choice=ANSWER if concluding and ANSWER in work.tools.names() else work.options.tool_choice,
        calls_left_out=len(projection.gone(work.events)),
        forbidden_tools=(*work.options.forbidden_tools, *work.forbidden.tools),
        forbidden_calls=(*work.options.forbidden_calls, *work.forbidden.calls),
    )


async def _parts(work: Work, options: GenerateOptions) -> AsyncIterator[Delta | TurnEnd]:
    """The model's parts, until the turn ends or the seconds run out."""
    concluding = work.winding is not None
    async with _closing(work.model.generate(work.messages, work.tools.declarations(), options)) as parts:
        while True:
            try:
                # the deadline surrounds one part only: a timeout across a yield could hit the consumer's code
                async with asyncio.timeout(work.budget.left("seconds", reserve=concluding)):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if (work.budget.reached() or work.budget.near()) is None:
                    raise  # somebody else's timeout, not the budget's
                return
            yield part


@contextlib.asynccontextmanager
async def _closing(parts: AsyncIterator[Part]) -> AsyncIterator[AsyncIterator[Part]]:
    """Close *parts* afterwards, where it can be closed: that is how a turn is cancelled."""
    try:
        yield parts
    finally:
        close = getattr(parts, "aclose", None)
        if close is not None:
            await close()
