"""Runs that were cut off go on: at every event, with every effect class, whoever holds them."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent.worlds import OPENED, PLAN, World, agent_over, cut, of_kind, resumed

from k2core.agent.budget import Limits
from k2core.agent.loop import Agent
from k2core.errors import InputError
from k2core.events import CallDecided, DecisionNeeded, Event, RunEnded, RunResumed, Stored, ToolAgain, ToolIntent, ToolReturned


@pytest.fixture(autouse=True)
def journals_are_closed() -> Iterator[None]:
    """Close each test's journals at its end."""
    yield
    OPENED.close()


def test_a_run_that_is_cut_at_any_event_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Cut the log at every event: it resumes, every request is valid, the answer is the same and no effect is doubled."""
    world = World()
    agent = agent_over(world, PLAN, tmp_path / "whole.sqlite")
    whole = agent.run("Which numbers?")
    events = agent.journal.events(whole.run)
    assert whole.status == "declined" and len(events) > 25

    for count in range(1, len(events)):
        here = World([one for one in world.effects if _is_begun(events[:count], one)])
        path = tmp_path / f"cut-{count}.sqlite"
        run = cut(events, count, path)
        other = agent_over(here, PLAN, path)

        result = resumed(other, run)

        after = other.journal.events(run)
        assert (result.answer.text, result.status) == (whole.answer.text, whole.status), count
        assert [one.event for one in after[:count]] == [one.event for one in events[:count]]
        assert [one.index for one in of_kind(after, ToolReturned)] == [one.index for one in of_kind(events, ToolReturned)]
        assert [one.text for one in of_kind(after, ToolReturned)] == [one.text for one in of_kind(events, ToolReturned)]
        assert sorted(here.effects) == sorted(world.effects), count
        assert len(of_kind(after, RunEnded)) == 1
        assert result.calls == whole.calls


def _is_begun(events: Sequence[Stored], effect: tuple[str, str]) -> bool:
    index = int(effect[1].rpartition(":")[2])
    return any(one.index == index for one in of_kind(events, ToolIntent))


def orphaned(tmp_path: Path, name: str, number: int = 1) -> tuple[World, Agent, str]:
    """A run that was cut between a call's effect and its result."""
    world, plan = World(), [(name, {"number": number}), "Done."]
    agent = agent_over(world, plan, tmp_path / "first.sqlite")
    events = agent.journal.events(agent.run("Do it.").run)
    place = next(index for index, one in enumerate(events) if isinstance(one.event, ToolIntent))
    run = cut(events, place + 1, tmp_path / "runs.sqlite")
    return world, agent_over(world, plan, tmp_path / "runs.sqlite"), run


@pytest.mark.parametrize(
    ("name", "result"), [("double", "2"), ("put", "put 1"), ("book", "book 1"), ("pay", "pay 1"), ("send", "send 1")]
)
def test_what_becomes_of_a_call_without_a_result(tmp_path: Path, name: str, result: str) -> None:
    """Pure is made again, idempotent under the same key, reversible after its undo, and external never, if its tool knows."""
    world, agent, run = orphaned(tmp_path, name)
    before = list(world.effects)

    answer = resumed(agent, run)

    events = agent.journal.events(run)
    assert world.effects == before
    if name == "send":
        assert answer.status == "waiting"
        assert [one.index for one in of_kind(events, DecisionNeeded)] == [0]
        assert re.search(r"call 0, send number=1, begun 2.*: the tool cannot look.* One of: happened, redo", answer.answer.text)
    else:
        assert next(one.text for one in of_kind(events, ToolReturned)) == result
        assert answer.answer.text == "Done."
        assert len(of_kind(events, ToolAgain)) == (name != "pay")


def test_an_external_call_that_did_not_happen_is_made_once(tmp_path: Path) -> None:
    """Where its tool finds that it took no effect, it is made again; where it cannot tell, a person is asked."""
    world, agent, run = orphaned(tmp_path, "pay")
    world.effects.clear()

    assert resumed(agent, run).answer.text == "Done."
    assert world.effects == [("pay", f"{run}:0")]

    world, agent, run = orphaned(tmp_path / "second", "pay", -1)

    assert "the bank does not answer" in resumed(agent, run).answer.text


@pytest.mark.parametrize(
    ("decision", "sent", "told"),
    [
        ("happened", 1, "sent at noon"),
        ("redo", 2, "send 2"),
        ("abandon", 1, "error: interrupted before a result came back; it was decided not to repeat it"),
    ],
)
def test_a_person_decides(tmp_path: Path, decision: Any, sent: int, told: str) -> None:
    """The run waits, however often it is resumed, until somebody decides; then it goes on as decided."""
    world, agent, run = orphaned(tmp_path, "send")
    for _ in range(2):
        assert resumed(agent, run).status == "waiting"
    assert len(of_kind(agent.journal.events(run), DecisionNeeded)) == 1

    agent.journal.write(run, CallDecided(index=0, decision=decision, by="user", text="sent at noon"))
    answer = resumed(agent, run)

    assert answer.answer.text == "Done."
    assert len(world.effects) == sent
    assert next(one.text for one in of_kind(agent.journal.events(run), ToolReturned)) == told


