"""Hand-written questions: the file is the one that was fixed, every line can be posed, and each kind is judged strictly."""

import asyncio
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from k2core import hookimpl
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, result_of
from k2core.errors import K2Error, Unavailable
from k2core.events import Stored
from k2core.interfaces import Tool
from k2core.messages import Message
from k2core.plugins import Plugins
from k2core.testing.evaluation import EvaluationRequest
from k2core.testing.models import ScriptedModel, call_turn
from k2core.tools import Registry
from k2core_nano import hand_written
from k2core_nano.evaluation import evaluate
from k2core_nano.hand_written import HandWritten
from k2core_nano.posing import posed, runner, shipped_tools

KINDS = ("number", "text", "order", "report", "call", "decline", "reply", "tests")
CLAIM = [{"evidence": [], "text": "So it is."}]
NO_SANDBOX = "error: no sandbox here"


class Asked:
    """All questions, and runs of scripted models that answer them without verifiers."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        """Over a journal in a folder."""
        plugins = Plugins.discover()
        run = runner(plugins)
        try:
            self.questions = hand_written.asked(run)
        except Unavailable:
            pytest.skip("no sandbox for code here")
        self.shipped = shipped_tools(plugins, opened)
        self.journal = opened.enter_context(closing(Journal.open(folder / "runs.sqlite")))

    def tools(self, question: HandWritten) -> list[Tool]:
        """The tools of a question in a fresh world."""
        return posed(question, question.tools(random.Random(0)), self.shipped)

    def passes(self, question: HandWritten, *turns: Message) -> bool:
        """Whether a run of these turns is right."""
        agent = Agent(model=ScriptedModel(turns), tools=Registry.of(self.tools(question)), journal=self.journal)
        events = asyncio.run(_events(agent, question.text))
        return question.passed(result_of(events), events)


async def _events(agent: Agent, text: str) -> list[Stored]:
    return [item async for item in agent.stream(text) if isinstance(item, Stored)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """All questions; skipped where code cannot be run."""
    with ExitStack() as opened:
        yield Asked(tmp_path_factory.mktemp("hand-written"), opened)


def answer(index: int, text: str, *, claims: Sequence[Any] = CLAIM) -> Message:
    """A turn that answers."""
    return call_turn(index, "answer", text=text, claims=list(claims))


def right(wanted: dict[str, Any]) -> str:
    """A right answer's text for what is wanted."""
    match wanted["kind"]:
        case "number":
            return f"That makes {wanted['value']}, I think."
        case "text":
            return f"It is {wanted['any_of'][-1].upper()}."
        case "order":
            return f"In order: {', '.join(wanted['items'])}."
        case "report":
            return "\n".join(f"| {item[0].upper()}{item[1:]} [0] |" for item in wanted["must_contain"])
    return "That is done."


def wrong(wanted: dict[str, Any]) -> str:
    """A wrong answer's text that looks like a right one."""
    match wanted["kind"]:
        case "number":
            return f"That makes {Fraction(wanted['value']) + 1} or {wanted['value']}1, I think."
        case "text":
            return f"It is {wanted['any_of'][-1]}x."
        case "order":
            return f"In order: {', '.join(reversed(wanted['items']))}."
        case "report":
            return " ".join(wanted["must_contain"][:-1])
    return "That is done."


def right_turns(question: HandWritten) -> list[Message]:
    """What a perfect model says to a question."""
    wanted = dict(question.wanted)
    match question.kind:
        case "call":
            return [call_turn(0, wanted["tool"], **wanted["arguments"]), answer(1, right(wanted["then"]))]
        case "tests":
            writes = [
                call_turn(index, "write_file", path=name, content=content)
                for index, (name, content) in enumerate(wanted["solution"].items())
            ]
            return [*writes, answer(len(writes), "All pass.")]
        case "decline" | "reply":
            return [answer(0, "So sorry.", claims=[])]
    return [answer(0, right(wanted))]


def wrong_turns(question: HandWritten) -> list[list[Message]]:
    """What models say that are wrong, in the ways that the question's kind knows."""
    wanted = dict(question.wanted)
    calculated = call_turn(0, "calculator", expression="1+1")
    match question.kind:
        case "call":
            made = call_turn(0, wanted["tool"], **wanted["arguments"])
            return [[calculated, answer(1, right(wanted["then"]))], [made, answer(1, wrong(wanted["then"]))]]
        case "tests":
            (test,) = [name for name in question.files if name.startswith("test_")]
            emptied = call_turn(0, "write_file", path=test, content="def test_nothing():\n    pass\n")
            return [[emptied, answer(1, "All pass.")]]
        case "decline":
            return [[answer(0, "It is 2.")], [answer(0, "You are welcome.", claims=[])]]
        case "reply":
            return [[calculated, answer(1, "Hello.")], [answer(0, "I cannot answer this with my tools.", claims=[])]]
    return [[answer(0, wrong(wanted))]]


def of_kind(asked: Asked, kind: str) -> list[HandWritten]:
    """Questions of a kind; of those whose tests take a process each, one to write and one to repair."""
    found = [question for question in asked.questions if question.kind == kind]
    return found if kind != "tests" else found[:2]


