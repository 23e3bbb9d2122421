"""A world with a tool of each effect class, a scripted model that carries out a plan in it, and journals that are cut."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, field

from k2core import tool
from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult
from k2core.calls import current_call
from k2core.errors import ToolError
from k2core.events import Stored
from k2core.interfaces import Answer, ModelProfile, Tool, Trajectory, Verdict
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry
from k2core_kimi.normalise import normalise

OPENED = ExitStack()  # journals; to be closed by whoever opens some


@define
class World:
    """What tools do to the outside: every effect with its key."""

    effects: list[tuple[str, str]] = field(factory=list)

    def tools(self) -> list[Tool]:
        """One tool of each effect class; each returns how often it took effect by then."""

        def done(what: str) -> str:
            self.effects.append((what, current_call().key))
            return f"{what} {sum(one == what for one, _ in self.effects)}"

        @tool(effect="pure")
        def double(number: int) -> str:
            """Double a number."""
            return str(2 * number)

        @tool(effect="idempotent")
        def put(number: int) -> str:
            """Put a number down."""
            key = current_call().key
            if ("put", key) not in self.effects:
                self.effects.append(("put", key))
            return f"put {number}"

        def take_back(number: int) -> None:
            key = current_call().key
            self.effects[:] = [one for one in self.effects if one != ("book", key)]

        @tool(effect="reversible", undo=take_back)
        def book(number: int) -> str:
            """Book a number."""
            return done("book")

        @tool
        def send(number: int) -> str:
            """Send a number out."""
            return done("send")

        def was_paid(number: int) -> str | None:
            if number < 0:
                raise ToolError("the bank does not answer")
            return "pay 1" if ("pay", current_call().key) in self.effects else None

        @tool(reconcile=was_paid)
        def pay(number: int) -> str:
            """Pay a number."""
            return done("pay")

        return [double, put, book, send, pay]


class AnyAnswer:
    """Accepts every answer but the first attempt of a run."""

    name = "second"

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """Accept."""
        return Verdict()


def policy(plan: Sequence[Any]) -> Callable[[Sequence[Message]], Message]:
    """A model that carries out a plan: what it says next depends on nothing but the conversation.

    Each step is (tool, arguments) or a list of such; the last step is the answer's text.
    """

    def say(messages: Sequence[Message]) -> Message:
        asked = max(index for index, one in enumerate(messages) if one.role == "user")
        turns = sum(bool(one.tool_calls) for one in messages[asked:])
        called = sum(len(one.tool_calls) for one in messages)
        step = plan[min(turns, len(plan) - 1)]
        if isinstance(step, str):
            step = ("answer", {"claims": [], "text": step})
        steps = step if isinstance(step, list) else [step]
        calls = tuple(
            ToolCall(id=f"functions.{name}:{called + place}", name=name, arguments=json.dumps(arguments))
            for place, (name, arguments) in enumerate(steps)
        )
        return Message(role="assistant", reasoning=f"Step {turns}.", tool_calls=calls)

    return say


class Valid(ScriptedModel):
    """A script that is given only what K2's chat format accepts: every request passes its validator."""

    def __init__(self, turns: Sequence[Any]) -> None:
        super().__init__(turns, profile=ModelProfile(context=100_000))

    def generate(self, messages: Any, tools: Any, options: Any) -> Any:
        """As the script says, behind the validator."""
        assert_valid(messages)
        return super().generate(messages, tools, options)


def assert_valid(messages: Sequence[Message]) -> None:
    """Every call has its results next, in order, and nothing else has any."""
    normalise(messages)
    waiting: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert waiting and message.tool_call_id == waiting.pop(0)
        else:
            assert not waiting
            waiting = [call.id for call in message.tool_calls]
    assert not waiting
    assert messages[-1].role != "assistant"


def agent_over(world: World, plan: Sequence[Any], path: Path, limits: Limits | None = None) -> Agent:
    """An agent in that world."""
    return Agent(
        model=Valid([policy(plan)] * 100),
        tools=Registry.of([*control_tools(), *world.tools()]),
        verifiers=[AnyAnswer()],
        journal=OPENED.enter_context(Journal.open(path)),
        limits=limits or Limits(),
    )


def resumed(agent: Agent, run: str) -> RunResult:
    """The result of going on with a run."""
    return asyncio.run(agent.finish(run))


def cut(events: Sequence[Stored], count: int, path: Path) -> str:
    """A journal with a run's first events only, its id."""
    with Journal.open(path) as journal:
        journal.write(events[0].run, *(one.event for one in events[:count]))
    return events[0].run


def of_kind(events: Sequence[Stored], *kinds: type) -> list[Any]:
    """Events of some kinds."""
    return [one.event for one in events if isinstance(one.event, kinds)]


PLAN = [
    ("double", {"number": 3}),
    [("double", {"number": 4}), ("note", {"text": "eight"}), ("put", {"number": 8})],
    ("nobody", {"number": 1}),
    ("double", {"digits": 1}),
    ("book", {"number": 5}),
    "The numbers are down.",
]
