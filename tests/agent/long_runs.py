"""Long runs for tests and benchmarks: a chain of places, tools that fail now and then, and a model that follows the chain."""

import json
import random
import time
from collections.abc import Sequence
from typing import Any

from attrs import define, field

from k2core import tool
from k2core.errors import ToolError
from k2core.interfaces import ModelProfile, Tool
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel

FAULTS = ("timed out after 10 s", "the service is busy, try again", "connection reset")


@define
class Chain:
    """Places that name the next one, drawn from a seed; a call fails with the given chance, differently each time.

    Attributes:
        length: places in the chain.
        seed: of places and faults.
        fault: chance that a call fails.
        failed: calls that failed.
        counted: sums that were kept, by place: an effect that must happen once.
    """

    length: int
    seed: int
    fault: float = 0.1
    failed: int = 0
    counted: dict[str, int] = field(factory=dict)
    _drawn: random.Random = field(init=False)
    _places: list[str] = field(init=False)
    _values: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._drawn = random.Random(self.seed)
        self._places = [f"place-{number}" for number in self._drawn.sample(range(10**6), self.length)]
        self._values = [self._drawn.randrange(1000) for _ in self._places]

    @property
    def question(self) -> str:
        """Where the chain begins."""
        return f"Follow the chain from {self._places[0]} to its end. Where does it end?"

    @property
    def answer(self) -> str:
        """Where it ends."""
        return self._places[-1]

    def tools(self) -> list[Tool]:
        """A look at a place, and a count, which is an effect of its own."""

        def maybe_fail() -> None:
            if self._drawn.random() < self.fault:
                self.failed += 1
                raise ToolError(f"{self._drawn.choice(FAULTS)} (incident {self._drawn.randrange(10**6)})")

        @tool(effect="read")
        def look(place: str) -> str:
            """Look at a place."""
            maybe_fail()
            if place not in self._places:
                raise ToolError(f"no place '{place}'")
            number = self._places.index(place)
            after = self._places[number + 1] if number + 1 < self.length else "none"
            return f"{place}: value {self._values[number]}, next {after}"

        @tool(effect="idempotent")
        def count(place: str, value: int, after: str) -> str:
            """Count a value."""
            maybe_fail()
            self.counted[place] = self.counted.get(place, 0) + 1
            return f"{place}: counted {len(self.counted)}, next {after}"

        return [look, count]

    def model(self, *, every: int = 10, context: int = 10**6) -> "Follower":
        """A model that follows the chain and counts each *every*-th place."""
        return Follower(self._places[0], every=every, context=context)


class Follower(ScriptedModel):
    """Follows a chain by what the conversation says, and repeats what failed; notes when it was asked and when it had answered.

    Attributes:
        times: begin and end of each turn, in seconds.
    """

    def __init__(self, first: str, *, every: int, context: int) -> None:
        super().__init__([], profile=ModelProfile(context=context, temperature=0.0))
        self.first, self.every = first, every
        self.times: list[tuple[float, float]] = []

    async def generate(self, messages: Any, tools: Any, options: Any) -> Any:
        """The next turn."""
        begun = time.perf_counter()
        number = options.calls_left_out + sum(len(one.tool_calls) for one in messages)
        script = ScriptedModel([self.turn(messages, number)])
        parts = [part async for part in script.generate(messages, tools, options)]
        self.times.append((begun, time.perf_counter()))
        for part in parts:
            yield part

    def turn(self, messages: Sequence[Message], number: int) -> Message:
        """What to call next."""
        calls = [call for one in messages for call in one.tool_calls]
        told = next((one.content for one in reversed(messages) if one.role == "tool"), "")
        if not calls:
            return _calling(number, "look", {"place": self.first})
        if told.startswith("error: "):
            return _calling(number, calls[-1].name, json.loads(calls[-1].arguments))
        after = told.rpartition(", next ")[2]
        if calls[-1].name == "look" and number % self.every == 0:
            place, _, rest = told.partition(": value ")
            return _calling(number, "count", {"place": place, "value": int(rest.partition(",")[0]), "after": after})
        if after == "none":
            place = told.partition(":")[0]
            claims = [{"evidence": [number - 1], "text": f"The chain ends at {place}."}]
            return _calling(number, "answer", {"claims": claims, "text": place})
        return _calling(number, "look", {"place": after})


def _calling(number: int, name: str, arguments: Any) -> Message:
    text = json.dumps(arguments, separators=(",", ":"))
    call = ToolCall(id=f"functions.{name}:{number}", name=name, arguments=text)
    return Message(role="assistant", reasoning=f"Step {number}: {name}.", tool_calls=(call,))