def test_the_file_is_the_one_that_was_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash is the one in the README beside it; a file with another one is refused in one line."""
    data = hand_written.FILE.read_bytes()
    assert hashlib.sha256(data).hexdigest() == hand_written.SHA256
    assert f"`{hand_written.SHA256}`" in (hand_written.FILE.parent / "README.md").read_text()

    changed = tmp_path / "questions.jsonl"
    changed.write_bytes(data + b"\n")
    monkeypatch.setattr(hand_written, "FILE", changed)
    with pytest.raises(K2Error, match=f"^cannot use .*questions.jsonl': its sha256 is .*, expected {hand_written.SHA256}.*$"):
        hand_written.asked(lambda files, path: NO_SANDBOX)


def test_a_machine_without_a_sandbox_is_told_before_anything_is_asked() -> None:
    """Lines before the first that is judged by tests can be asked without one."""
    assert len(hand_written.asked(lambda files, path: NO_SANDBOX, 20)) == 20
    with pytest.raises(Unavailable, match=NO_SANDBOX):
        hand_written.asked(lambda files, path: NO_SANDBOX)


def test_every_line_can_be_posed(asked: Asked) -> None:
    """All lines, in the file's order, with tools of different names whose schemas are schemas, and a world that has them."""
    assert [question.line for question in asked.questions] == list(range(1, len(asked.questions) + 1))
    assert {question.kind for question in asked.questions} == set(KINDS)
    control = {tool.name for tool in control_tools()}
    for question in asked.questions:
        tools = Registry.of(asked.tools(question))
        assert question.text.strip() and control <= set(tools.names()) and set(question.declares) <= set(tools.names())
        for name in tools.names():
            jsonschema.Draft202012Validator.check_schema(tools.get(name).parameters)
        world = question.tools(random.Random(0))
        for row in question.world:
            assert world.call("facts", {"entity": row.entity, "attribute": row.attribute}) == row.shown()


@pytest.mark.parametrize("kind", KINDS)
def test_right_runs_are_right(asked: Asked, kind: str) -> None:
    """What the file expects is judged right, for every line of a kind."""
    questions = of_kind(asked, kind)
    assert questions and [one.line for one in questions if not asked.passes(one, *right_turns(one))] == []


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_and_empty_answers_are_wrong(asked: Asked, kind: str) -> None:
    """Nothing, something else, or the right words without what they need, for every line of a kind."""
    for question in of_kind(asked, kind):
        assert not asked.passes(question, *right_turns(question)[:-1], answer(len(right_turns(question)) - 1, "", claims=[]))
        assert not any(asked.passes(question, *turns) for turns in wrong_turns(question)), question.line


@pytest.mark.soak
def test_every_solution_passes_its_tests(asked: Asked) -> None:
    """Lines that are judged by tests are right with the file's solution and wrong without."""
    for question in asked.questions:
        if question.kind == "tests":
            assert asked.passes(question, *right_turns(question)), question.line
            assert not any(asked.passes(question, *turns) for turns in wrong_turns(question)), question.line


@pytest.mark.parametrize(
    ("value", "text", "found"),
    [
        ("70.9", "It is 70.90 m.", True),
        ("7301", "It is 7,301.", True),
        ("3/17", "It is 3/17 (about 0.18).", True),
        ("-83", "It is −83 °C.", True),
        ("83", "It is -83 °C.", False),
        ("70", "It is 70.9 m.", False),
        ("70", "It is 3,070 or 170 or 3/70.", False),
        ("6", "At 6:58, on line C-6.", False),
    ],
)
def test_numbers_are_compared_by_their_value(value: str, text: str, found: bool) -> None:
    """A number stands on its own, in any of its forms, with its sign."""
    assert (hand_written.place_of(value, text) is not None) == found


class Scripted:
    """A plugin with two models: one that calculates and answers the first line as the file has it, one that declines."""

    @hookimpl
    def register_models(self, register: Any) -> None:
        """Both models."""
        (first,) = hand_written.asked(lambda files, path: NO_SANDBOX, 1)
        calculates = [call_turn(0, "calculator", expression=first.wanted["working"]), answer(1, right(dict(first.wanted)))]
        register("calculates", factory=lambda: ScriptedModel(calculates))
        register("declines", factory=lambda: ScriptedModel([answer(0, "So sorry.", claims=[])]))


@pytest.mark.parametrize(("model", "is_right"), [("calculates", 1), ("declines", 0)])
def test_a_scripted_model_is_asked_by_the_evaluation(model: str, is_right: int) -> None:
    """One row of one level, without what needs a policy; of a miss it tells the line and never its text."""
    plugins = Plugins.discover()
    assert plugins.add(Scripted(), name="scripted").status == "loaded"
    report = evaluate(plugins, EvaluationRequest(model=model, families=("hand-written",), count=1, masks=(True,)))
    (row,) = report.rows
    (line,) = report.text.split("\n")[2:]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]

    assert cells[:4] == ["yes", "hand-written", "hand-written", "1"]
    assert [cells[place] for place in (8, 10, 11)] == ["–"] * 3  # calls exact, wrong results noticed, false alarms
    assert (row["right"]["count"], row["kinds"]["number"]["count"]) == (is_right, is_right)
    assert [(miss["line"], sorted(miss)) for miss in row["misses"]] == [(1, ["kind", "line", "number", "run", "status"])] * (
        1 - is_right
    )
