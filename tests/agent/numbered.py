"""A scripted model whose turns depend on nothing but the number of the next call, and agents around it with a small context."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from k2core import tool
from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.events import Event, MessageAdded, ResultsHidden, RunStarted, StepsLeftOut, Stored
from k2core.interfaces import Memory, ModelProfile
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core.tools import CONTROL_NAMES, Registry

Step = tuple[str, Any]
CONTEXT = 300  # words, of which the system text takes a third


@tool(effect="read")
def area(country: int) -> str:
    """Tell how large a country is."""
    return f"{7919 * (country + 1)} km2"


class Numbered(ScriptedModel):
    """Makes the call that a plan has for the number of the next one, and answers at the plan's end.

    Attributes:
        plan: what each number calls; a note, a recall, anything.
        writes: what is said where no tools are offered: a text, or an error.
        asked: every prompt without tools.
        prompts: every other prompt.
        fullest: words of the largest prompt.
    """

    def __init__(self, plan: Callable[[int], Step | None], *, context: int = CONTEXT, writes: str | Exception = "") -> None:
        super().__init__([], profile=ModelProfile(context=context, temperature=0.0))
        self.plan, self.writes = plan, writes
        self.asked: list[tuple[Message, ...]] = []
        self.prompts: list[tuple[Message, ...]] = []
        self.fullest = 0

    async def generate(self, messages: Any, tools: Any, options: Any) -> Any:
        """The next turn."""
        (self.prompts if tools else self.asked).append(tuple(messages))
        if not tools and isinstance(self.writes, Exception):
            raise self.writes
        number = options.calls_left_out + sum(len(one.tool_calls) for one in messages)
        script = ScriptedModel([self.turn(number) if tools else Message(role="assistant", content=str(self.writes))])
        async for part in script.generate(messages, tools, options):
            if hasattr(part, "usage"):
                self.fullest = max(self.fullest, part.usage.prompt_tokens)
            yield part

    def turn(self, number: int) -> Message:
        """What is called next."""
        step = self.plan(number)
        name, arguments = step or ("answer", {"claims": [], "text": "That is all."})
        call = ToolCall(id=f"functions.{name}:{number}", name=name, arguments=json.dumps(arguments, separators=(",", ":")))
        return Message(role="assistant", reasoning=f"Step {number} is next.", tool_calls=(call,))


def looking(last: int, others: dict[int, Step] | None = None) -> Callable[[int], Step | None]:
    """A plan that looks up a country per step up to call *last*, it not included, but for the *others*."""
    return lambda number: (others or {}).get(number, ("area", {"country": number}) if number < last else None)


def agent_with(
    memory: Memory, model: Numbered, path: Path, *, limits: Limits | None = None, tools: Sequence[Any] = (area,)
) -> Agent:
    """An agent with that memory and all control tools that it wants."""
    controls = [name for name in CONTROL_NAMES if memory.recalls or name != "recall"]
    return Agent(
        model=model,
        tools=Registry.of([*control_tools(controls), *tools]),
        memory=memory,
        journal=Journal.open(path),
        limits=limits or Limits(calls=200),
    )


def ran(memory: Memory, model: Numbered, path: Path, question: str = "How large are they?", **more: Any) -> list[Stored]:
    """The events of a question."""
    agent = agent_with(memory, model, path, **more)
    with agent.journal:
        return agent.journal.events(agent.run(question).run)


def rooms(events: Sequence[Stored]) -> list[ResultsHidden | StepsLeftOut]:
    """What made room."""
    return [one.event for one in events if isinstance(one.event, ResultsHidden | StepsLeftOut)]


def of_kind(events: Sequence[Stored], *kinds: type) -> list[Any]:
    """Events of some kinds."""
    return [one.event for one in events if isinstance(one.event, kinds)]


def stored(*events: Event) -> list[Stored]:
    """A run of these events, behind its beginning and question."""
    first = [RunStarted(question="Q?", model={}, seed=0, limits={}, tools=(), declarations_hash="", versions={})]
    asked = MessageAdded(role="user", content="Q?")
    return [Stored(run="r", sequence=place, time="", event=one) for place, one in enumerate([*first, asked, *events], start=1)]
