"""Call and observe: every call of a turn becomes an intent, then a result that the model sees next.

The intent is durable before the tool runs. A call that is not run, or that is wrong, has a result too: an error line. A call
that was begun before the run was cut off is settled as the effects ledger allows (`ledger`).
"""

from collections.abc import AsyncIterator

from attrs import evolve

from k2core.agent import guarding, projection
from k2core.agent.answering import answer_by_call
from k2core.agent.approving import OPTIONS as APPROVAL
from k2core.agent.approving import decided, denied
from k2core.agent.control import ANSWER, HYPOTHESIS, NOTE, PLAN, RECALL, answer_from_arguments
from k2core.agent.gating import Gate, gate, refusal
from k2core.agent.kept import note_that_is_too_much
from k2core.agent.ledger import OPTIONS, Again, CallState, Happened, Undecided, call_states, key_of, outcome_of, until_begun
from k2core.agent.planning import revised_plan, stated_hypothesis
from k2core.agent.progress import NOT_MADE
from k2core.agent.recalling import recall
from k2core.agent.work import Work
from k2core.errors import ToolError
from k2core.events import (
    CallDecided,
    DecisionNeeded,
    HypothesisStated,
    NoteKept,
    Stored,
    ToolAgain,
    ToolBegun,
    ToolIntent,
    TurnEnded,
)
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
    tool, gated = _tool_of(work, call), Gate(arguments=call.arguments)
    reached = work.budget.reached()
    why = f"the turn was cut at its limit of {work.options.max_tokens} tokens" if cut else str(reached or "")
    if not why and state.intent is None and (tool is None or not tool.control):
        near = work.winding or work.budget.near()
        why = f"{near}. Call answer" if near is not None else ""
    if state.intent is None:
        while tool is not None and not tool.control and not why and not work.forbidden.covers(call):
            gated = await gate(work, call, index, tool)
            before, tool = tool, _tool_of(work, call)
            if tool is before:  # else it was swapped while the guards were asked
                break
        effect: Effect = "pure" if tool is None else tool.effect
        intent = ToolIntent(call_id=call.id, index=index, name=call.name, arguments=call.arguments, effect=effect)
        for stored in await work.record(intent, *gated.events):
            yield stored
    work.budget.calls += 1 if state.intent is None and (cut or not why) else 0
    if tool is not None and tool.control and not why:
        async for stored in _control(work, call, index, state):
            yield stored
    elif state.returned:
        return
    elif state.intent is not None and not cut:
        async for stored in _settle(work, evolve(call, arguments=state.arguments), index, state, tool):
            yield stored
    elif why:
        yield await work.observe(call, index, _error(f"not run: {why}"))
    elif work.forbidden.covers(call):
        yield await work.observe(call, index, _not_again(work, call))
    else:
        async for stored in _make(work, call, index, tool, gated):
            yield stored


def _tool_of(work: Work, call: ToolCall) -> Tool | None:
    return work.tools.get(call.name) if call.name in work.tools.names() else None


async def _make(work: Work, call: ToolCall, index: int, tool: Tool | None, gated: Gate) -> AsyncIterator[Stored]:
    """A call whose way through the gate is in the journal: it is made, unless something is in the way."""
    if gated.refused is not None:
        yield await work.observe(call, index, _not_run(gated.attempt, refusal(gated.refused)))
    elif gated.needed is not None:
        async for stored in _by_approval(work, call, index, tool, gated.needed, None):
            yield stored
    else:
        async for stored in _dispatch(work, evolve(call, arguments=gated.arguments), index, tool):
            yield stored


async def _by_approval(
    work: Work, call: ToolCall, index: int, tool: Tool | None, needed: DecisionNeeded, decision: CallDecided | None
) -> AsyncIterator[Stored]:
    """A call that a person is to approve, or has decided about: it is made once, with the arguments that were shown."""
    if decision is None:
        async for stored in decided(work, needed, call.name):
            yield stored
            decision = stored.event if isinstance(stored.event, CallDecided) else decision
    if decision is None:
        return  # the run waits
    left = work.budget.left("seconds", reserve=True)
    if decision.decision == "approve" and left != 0.0:
        (stored,) = await work.append(ToolBegun(index=index, attempt=needed.attempt))
        yield stored
        async for stored in _dispatch(work, evolve(call, arguments=needed.arguments), index, tool, most_s=left):
            yield stored
        return
    no = denied(decision.text) if decision.decision == "deny" else f"it was approved, but {work.budget.reached()}"
    yield await work.observe(call, index, _not_run(needed.attempt, no))


def _not_again(work: Work, call: ToolCall) -> ToolResult:
    """What a call is answered with that may not be made in this turn: the log knows its result, or it is refused."""
    before = work.progress.before(call.name, call.arguments)
    if before is None:
        line = f"error: not made: {call.name} brought nothing new. Use another tool, or call answer"
        return ToolResult(text=line, ok=False, details={NOT_MADE: None})
    number, text = before
    return ToolResult(text=text, ok=not text.startswith("error: "), details={NOT_MADE: number})


