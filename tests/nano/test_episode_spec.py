"""The frozen episode: shipped tools, agent loop, chat format and generator all agree with nano_episode.toml."""

import asyncio
import json
import random
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k2core.agent import projection, window
from k2core.agent.answering import REVISIONS
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.session import Choice, session_tools
from k2core.interfaces import Finding, ModelProfile, Verdict
from k2core.messages import Message, ToolCall
from k2core.model.profile import read_profile
from k2core.plugins import Plugins
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_nano import PROFILE, WEIGHTS
from k2core_nano.posing import posed, shipped_tools
from k2core_nano.train.mix import question
from k2core_nano.train.questions import Question, Turn, solved
from k2core_nano.train.tokenizer import FILES
from k2core_nano.train.wire import Builder, prefix
from k2core_nano.train.world import World
from k2core_specs import load
from k2core_tools.calculator import ExpressionError, calculator

SPEC = load("formats/nano_episode.toml")
FAMILIES = [family for families in SPEC["families"].values() for family in families if family != "missing"]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    """The installed plugins."""
    return Plugins.discover()


@pytest.fixture(scope="module")
def chat_format() -> KimiChatFormat:
    """The chat format over the generator's vocabulary."""
    return KimiChatFormat(KimiTokenizer.open(FILES))


def test_the_shipped_tools_declare_what_the_model_was_taught(plugins: Plugins, tmp_path: Path) -> None:
    """Every declaration equals the specification to the letter; without a sandbox those of code are not there."""
    with ExitStack() as closing:
        choice = Choice(documents=tmp_path, workspace=tmp_path / "workspace")
        declared = {
            tool.name: json.dumps(tool.declaration(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            for tool in session_tools(plugins, choice, closing)
        }

    specified = SPEC["tools"] if "python" in declared else {one: SPEC["tools"][one] for one in SPEC["tools"].keys() & declared}
    assert declared == specified
    assert set(SPEC["tool_sets"]["with_documents"]) <= set(declared)


def test_the_registered_model_carries_the_frozen_system_text_and_window(plugins: Plugins) -> None:
    """The profile's system text and context, the loop's revisions and the window rule are the specification's."""
    profile = plugins.get("model", "nano").options["profile"]

    assert isinstance(profile, ModelProfile) and profile.system == SPEC["system"]
    assert profile.context == SPEC["window"]["tokens"]
    assert (window.HIDE_AT, window.HIDE_UNTIL) == (SPEC["window"]["hide_at"], SPEC["window"]["hide_until"])
    assert projection.HIDDEN == SPEC["results"]["hidden"]
    assert SPEC["limits"]["rejections"] == REVISIONS


def test_the_shipped_folder_carries_the_registered_profile() -> None:
    """So that the same weights under a path are used as under their name."""
    assert read_profile(WEIGHTS) == PROFILE


def test_verdicts_have_the_frozen_form() -> None:
    """An accepted and a rejected answer read as the specification says."""
    finding = Finding(verifier="v", subject="7", status="unsupported", hint=SPEC["verdicts"]["number"].format(number=7))

    assert Verdict().render() == SPEC["results"]["answer"][0]
    assert Verdict(findings=(finding, finding)).render() == SPEC["results"]["answer"][1].format(
        findings="number 7 is in no result"
    )


def turn_message(turn: Turn) -> Message:
    """An oracle's step as the message a model would have written."""
    arguments = json.dumps(turn.step.arguments, ensure_ascii=False, separators=(",", ":"))
    call = ToolCall(id=f"functions.{turn.step.tool}:{turn.index}", name=turn.step.tool, arguments=arguments)
    return Message(role="assistant", reasoning=turn.step.think, tool_calls=(call,))


def document_of(asked: Question, turns: list[Turn], tools: Registry) -> list[int]:
    """The training document of these turns, prefix included."""
    builder = Builder()
    builder.user(asked.text)
    for place, turn in enumerate(turns):
        builder.step(turn.step, turn.index, 1)
        if place + 1 < len(turns):
            builder.result(turn.step.tool, turn.index, turn.result)
    declarations = {**SPEC["tools"], **asked.declares}
    return prefix(tuple(declarations[name] for name in sorted(tools.names()))) + builder.ids


@given(seed=st.integers(0, 2**32), family=st.sampled_from(FAMILIES))
def test_the_loop_and_the_chat_format_give_what_the_generator_wrote(
    tmp_path_factory: pytest.TempPathFactory, plugins: Plugins, chat_format: KimiChatFormat, seed: int, family: str
) -> None:
    """The oracle's turns, played through the agent over the question's world, render to the training document's ids."""
    asked = question(random.Random(seed), family)
    turns = solved(asked, random.Random(seed))
    world = asked.tools(random.Random(seed))
    with ExitStack() as closing:  # only the declarations are the product's: the world answers
        tools = Registry.of(posed(asked, world, shipped_tools(plugins, closing)))
    journal = Journal.open(tmp_path_factory.mktemp("episode") / "runs.sqlite")
    profile = ModelProfile(context=100_000, system=SPEC["system"])
    agent = Agent(model=ScriptedModel(map(turn_message, turns), profile=profile), tools=tools, journal=journal)

    result = asyncio.run(agent.ask(asked.text))
    messages = projection.messages(journal.events(result.run))
    journal.close()

    last_step = max(place for place, message in enumerate(messages) if message.tool_calls)
    rendered = chat_format.render(messages[: last_step + 1], tools.declarations(), generate=False)
    assert rendered == document_of(asked, turns, tools)


def an_expression(seed: int) -> str:
    """One of the calculator calls with which the oracle answers a generated question."""
    rng = random.Random(seed)
    turns = solved(question(rng, rng.choice(SPEC["families"]["arithmetic"])), rng)
    return str(rng.choice([turn for turn in turns if turn.step.tool == "calculator"]).step.arguments["expression"])


@given(expression=st.integers(0, 2**32).map(an_expression) | st.text("0123456789+-*/(). ^%٣", max_size=60))
@example("(" * 41 + "1" + ")" * 41)
@example("1/0")
def test_the_world_computes_what_the_shipped_calculator_computes(expression: str) -> None:
    """The calculator of a generated world answers any expression, the generator's and others, as the product's does."""
    try:
        expected = calculator.function(expression=expression)
    except ExpressionError as error:
        expected = f"error: {error}"
    assert World({}, [], random.Random(0)).call("calculator", {"expression": expression}) == expected
