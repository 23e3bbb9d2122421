"""The plan and the hypotheses as data, and the graph of a run."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core import tool
from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.graph import graph_of
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult
from k2core.agent.planning import hypotheses_of, not_attempted, plan_of, revised_plan
from k2core.errors import ToolError
from k2core.events import PlanMade, Stored, ToolReturned
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core.tools import CONTROL_NAMES, Registry


@tool(effect="pure")
def weigh(thing: str) -> str:
    """Weigh a thing."""
    return f"{thing} weighs {len(thing)} kg"


def run(calls: Sequence[tuple[str, Any]], path: Path, limits: Limits | None = None) -> tuple[RunResult, list[Stored]]:
    """A run that makes these calls, one a turn."""
    turns = [
        Message(
            role="assistant",
            tool_calls=(ToolCall(id=f"functions.{name}:{index}", name=name, arguments=json.dumps(arguments)),),
        )
        for index, (name, arguments) in enumerate(calls)
    ]
    with Journal.open(path) as journal:
        agent = Agent(
            model=ScriptedModel(turns),
            tools=Registry.of([*control_tools(CONTROL_NAMES), weigh]),
            journal=journal,
            limits=limits or Limits(),
        )
        result = agent.run("Which is heavier, an ox or a horse?")
        return result, journal.events(result.run)


def steps(*texts: str, **changes: Any) -> list[dict[str, Any]]:
    """Steps to do; ``s1={...}`` changes the first."""
    return [{"text": text, **changes.get(f"s{number}", {})} for number, text in enumerate(texts, start=1)]


THREE = ("weigh the ox", "weigh the horse", "compare")
RUN: list[tuple[str, Any]] = [
    ("plan", {"steps": steps(*THREE, s1={"status": "doing"}, s3={"after": [1, 2]})}),
    ("hypothesis", {"status": "proposed", "text": "the ox is heavier"}),
    ("weigh", {"thing": "ox"}),
    ("plan", {"steps": steps(*THREE, s1={"status": "done", "evidence": [2]}, s2={"status": "doing"}, s3={"after": [1, 2]})}),
    ("weigh", {"thing": "horse"}),
    ("hypothesis", {"number": 1, "status": "refuted", "evidence": [2, 4], "reason": "2 is less than 5"}),
    ("plan", {"steps": steps("weigh the ox", "weigh the horse", s1={"status": "done", "evidence": [2]}), "reason": "enough"}),
    ("answer", {"claims": [{"evidence": [4], "text": "horse weighs 5 kg"}], "text": "The horse."}),
]


def test_a_plan_and_a_hypothesis_are_kept_as_they_change(tmp_path: Path) -> None:
    """The log has every plan with its reason, and what became of the hypothesis."""
    result, events = run(RUN, tmp_path / "r.sqlite")

    plan, hypothesis = plan_of(events), hypotheses_of(events)[1]
    assert result.answer.text == "The horse."
    assert [len(one.event.steps) for one in events if isinstance(one.event, PlanMade)] == [3, 3, 2]
    assert plan is not None and plan.reason == "enough" and [one.status for one in plan.steps] == ["done", "todo"]
    assert (hypothesis.text, hypothesis.status, hypothesis.evidence) == ("the ox is heavier", "refuted", (2, 4))
    assert not_attempted(events) == ("weigh the horse",)


def test_a_partial_answer_names_the_steps_that_were_not_tried(tmp_path: Path) -> None:
    """What a budget cut off is told by the plan."""
    result, _ = run(
        [*RUN[:4], ("weigh", {"thing": "horse"}), ("weigh", {"thing": "cow"})], tmp_path / "r.sqlite", Limits(calls=5)
    )

    assert result.status == "partial" and result.answer.partial is not None
    assert result.answer.partial.not_attempted == ("weigh the horse", "compare")


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("plan", {"steps": []}, "a plan has 1 to 50 steps, this one 0"),
        ("plan", {"steps": steps("a", s1={"after": [2]})}, "step 1 names 2 in 'after', but there is no such step"),
        ("plan", {"steps": steps("a", "b", s1={"after": [2]}, s2={"after": [1]})}, "steps wait for each other in a circle: "),
        ("plan", {"steps": steps("a", s1={"status": "done"})}, "step 1 is done, but names no call in 'evidence' that shows it"),
        ("plan", {"steps": steps("a", s1={"evidence": [7]})}, "step 1 names 7 in 'evidence', but there is no such call"),
        ("plan", {"steps": steps("a", "b", s2={"status": "doing", "after": [1]})}, "step 2 is doing, but comes after step 1"),
        ("plan", {"steps": steps(" ")}, "step 1 has no text"),
        ("plan", {"steps": steps("a", s1={"status": "maybe"})}, "invalid arguments: "),
        ("hypothesis", {"status": "proposed"}, "a new hypothesis needs a 'text'"),
        ("hypothesis", {"status": "refuted", "text": "a"}, "hypothesis 1 is refuted, but names no call"),
        ("hypothesis", {"status": "testing", "number": 4}, "there is no hypothesis 4"),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(tmp_path: Path, name: str, arguments: Any, problem: str) -> None:
    """One error line for the model, and the plan stays as it was."""
    _, events = run([(name, arguments), ("answer", {"claims": [], "text": "No."})], tmp_path / "r.sqlite")

    returned = next(one.event for one in events if isinstance(one.event, ToolReturned))
    assert returned.text.startswith("error: ") and problem in returned.text
    assert plan_of(events) is None and not hypotheses_of(events)


def test_another_plan_needs_a_reason(tmp_path: Path) -> None:
    """A step that is done needs none; other steps do."""
    calls = [RUN[0], ("plan", {"steps": steps("guess")}), ("answer", {"claims": [], "text": "No."})]
    _, events = run(calls, tmp_path / "r.sqlite")

    told = [one.event.text for one in events if isinstance(one.event, ToolReturned)]
    assert told[:2] == ["the plan stands", "error: there is a plan already; say in 'reason' why it is another one now"]


@given(st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=6))
def test_steps_are_accepted_exactly_where_they_can_be_done_in_some_order(after: list[list[int]]) -> None:
    """A plan whose steps all exist stands if and only if doing whatever waits for nothing gets through it."""
    known = all(number <= len(after) for one in after for number in one)
    done: set[int] = set()
    for _ in after:
        done |= {number for number, one in enumerate(after, start=1) if set(one) <= done}
    arguments: dict[str, object] = {"steps": [{"text": "do", "after": one} for one in after]}
    if known and len(done) == len(after):
        assert len(revised_plan(arguments, []).steps) == len(after)
    else:
        with pytest.raises(ToolError):
            revised_plan(arguments, [])


def test_the_graph_says_what_rests_on_what(tmp_path: Path) -> None:
    """Question, steps, hypothesis, calls, evidence, claim and answer are joined as they followed from each other."""
    _, events = run(RUN, tmp_path / "r.sqlite")
    graph = graph_of(events)

    kinds = [one.kind for one in graph.nodes.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "question": 1, "step": 3, "hypothesis": 1, "call": 2, "evidence": 2, "claim": 1, "answer": 1,
    }  # fmt: skip
    joined = {(graph.nodes[one.source].text, one.relation, graph.nodes[one.target].text) for one in graph.edges}
    assert ('weigh thing="ox"', "refutes", "the ox is heavier") in joined
    assert ("weigh the ox", "asks", 'weigh thing="ox"') in joined
    assert ("horse weighs 5 kg", "supports", "horse weighs 5 kg") in joined  # the result, and the claim
    assert ("horse weighs 5 kg", "states", "The horse.") in joined
    assert all(one.source in graph.nodes and one.target in graph.nodes for one in graph.edges)


@given(st.text(max_size=80))
def test_no_text_breaks_the_flowchart(text: str) -> None:
    """Whatever was asked, a label is one line between its quotes, and holds nothing that Mermaid takes for markup."""
    from k2core.agent.graph import Graph, Node

    graph = Graph()
    graph.add(Node(id="question1", kind="question", text=text, event=1))
    first, line, rest = graph.mermaid().split("\n")

    assert (first, rest) == ("flowchart TD", "")
    assert re.fullmatch(r'    question1\(\["[^"<>\[\](){}|`\\&]*"\]\)', line)
