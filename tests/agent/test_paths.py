"""Several trajectories: one budget, evidence before agreement before a judge, and a question that was cut off goes on."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core import tool
from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.paths import Paths, paths_of, shared
from k2core.agent.result import result_of
from k2core.agent.selecting import RANKS, agreed, choose, rank
from k2core.errors import InputError, UsageError
from k2core.events import AnswerGiven, PathChosen, PathEnded, PathStarted, RunStarted, Stored, Warned
from k2core.interfaces import Answer, Finding, Trajectory, Verdict
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry

SENT: list[str] = []


@tool(effect="pure")
def dice(throw: int) -> str:
    """Throw a die."""
    return str(throw)


@tool
def send(text: str) -> str:
    """Send something."""
    SENT.append(text)
    return "sent"


class Seen:
    """Supports a number that stands in a result."""

    name = "seen"

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """Compare the answer with all results."""
        found = tuple(one.event for one in trajectory.observations if one.text == answer.text)
        if found:
            return Verdict(
                findings=(Finding(verifier="seen", subject=f"number {answer.text}", status="supported", events=found),)
            )
        return Verdict(findings=(Finding(verifier="seen", subject=answer.text, status="unsupported", hint="nobody saw it"),))


class Thrower(ScriptedModel):
    """Path number i throws faces[i] and answers with it, or with what it is told to say; slow paths take their time."""

    def __init__(self, faces: Sequence[Any], slow: Sequence[int] = ()) -> None:
        super().__init__([])
        self.faces, self.slow = faces, slow
        self.asked: list[tuple[int, float]] = []

    async def generate(self, messages: Any, tools: Any, options: Any) -> Any:
        """One turn of the path that asks."""
        self.asked.append((options.path, options.temperature))
        if options.path in self.slow:
            await asyncio.sleep(5)
        face = self.faces[options.path]
        thrown, said = face if isinstance(face, tuple) else (face, face)
        called = sum(len(one.tool_calls) for one in messages)
        name, arguments = ("dice", {"throw": thrown}) if called == 0 else ("answer", {"claims": [], "text": str(said)})
        call = ToolCall(id=f"functions.{name}:{called}", name=name, arguments=json.dumps(arguments))
        script = ScriptedModel([Message(role="assistant", reasoning="so", tool_calls=(call,))])
        async for part in script.generate(messages, tools, options):
            yield part


def agent_over(model: ScriptedModel, path: Path, limits: Limits | None = None) -> Agent:
    """An agent with a die and a post office."""
    return Agent(
        model=model,
        tools=Registry.of([*control_tools(), dice, send]),
        verifiers=[Seen()],
        journal=Journal.open(path),
        limits=limits or Limits(),
    )


def worked(paths: Paths, run: str | None = None) -> list[Stored]:
    """The events of the question's run."""

    async def all_of() -> str:
        name = ""
        async for item in paths.resume(run) if run else paths.stream("What does the die show?"):
            name = item.run if isinstance(item, Stored) else name
        return name

    with paths.agent.journal as journal:
        return journal.events(asyncio.run(all_of()))


def of_kind(events: Sequence[Stored], kind: type) -> list[Any]:
    """Events of one kind."""
    return [one.event for one in events if isinstance(one.event, kind)]


def test_the_answer_that_most_paths_agree_on_is_given(tmp_path: Path) -> None:
    """Each path is a run of its own; the question's run says what came of each, and cites those that agree."""
    model = Thrower([3, 5, 5, 2, 5])
    events = worked(Paths(agent=agent_over(model, tmp_path / "r.sqlite"), count=5))

    (answer,), (chosen,), ended = of_kind(events, AnswerGiven), of_kind(events, PathChosen), of_kind(events, PathEnded)
    assert (answer.text, answer.status) == ("5", "answered")
    assert (chosen.path, chosen.agreeing, chosen.why) == (1, (2, 4), "agreement")
    cited = {one.sequence: one.event for one in events}
    assert [cited[event].path for one in answer.evidence for event in one.events] == [1, 2, 4]
    assert paths_of(events) == 5 and len({one.run for one in ended} | {events[0].run}) == 6
    assert result_of(events).tokens == sum(one.tokens for one in ended) > 0
    assert dict(model.asked) == {0: 0.0, 1: 0.7, 2: 0.7, 3: 0.7, 4: 0.7}


def test_evidence_comes_before_agreement(tmp_path: Path) -> None:
    """Two paths that agree on what nobody saw lose against one whose answer holds."""
    model = Thrower([(1, "9"), (1, "9"), 4])
    events = worked(Paths(agent=agent_over(model, tmp_path / "r.sqlite"), count=3))

    assert of_kind(events, AnswerGiven)[0].text == "4"
    assert of_kind(events, PathChosen)[0].why == "evidence"
    assert [one.status for one in sorted(of_kind(events, PathEnded), key=lambda one: one.path)] == ["unverified"] * 2 + [
        "answered"
    ]


