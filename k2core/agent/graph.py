"""The reasoning graph of a run: questions, plan, hypotheses, calls, evidence, claims, answers, and how they hang together.

Nodes and edges come from the events alone. An edge points from what came first to what rests on it, but for ``refutes``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from attrs import asdict, define, field, frozen

from k2core.agent.concluding import in_words
from k2core.events import (
    AnswerGiven,
    HypothesisStated,
    MessageAdded,
    PlanMade,
    Stored,
    ToolIntent,
    ToolReturned,
    VerdictGiven,
)
from k2core.tools import CONTROL_NAMES

Kind = Literal["question", "step", "hypothesis", "call", "evidence", "claim", "answer"]
Relation = Literal["asks", "plans", "before", "gives", "shows", "supports", "refutes", "tests", "states"]
SHAPES: dict[Kind, tuple[str, str]] = {
    "question": ("([", "])"), "step": ("[/", "/]"), "hypothesis": ("{{", "}}"), "call": ("[", "]"),
    "evidence": ("[(", ")]"), "claim": (">", "]"), "answer": ("([", "])"),
}  # fmt: skip
LONGEST = 60  # characters of a label


@frozen(kw_only=True)
class Node:
    """Something that was asked, planned, supposed, done, seen or claimed.

    Attributes:
        id: unique in the graph, e.g. ``call3``.
        kind: what it is.
        text: in words.
        event: number of the event that it comes from.
        status: of a step, hypothesis, claim or answer; ``ok`` or ``error`` of evidence; empty otherwise.
    """

    id: str
    kind: Kind
    text: str
    event: int
    status: str = ""


@frozen(kw_only=True)
class Edge:
    """From *source* to *target*, ids of nodes."""

    source: str
    target: str
    relation: Relation


@define
class Graph:
    """Nodes and edges, in the order of the run."""

    nodes: dict[str, Node] = field(factory=dict)
    edges: list[Edge] = field(factory=list)

    def add(self, node: Node) -> str:
        """Add a node, or put it in the place of the one with its id."""
        self.nodes[node.id] = node
        return node.id

    def join(self, source: str, target: str, relation: Relation) -> None:
        """Add an edge between two nodes that are there, once."""
        edge = Edge(source=source, target=target, relation=relation)
        if source in self.nodes and target in self.nodes and edge not in self.edges:
            self.edges.append(edge)

    def to_json(self) -> dict[str, Any]:
        """Nodes and edges as JSON values."""
        return {"nodes": [asdict(one) for one in self.nodes.values()], "edges": [asdict(one) for one in self.edges]}

    def mermaid(self) -> str:
        """As a Mermaid flowchart."""
        lines = ["flowchart TD"]
        for node in self.nodes.values():
            left, right = SHAPES[node.kind]
            status = f" ({node.status})" if node.status else ""
            lines.append(f'    {node.id}{left}"{_escaped(node.text)}{status}"{right}')
        for edge in self.edges:
            arrow = "-. refutes .->" if edge.relation == "refutes" else f"-- {edge.relation} -->"
            lines.append(f"    {edge.source} {arrow} {edge.target}")
        return "\n".join(lines) + "\n"


def graph_of(events: Sequence[Stored]) -> Graph:
    """The graph of a run."""
    graph, asked, doing, answers = Graph(), "", "", 0
    for stored in events:
        event, at = stored.event, stored.sequence
        if isinstance(event, MessageAdded) and event.role == "user":
            asked, doing = graph.add(Node(id=f"question{at}", kind="question", text=event.content, event=at)), ""
        elif isinstance(event, PlanMade):
            doing = _add_plan(graph, asked, event, at) or asked
        elif isinstance(event, HypothesisStated):
            _add_hypothesis(graph, asked, event, at)
        elif isinstance(event, ToolIntent) and event.name not in CONTROL_NAMES:
            text = f"{event.name} {in_words(event.arguments)}"
            call = graph.add(Node(id=f"call{event.index}", kind="call", text=text, event=at))
            graph.join(doing or asked, call, "asks")
        elif isinstance(event, ToolReturned) and event.name not in CONTROL_NAMES:
            status = "ok" if event.ok else "error"
            node = Node(id=f"evidence{at}", kind="evidence", text=event.text, event=at, status=status)
            graph.join(f"call{event.index}", graph.add(node), "gives")
        elif isinstance(event, VerdictGiven):
            continue
        elif isinstance(event, AnswerGiven):
            answers += 1
            _add_answer(graph, asked, event, at, answers)
    return graph


def _add_plan(graph: Graph, asked: str, plan: PlanMade, at: int) -> str:
    """Steps of the plan; the one that is being done, or nothing."""
    doing = ""
    for number, step in enumerate(plan.steps, start=1):
        node = graph.add(Node(id=f"step{number}_of{asked}", kind="step", text=step.text, event=at, status=step.status))
        graph.join(asked, node, "plans")
        doing = node if step.status == "doing" else doing
    for number, step in enumerate(plan.steps, start=1):
        for before in step.after:
            graph.join(f"step{before}_of{asked}", f"step{number}_of{asked}", "before")
        for call in step.evidence:
            graph.join(f"call{call}", f"step{number}_of{asked}", "shows")
    return doing


def _add_hypothesis(graph: Graph, asked: str, stated: HypothesisStated, at: int) -> None:
    name = f"hypothesis{stated.number}"
    graph.add(Node(id=name, kind="hypothesis", text=stated.text, event=at, status=stated.status))
    graph.join(asked, name, "asks")
    relation: Relation = "supports" if stated.status == "supported" else "refutes" if stated.status == "refuted" else "tests"
    for call in stated.evidence:
        graph.join(f"call{call}", name, relation)


def _add_answer(graph: Graph, asked: str, answer: AnswerGiven, at: int, number: int) -> None:
    node = graph.add(Node(id=f"answer{number}", kind="answer", text=answer.text, event=at, status=answer.status))
    support = {one.claim: one.events for one in answer.evidence}
    for place, claim in enumerate(answer.claims):
        status = "supported" if place in support else "unverified"
        name = graph.add(Node(id=f"claim{number}_{place}", kind="claim", text=claim.text, event=at, status=status))
        graph.join(name, node, "states")
        for source in _sources(graph, support.get(place, ()), claim.evidence):
            graph.join(source, name, "supports")
    for source in _sources(graph, support.get(None, ()), ()):
        graph.join(source, node, "supports")
    if not any(edge.target == node for edge in graph.edges):
        graph.join(asked, node, "asks")


def _sources(graph: Graph, events: Iterable[int], calls: Iterable[int]) -> list[str]:
    """Nodes that events stand for, and what came back from calls."""
    found = [name for event in events for name in (f"evidence{event}", f"question{event}") if name in graph.nodes]
    named = {f"call{call}" for call in calls}
    return found or [edge.target for edge in graph.edges if edge.source in named and edge.relation == "gives"]


def _escaped(text: str) -> str:
    """Text of a label: one line, short, without what Mermaid reads as markup."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return "".join(one if one.isalnum() or one in " .,:;=+*/-_'…" else f"#{ord(one)};" for one in line)
