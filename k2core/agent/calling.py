"""Call and observe: every call of a turn becomes an intent, then a result that the model sees next.

The intent is durable before the tool runs. A call that is not run, or that is wrong, has a result too: an error line.
"""

from collections.abc import AsyncIterator

from k2core.agent import projection
from k2core.agent.answering import answer_by_call
from k2core.agent.control import ANSWER, NOTE, answer_from_arguments
from k2core.agent.work import Work
from k2core.errors import ToolError
from k2core.events import NoteKept, Stored, ToolIntent, TurnEnded
from k2core.interfaces import CallContext, Effect, ToolResult
from k2core.messages import ToolCall
from k2core.tools import Registry


async def act(work: Work, turn: TurnEnded) -> AsyncIterator[Stored]:
    """Carry out the calls of a turn, in order; what comes after a final answer is not run."""
    work.silences = 0
    first = projection.calls_made(work.events) - len(turn.calls)
    for index, call in enumerate(turn.calls, start=first):
        if work.ended:
            return
        async for stored in _carry_out(work, call, index, cut=turn.finish_reason == "length"):
            yield stored


async def _carry_out(work: Work, call: ToolCall, index: int, *, cut: bool) -> AsyncIterator[Stored]:
    """One call: its intent, then its result. Calls of a turn that was *cut* are not run: they may be incomplete."""
    tool = work.tools.get(call.name) if call.name in work.tools.names() else None
    effect: Effect = "pure" if tool is None else tool.effect
    intent = ToolIntent(call_id=call.id, index=index, name=call.name, arguments=call.arguments, effect=effect)
    for stored in await work.record(intent):
        yield stored
    reached = work.budget.reached()
    work.budget.calls += 1 if reached is None else 0
    why = f"the turn was cut at its limit of {work.options.max_tokens} tokens" if cut else str(reached or "")
    if why:
        yield await work.observe(call, index, _error(f"not run: {why}"))
    elif tool is not None and tool.control:
        async for stored in _control(work, call, index):
            yield stored
    else:
        context = CallContext(run=work.run, index=index, past=projection.past_calls(work.events, call.name))
        # a swap from here on is for the next call: this one's log has said who carries it out, and with which effect
        tools = work.tools if tool is None else Registry.of([tool], result_limit=work.tools.result_limit)
        result = await tools.call(call, most_s=work.budget.seconds_left(), context=context)
        yield await work.observe(call, index, result)


async def _control(work: Work, call: ToolCall, index: int) -> AsyncIterator[Stored]:
    """`answer` and `note`, which the loop itself carries out."""
    try:
        arguments = work.tools.arguments_of(call)
    except ToolError as error:
        yield await work.observe(call, index, _error(str(error)))
        return
    if call.name == ANSWER:
        async for stored in answer_by_call(work, call, index, answer_from_arguments(arguments)):
            yield stored
    elif call.name == NOTE:
        (stored,) = await work.append(NoteKept(text=str(arguments["text"])))
        yield stored
        yield await work.observe(call, index, ToolResult(text="noted", ok=True))
    else:
        yield await work.observe(call, index, _error(f"no control tool '{call.name}' here"))


def _error(line: str) -> ToolResult:
    return ToolResult(text=f"error: {line}", ok=False)
