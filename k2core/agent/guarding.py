"""Ask the guards: every hook under a deadline, and whatever a guard refuses, asks for, changes or gets wrong is an event.

A guard that fails takes no run down. Where it was asked about a call with side effects, that call is not made.
"""

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from attrs import evolve, frozen

from k2core.agent import projection
from k2core.agent.progress import LOOKING, canonical
from k2core.deadline import run_with_deadline
from k2core.errors import K2Error, ToolError
from k2core.events import Event, GuardActed, Stored, ToolReturned
from k2core.guards import HOOKS, AskFirst, ChangedArguments, ChangedResult, GuardedCall, GuardedStep, Refusal
from k2core.interfaces import Answer, Tool, ToolResult
from k2core.messages import ToolCall
from k2core.tools import Registry, as_text, bound

if TYPE_CHECKING:
    from k2core.agent.work import Work

TIMEOUT_S = 10.0  # of one hook of one guard
LONGEST = 300  # characters of a reason


@frozen(kw_only=True)
class Said:
    """What the guards said together.

    Attributes:
        events: what they did.
        refusals: (guard, reason) of those that refuse.
        asks: (guard, reason) of those that want a person to approve.
        arguments: of a call, as the guards leave them.
    """

    events: tuple[Event, ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()
    asks: tuple[tuple[str, str], ...] = ()
    arguments: str = ""


def step_of(work: "Work") -> GuardedStep:
    """Where the work stands."""
    return GuardedStep(run=work.run, calls=projection.calls_made(work.events), messages=tuple(work.messages))


def first_untrusted(events: list[Stored]) -> ToolReturned | None:
    """The first result whose content nobody has vetted, also where the model does not see it any more."""
    return next((one.event for one in events if isinstance(one.event, ToolReturned) and one.event.untrusted), None)


async def before(work: "Work", hook: str, *about: Any) -> Said:
    """Ask every guard before a step, a model call or an answer; one that fails lets it pass."""
    events: list[Event] = []
    refusals, asks = [], []
    for guard in work.guards:
        try:
            said = await _heard(guard, hook, *about)
        except Exception as error:  # a guard's fault is a visible record
            events.append(_acted(guard, hook, "failed", f"{_fault(error)}; it goes on all the same"))
            continue
        if isinstance(said, Refusal):
            refusals.append((name_of(guard), _line(said.reason)))
            events.append(_acted(guard, hook, "refused", said.reason))
        elif isinstance(said, AskFirst):
            asks.append((name_of(guard), _line(said.reason)))
            events.append(_acted(guard, hook, "asked", said.reason))
    return Said(events=tuple(events), refusals=tuple(refusals), asks=tuple(asks))


async def before_call(work: "Work", call: ToolCall, index: int, tool: Tool) -> Said:
    """Ask every guard before a call with valid arguments, each about the arguments that the ones before it leave.

    The first refusal ends it. A guard that fails lets a call pass that only looks, and stops any other.
    """
    hook, events, asks = "before_call", list[Event](), list[tuple[str, str]]()
    for guard in work.guards:
        try:
            said = await _heard(guard, hook, _call_of(work, call, index, tool))
            changed = _changed(said, call, tool) if isinstance(said, ChangedArguments) else None
        except Exception as error:  # a guard's fault is a visible record
            why, looks = _fault(error), tool.effect in LOOKING
            follows = "the call only looks and is made all the same" if looks else "the call has side effects and is not made"
            events.append(_acted(guard, hook, "failed", f"{why}; {follows}", index))
            if looks:
                continue
            said, changed = Refusal(reason=f"it failed: {why}"), None
        if isinstance(said, Refusal):
            events.append(_acted(guard, hook, "refused", said.reason, index))
            return Said(events=tuple(events), refusals=((name_of(guard), _line(said.reason)),), arguments=call.arguments)
        if isinstance(said, AskFirst):
            asks.append((name_of(guard), _line(said.reason)))
            events.append(_acted(guard, hook, "asked", said.reason, index))
        elif changed is not None and isinstance(said, ChangedArguments):
            acted = _acted(guard, hook, "changed", said.reason, index)
            events.append(evolve(acted, before=call.arguments, after=changed))
            call = evolve(call, arguments=changed)
    return Said(events=tuple(events), asks=tuple(asks), arguments=call.arguments)


async def after_call(
    work: "Work", call: ToolCall, index: int, tool: Tool, result: ToolResult
) -> tuple[ToolResult, tuple[Event, ...]]:
    """Show every guard what came back from a call that was made; the result as they leave it, and what they did.

    A guard that fails changes nothing.
    """
    events: list[Event] = []
    for guard in work.guards:
        for hook in ("after_call",) if result.ok else ("on_call_error", "after_call"):
            try:
                said = await _heard(guard, hook, _call_of(work, call, index, tool), result)
                text = _text(said, result) if isinstance(said, ChangedResult) else result.text
            except Exception as error:  # a guard's fault is a visible record
                events.append(_acted(guard, hook, "failed", f"{_fault(error)}; the result stays as it is", index))
                continue
            if text != result.text and isinstance(said, ChangedResult):
                acted = _acted(guard, hook, "changed", said.reason, index)
                events.append(evolve(acted, before=result.text, after=text))
                result = bound(evolve(result, text=text), work.tools.result_limit)
    return result, tuple(events)


async def tell(work: "Work", hook: str, *about: Any) -> list[Stored]:
    """Tell every guard of what happened; what one gets wrong goes into the journal."""
    events: list[Event] = []
    for guard in work.guards:
        try:
            await _heard(guard, hook, *about)
        except Exception as error:  # a guard's fault is a visible record
            events.append(_acted(guard, hook, "failed", f"{_fault(error)}; it goes on all the same"))
    return await work.append(*events)


async def withheld(work: "Work", text: str) -> tuple[list[Stored], str]:
    """Whether guards object to a text that the framework would end with; the first reason, empty where none does.

    There is nobody to revise it, so a guard that would ask a person counts as one that refuses.
    """
    if not work.guards:
        return [], ""
    said = await before(work, "before_answer", Answer(text=text), projection.trajectory(work.events))
    objections = (*said.refusals, *said.asks)
    return await work.append(*said.events), f"guard '{objections[0][0]}' refused it: {objections[0][1]}" if objections else ""


def name_of(guard: Any) -> str:
    """What a guard is called."""
    name = None
    with contextlib.suppress(Exception):  # whatever a guard's attributes do
        name = guard.name
    return name if isinstance(name, str) and name else type(guard).__name__


async def _heard(guard: Any, hook: str, *about: Any) -> Any:
    """What a guard returns at a hook, if it is something that the hook takes; raises whatever is wrong with the guard."""
    function = getattr(guard, hook, None)
    if function is None:
        return None
    try:
        said = await run_with_deadline(_contained(function), TIMEOUT_S, *about)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it cancelled itself") from None
    if inspect.iscoroutine(said):
        said.close()
    if said is not None and not isinstance(said, HOOKS[hook]):
        expected = " or ".join(["None", *(one.__name__ for one in HOOKS[hook])])
        raise TypeError(f"it returned {type(said).__name__}, expected {expected}")
    return said


def _contained(function: Callable[..., Any]) -> Callable[..., Any]:
    """An async hook that cannot end the process; a sync one is called in a thread, which cannot either."""
    if not inspect.iscoroutinefunction(function):
        return function

    async def call(*about: Any) -> Any:
        try:
            return await function(*about)
        except SystemExit as error:
            raise RuntimeError(f"SystemExit: {error}") from error

    return call


def _call_of(work: "Work", call: ToolCall, index: int, tool: Tool) -> GuardedCall:
    return GuardedCall(
        run=work.run,
        index=index,
        name=tool.name,
        arguments=Registry.of([tool]).arguments_of(call),
        effect=tool.effect,
        untrusted=first_untrusted(work.events) is not None,
    )


def _changed(said: ChangedArguments, call: ToolCall, tool: Tool) -> str | None:
    """The arguments that a guard wants instead, as JSON text; None where they are what they were.

    Raises:
        ToolError: they are no arguments of the tool.
    """
    try:
        text = json.dumps(dict(said.arguments), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"its arguments are no JSON: {_line(error)}") from error
    try:
        Registry.of([tool]).arguments_of(evolve(call, arguments=text))
    except ToolError as error:
        raise ToolError(f"its arguments do not fit {tool.name}: {error}") from error
    return None if canonical(text) == canonical(call.arguments) else text


def _text(said: ChangedResult, result: ToolResult) -> str:
    if not isinstance(said.text, str):
        raise TypeError(f"its text is {type(said.text).__name__}, expected str")
    text = as_text(said.text)
    return text if result.ok or text.startswith("error: ") else f"error: {text}"


def _acted(
    guard: Any, hook: str, action: Literal["refused", "asked", "changed", "failed"], why: object, index: int | None = None
) -> GuardActed:
    return GuardActed(guard=name_of(guard), hook=hook, action=action, why=_line(why), index=index)


def _fault(error: Exception) -> str:
    """What is wrong with a guard, as one line."""
    return _line(error if isinstance(error, K2Error) else f"{type(error).__name__}: {error}")


def _line(text: object) -> str:
    line = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split()) or "no reason is given"
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