async def _dispatch(
    work: Work, call: ToolCall, index: int, tool: Tool | None, most_s: float | None = None
) -> AsyncIterator[Stored]:
    """Run the tool; its intent is durable. Without *most_s* the reserve of seconds is left to conclude with."""
    await work.see_lease()
    most_s = work.budget.left("seconds", reserve=False) if most_s is None else most_s
    # a swap from here on is for the next call: this one's log has said who carries it out, and with which effect
    tools = work.tools if tool is None else Registry.of([tool], result_limit=work.tools.result_limit)
    result = await tools.call(call, most_s=most_s, context=_context(work, call, index))
    async for stored in _observe(work, call, index, tool, result):
        yield stored


async def _observe(work: Work, call: ToolCall, index: int, tool: Tool | None, result: ToolResult) -> AsyncIterator[Stored]:
    """What came back from a tool, as the guards leave it."""
    if work.guards and tool is not None and _is_valid(call, tool):
        result, acted = await guarding.after_call(work, call, index, tool, result)
        for stored in await work.append(*acted):
            yield stored
    yield await work.observe(call, index, result)


def _is_valid(call: ToolCall, tool: Tool) -> bool:
    """Whether the tool was called: else guards have nothing to look at."""
    try:
        Registry.of([tool]).arguments_of(call)
    except ToolError:
        return False
    return True


def _context(work: Work, call: ToolCall, index: int) -> CallContext:
    past = projection.past_calls(work.events, call.name)
    return CallContext(run=work.run, index=index, key=key_of(work.events, index), past=past)


async def _settle(work: Work, call: ToolCall, index: int, state: CallState, tool: Tool | None) -> AsyncIterator[Stored]:
    """A call that was begun and has no result; its arguments are those of the newest attempt."""
    if state.refused is not None:
        yield await work.observe(call, index, _not_run(state.attempts, refusal(state.refused)))
        return
    if state.needed is not None and state.needed.options == APPROVAL:
        async for stored in _by_approval(work, call, index, tool, state.needed, state.decision):
            yield stored
        return
    outcome = await outcome_of(state, tool, work.tools, _context(work, call, index))
    if isinstance(outcome, Again):
        gated, attempt = Gate(arguments=call.arguments), state.attempts + 1
        if tool is not None:
            gated = await gate(work, call, index, tool, attempt=attempt, granted=state.decision is not None)
        repeated = [] if gated.refused or gated.needed else [ToolAgain(index=index, attempt=attempt, why=outcome.why)]
        for stored in await work.append(*gated.events, *repeated):
            yield stored
        async for stored in _make(work, call, index, tool, gated):
            yield stored
    elif isinstance(outcome, Happened):
        if outcome.by == "tool" and state.decision is None:
            (stored,) = await work.append(CallDecided(index=index, decision="happened", by="tool", text=outcome.text))
            yield stored
        told = ToolResult(text=outcome.text, ok=True, untrusted=outcome.by == "tool" and tool is not None and tool.untrusted)
        async for stored in _observe(work, call, index, tool if outcome.by == "tool" else None, told):
            yield stored
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
        wrong = note_that_is_too_much(work.events, str(arguments["text"]), work.model.profile.context)
        if wrong and not state.noted:
            yield await work.observe(call, index, _error(wrong))
            return
        if not state.noted:
            (stored,) = await work.append(NoteKept(text=str(arguments["text"])))
            yield stored
        yield await work.observe(call, index, ToolResult(text="noted", ok=True))
    elif call.name == RECALL:
        async for stored in recall(work, call, index, arguments["call"]):
            yield stored
    elif call.name in (PLAN, HYPOTHESIS):
        async for stored in _plan(work, call, index, arguments):
            yield stored
    else:
        yield await work.observe(call, index, _error(f"no control tool '{call.name}' here"))


async def _plan(work: Work, call: ToolCall, index: int, arguments: dict[str, object]) -> AsyncIterator[Stored]:
    """State the plan, or a hypothesis; one that was stated before an interruption is stated again, which changes nothing."""
    try:
        stated = (revised_plan if call.name == PLAN else stated_hypothesis)(arguments, until_begun(work.events, index))
    except ToolError as error:
        yield await work.observe(call, index, _error(str(error)))
        return
    for stored in await work.append(stated):
        yield stored
    text = f"hypothesis {stated.number}: {stated.status}" if isinstance(stated, HypothesisStated) else "the plan stands"
    yield await work.observe(call, index, ToolResult(text=text, ok=True))


def _not_run(attempt: int, why: str) -> ToolResult:
    """What the model is told of a call that is not made, or not again."""
    return _error(f"{'not run' if attempt == 1 else 'interrupted before a result came back, and not made again'}: {why}")


def _error(line: str) -> ToolResult:
    return ToolResult(text=f"error: {line}", ok=False)
