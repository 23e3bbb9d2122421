"""Recall: the result of an earlier call is given back by its number, from the log, whatever the model still sees of it."""

from collections.abc import AsyncIterator, Sequence

from k2core.agent import projection
from k2core.agent.concluding import in_words
from k2core.agent.work import Work
from k2core.events import Recalled, Stored, ToolReturned
from k2core.interfaces import ToolResult
from k2core.messages import ToolCall
from k2core.tools import bound

RECALL_SHARE = 2  # characters of what is given back per token of context: about half of it


async def recall(work: Work, call: ToolCall, index: int, wanted: object) -> AsyncIterator[Stored]:
    """Carry out a call of `recall`.

    Args:
        work: where.
        call: the call.
        index: its number.
        wanted: number of the call whose result is wanted.
    """
    number = int(wanted) if isinstance(wanted, int | float) else -1
    found = _result(work.events, number) if number < index else None
    if found is None:
        there = f"calls 0 to {index - 1} were made before" if index else "no call was made before"
        yield await work.observe(
            call, index, ToolResult(text=f"error: there is no result of a call {number}: {there}", ok=False)
        )
        return
    event, returned = found
    made = in_words(_arguments(work.events, number))
    whole = ToolResult(text=f"call {number}, {returned.name} {made}: {returned.text}", ok=True, untrusted=returned.untrusted)
    given = bound(whole, min(work.tools.result_limit, RECALL_SHARE * work.model.profile.context))
    if not any(isinstance(one.event, Recalled) and one.event.index == index for one in work.events):
        told = Recalled(call=number, index=index, event=event, characters=len(given.text))
        for stored in await work.append(told):
            yield stored
    yield await work.observe(call, index, given)


def _result(events: Sequence[Stored], number: int) -> tuple[int, ToolReturned] | None:
    """Number of the event with the call's result, and the result."""
    for stored in events:
        if isinstance(stored.event, ToolReturned) and stored.event.index == number:
            return stored.sequence, stored.event
    return None


def _arguments(events: Sequence[Stored], number: int) -> str:
    made: dict[int, str] = {}
    for stored in events:
        made.update(projection.made_with(stored.event) or {})
    return made.get(number, "{}")
