"""Call and observe: every call of a turn becomes an intent, then a result that the model sees next.

The intent is durable before the tool runs. A call that is not run, or that is wrong, has a result too: an error line. A call
that was begun before the run was cut off is settled as the effects ledger allows (`ledger`).
"""

from collections.abc import AsyncIterator

from k2core.agent import projection
from k2core.agent.answering import answer_by_call
from k2core.agent.control import ANSWER, HYPOTHESIS, NOTE, PLAN, answer_from_arguments
from k2core.agent.ledger import OPTIONS, Again, CallState, Happened, Undecided, call_states, key_of, outcome_of
from k2core.agent.planning import revised_plan, stated_hypothesis
from k2core.agent.progress import NOT_MADE
from k2core.agent.work import Work
from k2core.errors import ToolError
from k2core.events import CallDecided, DecisionNeeded, HypothesisStated, NoteKept, Stored, ToolAgain, ToolIntent, TurnEnded
from k2core.interfaces import CallContext, Effect, Tool, ToolResult
from k2core.messages import ToolCall
from k2core.tools import Registry


async def act(work: Work, turn: TurnEnded) -> AsyncIterator[Stored]:
    """Carry out the calls of a turn, in order; what comes after a final answer is not run."""
    work.silences = 0
    if work.winding is not None and all(call.name != ANSWER for call in turn.calls):
        work.words = 0
    first = projection.calls_made(work.events) - len(turn.calls)
    for index, call in enumerate(turn.calls, start=first):
        if work.ended:
            return
        state = call_states(work.events).get(index, CallState())
        if not state.returned or call.name == ANSWER:
            async for stored in _carry_out(work, call, index, state, cut=turn.finish_reason == "length"):
                yield stored


async def _carry_out(work: Work, call: ToolCall, index: int, state: CallState, *, cut: bool) -> AsyncIterator[Stored]:
    """One call: its intent, then its result. Calls of a turn that was *cut* are not run: they may be incomplete."""
    tool = work.tools.get(call.name) if call.name in work.tools.names() else None
    if state.intent is None:
        effect: Effect = "pure" if tool is None else tool.effect
        intent = ToolIntent(call_id=call.id, index=index, name=call.name, arguments=call.arguments, effect=effect)
        for stored in await work.record(intent):
            yield stored
    reached = work.budget.reached()
    why = f"the turn was cut at its limit of {work.options.max_tokens} tokens" if cut else str(reached or "")
    if not why and state.intent is None and (tool is None or not tool.control):
        near = work.winding or work.budget.near()
        why = f"{near}. Call answer" if near is not None else ""
    work.budget.calls += 1 if state.intent is None and (cut or not why) else 0
    if tool is not None and tool.control and not why:
        async for stored in _control(work, call, index, state):
            yield stored
    elif state.returned:
        return
    elif state.intent is not None and not cut:
        async for stored in _settle(work, call, index, state, tool):
            yield stored
    elif why:
        yield await work.observe(call, index, _error(f"not run: {why}"))
    elif work.forbidden.covers(call):
        yield await work.observe(call, index, _not_again(work, call))
    else:
        yield await _dispatch(work, call, index, tool)


def _not_again(work: Work, call: ToolCall) -> ToolResult:
    """What a call is answered with that may not be made in this turn: the log knows its result, or it is refused."""
    before = work.progress.before(call.name, call.arguments)
    if before is None:
        line = f"error: not made: {call.name} brought nothing new. Use another tool, or call answer"
        return ToolResult(text=line, ok=False, details={NOT_MADE: None})
    number, text = before
    return ToolResult(text=text, ok=not text.startswith("error: "), details={NOT_MADE: number})


async def _dispatch(work: Work, call: ToolCall, index: int, tool: Tool | None) -> Stored:
    """Run the tool; its intent is durable."""
    await work.see_lease()
    # a swap from here on is for the next call: this one's log has said who carries it out, and with which effect
    tools = work.tools if tool is None else Registry.of([tool], result_limit=work.tools.result_limit)
    result = await tools.call(call, most_s=work.budget.left("seconds", reserve=False), context=_context(work, call, index))
    return await work.observe(call, index, result)


def _context(work: Work, call: ToolCall, index: int) -> CallContext:
    past = projection.past_calls(work.events, call.name)
    return CallContext(run=work.run, index=index, key=key_of(work.run, index), past=past)


async def _settle(work: Work, call: ToolCall, index: int, state: CallState, tool: Tool | None) -> AsyncIterator[Stored]:
    """A call that was begun and has no result."""
    outcome = await outcome_of(state, tool, work.tools, _context(work, call, index))
    if isinstance(outcome, Again):
        (stored,) = await work.append(ToolAgain(index=index, attempt=state.attempts + 1, why=outcome.why))
        yield stored
        yield await _dispatch(work, call, index, tool)
    elif isinstance(outcome, Happened):
        if outcome.by == "tool" and state.decision is None:
            (stored,) = await work.append(CallDecided(index=index, decision="happened", by="tool", text=outcome.text))
            yield stored
        yield await work.observe(call, index, ToolResult(text=outcome.text, ok=True))
    elif isinstance(outcome, Undecided):
        if state.needed is None:
            (stored,) = await work.append(DecisionNeeded(index=index, options=OPTIONS, why=outcome.why))
            yield stored
        for stored in await work.wait():
            yield stored
    else:
        line = "interrupted before a result came back; it was decided not to repeat it"
        yield await work.observe(call, index, _error(line))


async def _control(work: Work, call: ToolCall, index: int, state: CallState) -> AsyncIterator[Stored]:
    """`answer` and `note`, which the loop itself carries out."""
    try:
        arguments = work.tools.arguments_of(call)
    except ToolError as error:
        if not state.returned:
            yield await work.observe(call, index, _error(str(error)))
        return
    if call.name == ANSWER:
        async for stored in answer_by_call(work, call, index, answer_from_arguments(arguments), state):
            yield stored
    elif call.name == NOTE:
        if not state.noted:
            (stored,) = await work.append(NoteKept(text=str(arguments["text"])))
            yield stored
        yield await work.observe(call, index, ToolResult(text="noted", ok=True))
    elif call.name in (PLAN, HYPOTHESIS):
        async for stored in _plan(work, call, index, arguments):
            yield stored
    else:
        yield await work.observe(call, index, _error(f"no control tool '{call.name}' here"))


async def _plan(work: Work, call: ToolCall, index: int, arguments: dict[str, object]) -> AsyncIterator[Stored]:
    """State the plan, or a hypothesis; one that was stated before an interruption is stated again, which changes nothing."""
    try:
        stated = (revised_plan if call.name == PLAN else stated_hypothesis)(arguments, work.events)
    except ToolError as error:
        yield await work.observe(call, index, _error(str(error)))
        return
    for stored in await work.append(stated):
        yield stored
    text = f"hypothesis {stated.number}: {stated.status}" if isinstance(stated, HypothesisStated) else "the plan stands"
    yield await work.observe(call, index, ToolResult(text=text, ok=True))


def _error(line: str) -> ToolResult:
    return ToolResult(text=f"error: {line}", ok=False)
