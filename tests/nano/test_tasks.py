"""What the generator says of functions, tools and documents is what the product says of them."""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.agent.session import Choice, session_tools
from k2core.events import Stored, ToolIntent, ToolReturned
from k2core.interfaces import Tool
from k2core.plugins import Plugins
from k2core_nano.comparing import compare
from k2core_nano.train import actions, code, search, unseen
from k2core_nano.train.functions import FUNCTIONS
from k2core_nano.train.task_wordings import FILES
from k2core_specs import load
from k2core_tools.units import units

SEEDS = st.integers(0, 2**32)
SPEC = load("formats/nano_episode.toml")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tool]]:
    """The product's tools over a workspace; skipped where code cannot be run."""
    with ExitStack() as closing:
        folder = tmp_path_factory.mktemp("functions") / "workspace"
        tools = {tool.name: tool for tool in session_tools(Plugins.discover(), Choice(workspace=folder), closing)}
        if "run_tests" not in tools:
            pytest.skip("no sandbox for code here")
        yield tools


def test_tests_fail_as_the_generator_says(workspace: dict[str, Tool]) -> None:
    """pytest's words for a right and for each kind of wrong body are the generator's, for a sample of the functions."""
    rng = random.Random(4)
    for function in rng.sample(FUNCTIONS, 12):
        task = code.Task(function=function, does=function.does[0], file=rng.choice(FILES))
        handlers = code.handlers(task, files := {task.test: task.tests})
        workspace["write_file"].function(path=task.test, content=task.tests)
        for body in (function.body, rng.choice(function.bugs)):
            workspace["write_file"].function(path=task.file, content=task.source(body))
            files[task.file] = task.source(body)
            said = handlers["run_tests"]({"path": task.test}, "", rng)
            assert workspace["run_tests"].function(path=task.test).text == said
            shown = handlers["read_file"]({"path": task.file}, "", rng)
            assert workspace["read_file"].function(path=task.file) == shown


def test_every_function_has_tests_that_catch_its_bugs() -> None:
    """The right body passes all tests, and each wrong one fails some."""
    for function in FUNCTIONS:
        assert all(code.complaint(function, function.body, *test) == "" for test in function.tests)
        for bug in function.bugs:
            assert any(code.complaint(function, bug, *test) for test in function.tests), (function.name, bug)


def test_what_a_model_writes_is_never_evaluated_here() -> None:
    """A body that the generator did not write goes to the sandbox, or is refused where there is none."""
    task = code.Task(function=FUNCTIONS[0], does="x", file="tools.py")
    handlers = code.handlers(task, {"tools.py": "def double(x):\n    return __import__('os').abort()\n"})
    assert handlers["run_tests"]({"path": task.test}, "", random.Random(0)).startswith("error: ")


@given(SEEDS, st.booleans())
def test_offered_tools_take_what_questions_name(seed: int, held_out: bool) -> None:
    """The oracle's arguments are those that the declaration asks for, and their values stand in the question."""
    rng = random.Random(seed)
    offered = unseen.offers(rng, held_out=held_out)
    asked = unseen.question(rng, offered, 2 if held_out else None)
    step = next(asked.policy())
    (offer,) = [one for one in offered if one.name == step.tool]
    names = {offer.renamed.get(one.name, one.name) for one in offer.action.parameters}
    assert set(step.arguments) == names
    assert all(str(value).casefold() in asked.text.casefold() for value in step.arguments.values())
    assert offer.action.is_held_out == held_out


def test_no_action_is_seen_by_training_and_evaluation() -> None:
    """About a sixth of the actions is kept for evaluation, and every kind of value that is named exists."""
    for file in actions.FILES:
        kept, trained = actions.actions(file, True), actions.actions(file, False)
        assert not {one.stem for one in kept} & {one.stem for one in trained}
        assert len(kept) >= 25 and len(trained) >= 150
        kinds = actions.inventory(file).kinds
        assert all(one.kind in kinds or one.type != "string" or one.choices
                   for action in (*kept, *trained) for one in action.parameters)  # fmt: skip


@given(SEEDS)
def test_searching_finds_what_is_stated(seed: int) -> None:
    """Every passage that a search gives stands in the documents, no passage is too long, and empty queries find nothing."""
    rng = random.Random(seed)
    asked = search.question(rng, "search", None)
    handler = asked.handlers()["search"]
    assert handler({"query": "?!"}, "", rng) == search.NOTHING
    said = handler({"query": str(next(asked.policy()).arguments["query"])}, "", rng)
    lines = [] if said == search.NOTHING else said.split("\n")
    assert len(lines) <= search.RESULTS
    for rank, line in enumerate(lines, 1):
        assert line.startswith(f"[{rank}] ") and len(line) < search.LONGEST + 40


@given(
    st.integers(1, 500),
    st.sampled_from(["km", "miles", "hours", "kelvin", "furlongs"]),
    st.sampled_from(["m", "seconds", "celsius"]),
)
def test_units_are_the_products(value: int, unit: str, to: str) -> None:
    """Conversions of a world, right and refused ones, are those of the shipped tool."""
    from k2core.errors import ToolError
    from k2core_nano.train.conversions import HANDLERS

    arguments = {"value": str(value), "unit": unit, "to": to}
    try:
        expected = units.function(**arguments)
    except ToolError as error:
        expected = f"error: {error}"
    assert HANDLERS["units"](arguments, "", random.Random(0)) == expected


def test_a_search_that_was_not_carried_out_is_no_fault_of_the_model() -> None:
    """What the loop says of a call that it did not run ends the comparison, and no passage is judged in it."""
    asked = search.question(random.Random(3), "search", None)
    step = next(asked.policy())
    text = json.dumps(step.arguments, sort_keys=True, separators=(",", ":"))
    intent = ToolIntent(call_id="functions.search:0", index=0, name="search", arguments=text, effect="read")
    for said in ("error: not run: the budget of 1 call is used up", None):
        returned = [ToolReturned(call_id="functions.search:0", index=0, name="search", text=said, ok=False)] if said else []
        events = [Stored(run="r", sequence=place, time="", event=event) for place, event in enumerate([intent, *returned], 1)]
        found = compare(asked, events)
        assert (found.calls, found.exact) == (0, 0)