def test_the_others_stop_when_enough_agree(tmp_path: Path) -> None:
    """More than half say the same: a slow path is not waited for."""
    begun = time.monotonic()
    events = worked(Paths(agent=agent_over(Thrower([6, 6, 6, 1], slow=[3]), tmp_path / "r.sqlite"), count=4))

    assert time.monotonic() - begun < 4
    assert {one.path: one.status for one in of_kind(events, PathEnded)}[3] == "stopped"
    assert of_kind(events, AnswerGiven)[0].text == "6"


def test_one_budget_is_split_and_nothing_is_done_several_times(tmp_path: Path) -> None:
    """Each path gets its share, and no path is offered a tool with side effects."""
    agent = agent_over(Thrower([1, 2, 3]), tmp_path / "r.sqlite", Limits(calls=20, tokens=900))
    events = worked(Paths(agent=agent, count=3))

    assert [dict(one.limits)["calls"] for one in of_kind(events, PathStarted)] == [6, 6, 6]
    assert "send are left out" in of_kind(events, Warned)[0].text
    with Journal.open(tmp_path / "r.sqlite") as journal:
        for one in of_kind(events, PathEnded):
            (started,) = of_kind(journal.events(one.run), RunStarted)
            assert "send" not in started.tools and started.limits["tokens"] == 300


def test_a_question_on_paths_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """Cut at every event of the question's run, with the paths' runs as they were: it comes to the same answer."""
    model = Thrower([3, 5, 5])
    events = worked(Paths(agent=agent_over(model, tmp_path / "whole.sqlite"), count=3))
    for count in range(1, len(events)):
        path = tmp_path / f"cut-{count}.sqlite"
        with Journal.open(tmp_path / "whole.sqlite") as whole, Journal.open(path) as journal:
            journal.write(events[0].run, *(one.event for one in events[:count]))
            for started in of_kind(events[:count], PathStarted)[::2]:  # the others have not begun
                journal.write(started.run, *(one.event for one in whole.events(started.run)[: count % 7 + 1]))
        again = worked(Paths(agent=agent_over(Thrower([3, 5, 5]), path), count=3), events[0].run)

        assert (of_kind(again, AnswerGiven)[-1].text, len(of_kind(again, PathStarted))) == ("5", 3), count
        assert sorted(one.path for one in of_kind(again, PathEnded)) == [0, 1, 2]

    with pytest.raises(InputError, match="its last question is done"):
        worked(Paths(agent=agent_over(Thrower([3, 5, 5]), tmp_path / "whole.sqlite"), count=3), events[0].run)


endings = st.builds(
    PathEnded,
    path=st.integers(0, 9),
    run=st.just("r"),
    status=st.sampled_from([*RANKS, "failed", "cancelled"]),
    key=st.sampled_from(["a", "b", "c"]),
)


@given(st.lists(endings, min_size=1, max_size=7, unique_by=lambda one: one.path))
def test_what_is_chosen(ended: list[PathEnded]) -> None:
    """Nothing has better evidence, and nothing with the same evidence has more agreement."""
    chosen, others, _ = asyncio.run(choose(ended))
    best = [one for one in ended if rank(one) == min(map(rank, ended))]
    votes = Counter(one.key for one in best)

    assert chosen in best and votes[chosen.key] == max(votes.values())
    assert len(others) == votes[chosen.key] - 1


def test_a_judge_decides_only_between_equals() -> None:
    """It is not asked where evidence or agreement has decided."""
    asked: list[list[int]] = []

    async def judge(candidates: Sequence[PathEnded]) -> int:
        asked.append([one.path for one in candidates])
        return len(candidates) - 1

    def ended(path: int, status: str, key: str) -> PathEnded:
        return PathEnded(path=path, run="r", status=status, key=key)

    chosen, _, why = asyncio.run(choose([ended(0, "answered", "a"), ended(1, "answered", "b")], judge))
    assert (chosen.path, why, asked) == (1, "judge", [[0, 1]])
    chosen, _, why = asyncio.run(
        choose([ended(0, "answered", "a"), ended(1, "unverified", "b"), ended(2, "unverified", "b")], judge)
    )
    assert (chosen.path, why, len(asked)) == (0, "evidence", 1)


@given(st.lists(endings, max_size=7, unique_by=lambda one: one.path), st.integers(2, 9))
def test_enough_agree_only_when_the_others_could_not_change_it(ended: list[PathEnded], count: int) -> None:
    """Where paths may stop early, no ending of the rest would give another answer the majority."""
    if len(ended) <= count and agreed(ended, count):
        votes = Counter(one.key for one in ended if one.status == "answered")
        (_, most), *rest = votes.most_common()
        assert most > (rest[0][1] if rest else 0) + count - len(ended)


def test_budgets_that_cannot_be_shared_are_refused() -> None:
    """In one line, before anything is done."""
    with pytest.raises(UsageError, match="cannot share a budget of 5 calls among 8 paths: raise it"):
        shared(Limits(calls=5), 8)
    with pytest.raises(UsageError, match="cannot work on 1 paths"):
        Paths(agent=None, count=1)  # type: ignore[arg-type]