def test_a_decision_counts_for_one_attempt(tmp_path: Path) -> None:
    """A call that was made again as decided, and cut off again, needs another decision."""
    world, agent, run = orphaned(tmp_path, "send")
    resumed(agent, run)
    agent.journal.write(run, CallDecided(index=0, decision="redo", by="user"), ToolAgain(index=0, attempt=2, why="the user"))

    assert resumed(agent, run).status == "waiting"
    assert len(of_kind(agent.journal.events(run), DecisionNeeded)) == 2
    assert len(world.effects) == 1


def test_a_run_that_is_done_is_not_resumed(tmp_path: Path) -> None:
    """It says what to do instead, and writes nothing."""
    agent = agent_over(World(), ["Done."], tmp_path / "runs.sqlite")
    run = agent.run("Do it.").run
    events = agent.journal.events(run)

    with pytest.raises(InputError, match=f"cannot resume run {run}: its last question is done .declined.*k2 run -c"):
        resumed(agent, run)

    assert agent.journal.events(run) == events


def test_a_partial_answer_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    """What was used counts on: four calls were made, eight are allowed."""
    plan = [*([("double", {"number": 1})] * 6), "Done."]
    small = agent_over(World(), plan, tmp_path / "runs.sqlite", Limits(calls=5))
    first = small.run("Do it.")
    assert (first.status, first.calls) == ("partial", 4)

    larger = agent_over(World(), plan, tmp_path / "runs.sqlite", Limits(calls=8))
    result = resumed(larger, first.run)

    assert (result.answer.text, result.calls) == ("Done.", 7)


def test_what_was_said_at_the_end_of_a_budget_is_left_out_when_work_goes_on(tmp_path: Path) -> None:
    """With a larger budget the conversation is that of a run which had it from the start; without one, it says what to give."""
    plan = [*[("double", {"number": number}) for number in range(6)], "Done."]
    small = agent_over(World(), plan, tmp_path / "runs.sqlite", Limits(calls=5))
    run = small.run("Do it.").run
    with pytest.raises(
        InputError, match=r"the budget of 5 calls is nearly used up\. Give more of it, e\.g\. k2 resume .* --calls 10"
    ):
        resumed(small, run)

    larger = agent_over(World(), plan, tmp_path / "runs.sqlite", Limits(calls=20))
    resumed(larger, run)
    whole = agent_over(World(), plan, tmp_path / "whole.sqlite", Limits(calls=20))
    whole.run("Do it.")

    said = [[(one.role, one.content, one.name) for one in asked.messages] for asked in larger.model.requests]  # type: ignore[attr-defined]
    expected = [[(one.role, one.content, one.name) for one in asked.messages] for asked in whole.model.requests]  # type: ignore[attr-defined]
    assert said == expected[4:]


@pytest.mark.parametrize("limits", [Limits(calls=5), Limits(tokens=40)])
def test_a_run_that_is_cut_while_a_budget_ends_it_ends_with_it(tmp_path: Path, limits: Limits) -> None:
    """Cut at every event, resumed with the same budget: a partial answer, or a line that says what to give."""
    plan = [*[("double", {"number": number}) for number in range(9)], "Done."]
    agent = agent_over(World(), plan, tmp_path / "w.sqlite", limits)
    whole = agent.run("Do it.")
    events = agent.journal.events(whole.run)
    assert whole.status == "partial"
    for count in range(1, len(events)):
        path = tmp_path / f"cut-{count}.sqlite"
        run = cut(events, count, path)
        other = agent_over(World(), plan, path, limits)

        result = resumed(other, run)

        assert result.status == "partial" and result.answer.partial is not None, count
        assert result.calls <= (limits.calls or 10)


def test_an_interrupted_turn_is_generated_again(tmp_path: Path) -> None:
    """What was heard of it is in the journal and not in the conversation."""
    agent = agent_over(World(), [("double", {"number": 1}), "Done."], tmp_path / "runs.sqlite")
    events: list[Event] = []

    async def until_thinking() -> str:
        run = ""
        async for item in agent.stream("Do it."):
            if isinstance(item, Stored):
                run = item.run
            else:
                break
        return run

    run = asyncio.run(until_thinking())
    events = [one.event for one in agent.journal.events(run)]
    assert isinstance(events[-1], RunEnded) and events[-1].status == "cancelled"

    assert resumed(agent, run).answer.text == "Done."
    assert len(of_kind(agent.journal.events(run), RunResumed)) == 1
