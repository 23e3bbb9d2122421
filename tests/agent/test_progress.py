"""No endless loops: what brings nothing new ends within a stated number of calls; what does is left alone."""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core import tool
from k2core.agent import projection
from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult
from k2core.agent.progress import SIMILAR, STOP
from k2core.errors import ToolError
from k2core.events import Stalled, Stored, ToolIntent, ToolReturned, TurnEnded
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry

MOST_CALLS = int(STOP / SIMILAR)  # without progress, whatever the model does

Say = Callable[[Sequence[Message]], Message]
Calls = Callable[[int, random.Random], tuple[str, Any]]


class Tools:
    """Tools that count how often each was run."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def all(self) -> list[Any]:
        """One that looks, one that fails, one that echoes, one that writes."""

        @tool(effect="read")
        def look(place: str) -> str:
            """Look somewhere."""
            self.runs.append("look")
            return f"nothing in {place}"

        @tool(effect="pure")
        def fail(place: str) -> str:
            """Fail."""
            self.runs.append("fail")
            raise ToolError(f"no place '{place}'")

        @tool(effect="pure")
        def double(number: int) -> str:
            """Double a number."""
            self.runs.append("double")
            return str(2 * number)

        @tool(effect="idempotent")
        def write(line: str) -> str:
            """Write a line."""
            self.runs.append("write")
            return "written"

        return [look, fail, double, write]


def speaking(calls: Calls, seed: int) -> Say:
    """A model that makes these calls, one a turn, and never answers."""

    def say(messages: Sequence[Message]) -> Message:
        number = len(counter)
        counter.append(None)
        name, arguments = calls(number, drawn)
        text = json.dumps(arguments) if not isinstance(arguments, str) else arguments
        return Message(role="assistant", tool_calls=(ToolCall(id=f"functions.{name}:{number}", name=name, arguments=text),))

    counter: list[None] = []
    drawn = random.Random(seed)
    return say


def run(say: Say, path: Path, tools: Tools | None = None, names: Sequence[str] | None = None) -> tuple[RunResult, list[Stored]]:
    """What becomes of a question, with a budget of 300 calls."""
    with Journal.open(path) as journal:
        agent = Agent(
            model=ScriptedModel([say] * 400),
            tools=Registry.of([*control_tools(), *(one for one in (tools or Tools()).all() if not names or one.name in names)]),
            journal=journal,
            limits=Limits(calls=300),
        )
        result = agent.run("Go.")
        return result, journal.events(result.run)


LOOPS: dict[str, Calls] = {
    "same call": lambda number, drawn: ("double", {"number": 4}),
    "two alternating calls": lambda number, drawn: (("double", {"number": 4}), ("look", {"place": "A"}))[number % 2],
    "same error": lambda number, drawn: ("fail", {"place": "B"}),
    "growing argument": lambda number, drawn: ("look", {"place": "A" * (number + 1)}),
    "growing argument of a failing call": lambda number, drawn: ("fail", {"place": "A" * (number + 1)}),
    "arguments that are no JSON": lambda number, drawn: ("double", '{"number": 4'),
    "a tool that is not there": lambda number, drawn: ("nobody", {"number": 4}),
    "notes and notes": lambda number, drawn: ("note", {"text": f"note {number}"}),
    "a few calls at random": lambda number, drawn: drawn.choice(
        [("double", {"number": 4}), ("look", {"place": "A"}), ("fail", {"place": "B"}), ("note", {"text": "same"})]
    ),
    "spellings of one call": lambda number, drawn: ("double", " " * drawn.randrange(9) + '{"number": 4}'),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_repeats_itself_ends(tmp_path: Path, loop: str, seed: int) -> None:
    """Within so many calls after the last progress it is told to conclude, and the run ends with a typed reason."""
    result, events = run(speaking(LOOPS[loop], seed), tmp_path / "r.sqlite")

    stalled = [one.event for one in events if isinstance(one.event, Stalled)]
    assert result.status in ("partial", "failed") and "brought nothing new" in result.answer.reason
    assert [one.action for one in stalled][-3:] == ["steer", "roll-back", "stop"]
    assert len(stalled[-1].calls) <= MOST_CALLS
    assert result.calls <= MOST_CALLS + len(LOOPS)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["double", "look", "fail", "write"]), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(0, 2**32),
)
def test_whatever_is_repeated_ends(calls: list[tuple[str, int]], seed: int) -> None:
    """Any few calls made over and over in any order end; no call is forbidden that was not made."""

    def one(number: int, drawn: random.Random) -> tuple[str, Any]:
        name, value = drawn.choice(calls)
        return name, {"double": {"number": value}, "write": {"line": str(value)}}.get(name, {"place": str(value)})

    with tempfile.TemporaryDirectory() as folder:
        result, events = run(speaking(one, seed), Path(folder) / "r.sqlite")

    assert result.calls <= (len(set(calls)) + 1) * MOST_CALLS
    assert sum(isinstance(one.event, TurnEnded) for one in events) <= (len(set(calls)) + 1) * MOST_CALLS + 3


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("double", lambda number, drawn: ("double", {"number": number})),
        ("write", lambda number, drawn: ("write", {"line": f"line {number}"})),
    ],
)
def test_progress_is_left_alone(tmp_path: Path, name: str, calls: Calls) -> None:
    """Calls that bring something new, or do something, are all made."""
    tools = Tools()
    result, events = run(speaking(calls, 0), tmp_path / "r.sqlite", tools)

    assert tools.runs == [name] * 299
    assert not [one for one in events if isinstance(one.event, Stalled)]
    assert result.status == "partial"


def test_a_result_that_changes_is_progress(tmp_path: Path) -> None:
    """Asking again for something that changes is no loop."""
    asked: list[int] = []

    @tool(effect="read")
    def clock() -> str:
        """Tell the time."""
        asked.append(0)
        return f"{len(asked)} o'clock"

    with Journal.open(tmp_path / "r.sqlite") as journal:
        model = ScriptedModel([speaking(lambda number, drawn: ("clock", {}), 0)] * 60)
        agent = Agent(model=model, tools=Registry.of([*control_tools(), clock]), journal=journal, limits=Limits(calls=30))
        result = agent.run("Wait.")
        events = journal.events(result.run)

    assert len(asked) == 29
    assert not [one for one in events if isinstance(one.event, Stalled)]


def test_the_next_request_forbids_what_was_repeated(tmp_path: Path) -> None:
    """Where there is another tool, the repeated one is forbidden; where there is none, the calls that were made are."""
    for names, expected in ((None, (("double",), ())), (["double"], ((), (("double", '{"number": 4}'),)))):
        path = tmp_path / f"{names}.sqlite"
        with Journal.open(path) as journal:
            model = ScriptedModel([speaking(LOOPS["same call"], 0)] * 20)
            every = [one for one in Tools().all() if not names or one.name in names]
            Agent(model=model, tools=Registry.of([*control_tools(), *every]), journal=journal).run("Go.")

        asked = [(one.options.forbidden_tools, one.options.forbidden_calls) for one in model.requests]
        assert asked[:3] == [((), ())] * 3
        assert asked[3] == expected


def test_what_may_not_be_called_is_answered_from_the_log(tmp_path: Path) -> None:
    """A model that no mask holds repeats a call in vain: the tool is not run, the result is the one it gave before."""
    tools = Tools()
    _, events = run(speaking(LOOPS["same call"], 0), tmp_path / "r.sqlite", tools)

    returned = [one.event for one in events if isinstance(one.event, ToolReturned)]
    assert tools.runs == ["double"] * 3
    assert [one.text for one in returned[:4]] == ["8"] * 4
    assert returned[3].details == {"same_as": 2}


def test_what_was_rolled_back_is_not_shown_and_not_lost(tmp_path: Path) -> None:
    """The conversation has the steps before the loop and a note; the journal has everything; numbers go on."""

    def calls(number: int, drawn: random.Random) -> tuple[str, Any]:
        return ("double", {"number": min(number, 3)})

    _, events = run(speaking(calls, 0), tmp_path / "r.sqlite")

    place = next(
        index for index, one in enumerate(events) if isinstance(one.event, Stalled) and one.event.action == "roll-back"
    )
    shown = projection.messages(events[: place + 2])
    assert [call.arguments for one in shown for call in one.tool_calls] == [f'{{"number": {number}}}' for number in range(4)]
    assert shown[-1].content.startswith("Calls 4 to 7 brought nothing new and are taken out.")
    intents = [one.event.index for one in events if isinstance(one.event, ToolIntent)]
    assert intents == list(range(len(intents)))
