"""Forks: new runs that begin as another one did, at every event, with results given by hand, under the keys of the first."""

import asyncio
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent.worlds import OPENED, PLAN, World, agent_over, of_kind, resumed
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from journal.strategies import any_event

from k2core.agent.approving import Approval
from k2core.agent.budget import Limits
from k2core.agent.forking import Given, fork, place_of
from k2core.agent.journal import Journal
from k2core.agent.ledger import key_of
from k2core.agent.loop import Agent
from k2core.agent.paths import Paths
from k2core.agent.projection import messages
from k2core.agent.resuming import spent
from k2core.cli.run_settings import settings_of_run
from k2core.cli.settings import Settings
from k2core.errors import InputError, JournalDamaged, UnknownName
from k2core.events import (
    AnswerGiven,
    CallDecided,
    Event,
    MessageAdded,
    RunEnded,
    RunForked,
    Stored,
    ToolBegun,
    ToolIntent,
    ToolReturned,
    TurnEnded,
)
from k2core.interfaces import GenerateOptions


@pytest.fixture(autouse=True)
def journals_are_closed() -> Iterator[None]:
    """Close each test's journals at its end."""
    yield
    OPENED.close()


def forked(agent: Agent, run: str, step: int, given: Given | None = None, **more: Any) -> str:
    """The id of a fork."""
    return asyncio.run(fork(agent.journal, run, step, given, **more))


def place(events: Sequence[Stored], kind: type, index: int = 0) -> int:
    """Number of the event of a kind that is about a call."""
    return next(one.sequence for one in events if isinstance(one.event, kind) and one.event.index == index)  # type: ignore[attr-defined]


def test_a_fork_at_any_event_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Fork at every event: the parent stays, every request is valid, the answer is the same, copied calls keep their keys."""
    path, world = tmp_path / "runs.sqlite", World()
    agent = agent_over(world, PLAN, path)
    whole = agent.run("Which numbers?")
    events = agent.journal.events(whole.run)

    for step in range(1, len(events)):
        begun = {one.index for one in of_kind(events[:step], ToolIntent)}
        here = World([one for one in world.effects if int(one[1].rpartition(":")[2]) in begun])
        other = agent_over(here, PLAN, path)

        run = forked(other, whole.run, step)
        result = resumed(other, run)

        after = other.journal.events(run)
        assert [(one.event, one.time) for one in after[:step]] == [(one.event, one.time) for one in events[:step]]
        told = after[step].event
        assert isinstance(told, RunForked) and (told.run, told.sequence, told.replaced) == (whole.run, step, None)
        assert told.hash == agent.journal.hash_of(whole.run, step) != ""
        assert (result.run, result.answer.text, result.status) == (run, whole.answer.text, whole.status), step
        assert [one.text for one in of_kind(after, ToolReturned)] == [one.text for one in of_kind(events, ToolReturned)]
        renamed = [
            (what, key if int(key.rpartition(":")[2]) in begun else key.replace(whole.run, run)) for what, key in world.effects
        ]
        assert sorted(here.effects) == sorted(renamed), step
        assert len(of_kind(after, RunEnded)) == 1 and result.calls == whole.calls
    assert agent.journal.events(whole.run) == events
    assert {one.status for one in agent.journal.runs(100)} == {whole.status}


@pytest.mark.parametrize(
    ("name", "result"), [("double", "2"), ("put", "put 1"), ("book", "book 1"), ("pay", "pay 1"), ("send", "send 1")]
)
def test_a_call_at_the_cut_is_settled_under_its_first_key(tmp_path: Path, name: str, result: str) -> None:
    """Forked between a call's intent and its result, in the same world: no effect is doubled, also in a fork of a fork."""
    world, plan = World(), [(name, {"number": 1}), "Done."]
    agent = agent_over(world, plan, tmp_path / "runs.sqlite")
    first = agent.run("Do it.").run
    effects = list(world.effects)
    intent = place(agent.journal.events(first), ToolIntent)

    once = forked(agent, first, intent)
    twice = forked(agent, once, intent + 1)

    assert key_of(agent.journal.events(twice), 0) == f"{first}:0"
    for run in (once, twice):
        answer = resumed(agent, run)
        assert world.effects == effects
        if name == "send":
            assert answer.status == "waiting" and "send number=1, begun" in answer.answer.text
            since = agent.journal.events(first)[intent - 1].time
            assert f"begun {since}" in answer.answer.text
        else:
            assert next(one.text for one in of_kind(agent.journal.events(run), ToolReturned)) == result


def test_calls_behind_the_fork_are_its_own(tmp_path: Path) -> None:
    """A call that was not begun at the cut is made by the fork, under a key of the fork."""
    world = World()
    agent = agent_over(world, [("send", {"number": 1}), "Done."], tmp_path / "runs.sqlite")
    first = agent.run("Do it.").run

    run = forked(agent, first, place(agent.journal.events(first), ToolIntent) - 1)

    assert resumed(agent, run).answer.text == "Done."
    assert world.effects == [("send", f"{first}:0"), ("send", f"{run}:0")]


def test_what_was_decided_counts_for_one_run(tmp_path: Path) -> None:
    """A decision that is copied, and was not acted upon yet, is asked for again: two runs must not act upon one."""
    world = World()
    agent = agent_over(world, [("send", {"number": 1}), "Done."], tmp_path / "runs.sqlite")
    first = agent.run("Do it.").run
    orphan = forked(agent, first, place(agent.journal.events(first), ToolIntent))
    assert resumed(agent, orphan).status == "waiting"
    agent.journal.write(orphan, CallDecided(index=0, decision="redo", by="user"))
    decided = len(agent.journal.events(orphan))

    run = forked(agent, orphan, decided)

    assert resumed(agent, run).status == "waiting" and len(world.effects) == 1
    assert resumed(agent, orphan).answer.text == "Done." and len(world.effects) == 2


def test_an_approval_counts_for_one_run(tmp_path: Path) -> None:
    """One that is copied, and was not used up yet, approves nothing in the fork."""
    world = World()
    agent = agent_over(world, [("send", {"number": 1}), "Done."], tmp_path / "runs.sqlite")
    agent.approval = Approval.of(["external"])
    first = agent.run("Do it.")
    assert (first.status, world.effects) == ("waiting", [])
    agent.journal.write(first.run, CallDecided(index=0, decision="approve", by="user"))

    run = forked(agent, first.run, len(agent.journal.events(first.run)))

    assert (resumed(agent, run).status, world.effects) == ("waiting", [])
    assert resumed(agent, first.run).answer.text == "Done." and len(world.effects) == 1
    begun = next(one.sequence for one in agent.journal.events(first.run) if isinstance(one.event, ToolBegun))
    again = forked(agent, first.run, begun)
    assert resumed(agent, again).status == "waiting" and len(world.effects) == 1


@pytest.mark.parametrize("at", [ToolIntent, ToolReturned])
@pytest.mark.parametrize(("text", "ok"), [("42", True), ("", True), ("error: the tool is gone", False)])
def test_a_result_is_given_by_hand(tmp_path: Path, at: type, text: str, ok: bool) -> None:
    """It stands where the call's own did, at its time, whichever of its events is named, and the model goes on behind it."""
    agent = agent_over(World(), [("double", {"number": 3}), ("double", {"number": 4}), "Done."], tmp_path / "runs.sqlite")
    first = agent.run("Do it.").run
    events = agent.journal.events(first)
    own = place(events, ToolReturned)

    run = forked(agent, first, place(events, at), Given(tool="double", text=text))

    after = agent.journal.events(run)
    given = after[own - 1]
    assert given.event == evolve(events[own - 1].event, text=text, ok=ok, duration_ms=0.0, full_bytes=len(text), details={})  # type: ignore[type-var]
    assert (given.time, after[own - 2].event) == (events[own - 1].time, events[own - 2].event)
    assert after[own].event == RunForked(
        run=first, sequence=own - 1, hash=agent.journal.hash_of(first, own - 1), replaced=0, seed=None
    )
    assert resumed(agent, run).answer.text == "Done."
    told = [one.content for one in messages(agent.journal.events(run)) if one.role == "tool"]
    assert told[:2] == [text, "8"]


def test_a_call_without_a_result_is_given_one(tmp_path: Path) -> None:
    """Whether it happened is not asked any more."""
    world = World()
    agent = agent_over(world, [("send", {"number": 1}), "Done."], tmp_path / "runs.sqlite")
    first = agent.run("Do it.").run
    orphan = forked(agent, first, place(agent.journal.events(first), ToolIntent))
    intent = place(agent.journal.events(orphan), ToolIntent)
    assert resumed(agent, orphan).status == "waiting"

    run = forked(agent, orphan, intent, Given(tool="send", text="sent at noon"))

    assert resumed(agent, run).answer.text == "Done." and len(world.effects) == 1
    assert of_kind(agent.journal.events(run), ToolReturned)[0].text == "sent at noon"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """No such event, nothing left to do, no call there, a call of another tool, the agent's own: each says what is there."""
    agent = agent_over(World(), [("double", {"number": 3}), "Done."], tmp_path / "runs.sqlite")
    run = agent.run("Do it.").run
    events = agent.journal.events(run)
    last, result = len(events), place(events, ToolReturned)
    answered = next(one.sequence for one in events if isinstance(one.event, AnswerGiven))
    turn = next(one.sequence for one in events if isinstance(one.event, TurnEnded))

    def line(step: int, given: Given | None = None, name: str = run) -> str:
        with pytest.raises((InputError, UnknownName)) as caught:
            forked(agent, name, step, given)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
        return str(caught.value)

    assert line(0) == f"cannot fork run {run} at event 0: it has the events 1 to {last}, see k2 runs show {run}"
    assert f"it has the events 1 to {last}" in line(last + 1)
    assert f"done there (declined). Fork it before the answer, which is event {answered}, or ask" in line(last)
    assert line(turn, Given(tool="double", text="7")).endswith(
        f"that event is no call but turn; results of double are events {result}"
    )
    assert line(turn, Given(tool="tripel", text="7")).endswith("no call but turn; it has no result of tripel")
    assert line(result, Given(tool="put", text="7")).endswith("with a result of put: the call there is one of double")
    assert "its results are the agent's own" in line(place(events, ToolReturned, 1), Given(tool="answer", text="accepted"))
    assert "no run 'nobody'" in line(1, name="nobody")
    agent.run("Do it.")
    assert re.search(r"run '2\d' fits 2 runs", line(1, name=run[:2]))
    assert len(agent.journal.runs()) == 2


@pytest.mark.parametrize(
    ("text", "expected"), [("last@6", ("last", 6)), ("261124-0@12", ("261124-0", 12)), ("a@b@3", ("a@b", 3))]
)
def test_places(text: str, expected: tuple[str, int]) -> None:
    """The number stands behind the last @."""
    assert place_of(text) == expected


@pytest.mark.parametrize("text", ["last", "", "@", "@6", "last@", "last@six", "last@-1", "last@1.5", "last@²"])
def test_what_is_no_place_says_how_one_looks(text: str) -> None:
    """RUN@STEP, with an example."""
    with pytest.raises(InputError, match=f"cannot fork '{re.escape(text)}': expected RUN@STEP.*e.g. .+@6"):
        place_of(text)


@pytest.mark.parametrize("text", ["42", "=42", " =42", "calculator=\ud800"])
def test_what_is_no_result_says_how_one_looks(text: str) -> None:
    """TOOL=RESULT, as text that can be stored."""
    with pytest.raises(InputError, match="cannot give "):
        Given.of(text)
    assert Given.of("calculator=1 = 1") == Given(tool="calculator", text="1 = 1")


def test_a_damaged_run_is_forked_before_its_damage(tmp_path: Path) -> None:
    """What does not fit says how to go on, events before it can be forked, it and those behind it cannot."""
    path = tmp_path / "runs.sqlite"
    agent = agent_over(World(), PLAN, path)
    run = agent.run("Which numbers?").run
    events = agent.journal.events(run)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER events_never_change")
        connection.execute("UPDATE events SET body = replace(body, 'book', 'cook') WHERE kind = 'tool.intent'")
    connection.close()
    damaged = next(one.sequence for one in events if isinstance(one.event, ToolIntent) and one.event.name == "book")

    with pytest.raises(JournalDamaged, match=rf"Go on from before it: k2 runs fork {run}@{damaged - 1}$"):
        agent.journal.events(run)
    sound, damage = agent.journal.sound(run)
    assert sound == events[: damaged - 1] and damage is not None and damage.sequence == damaged
    for step in (damaged, damaged + 1, 1000):
        with pytest.raises(InputError, match=rf"it is damaged at event {damaged}. Fork it .* {run}@{damaged - 1}$"):
            forked(agent, run, step)
    for step in (1, damaged - 1):
        assert resumed(agent, forked(agent, run, step)).answer.text == "The numbers are down."


def test_what_its_calls_used_counts_and_the_time_between_does_not(tmp_path: Path) -> None:
    """Calls, tokens and seconds are those up to the cut; how long ago that was does not matter."""
    agent = agent_over(World(), PLAN, tmp_path / "runs.sqlite")
    events = agent.journal.events(agent.run("Which numbers?").run)
    old = [evolve(one, time=f"2020-01-01T00:00:{number:02d}.000Z") for number, one in enumerate(events)]
    asyncio.run(agent.journal.copy(old, "old"))

    for step in range(1, len(old)):
        copied, fresh = spent(agent.journal.events(forked(agent, "old", step))), spent(old[:step])
        assert copied == fresh and copied.seconds <= step


def test_a_question_of_several_paths_is_not_forked(tmp_path: Path) -> None:
    """Its trajectories are runs of their own: two questions must not work on the same ones."""
    agent = agent_over(World(), [("double", {"number": 3}), "Done."], tmp_path / "runs.sqlite")

    async def whole() -> list[Stored]:
        return [one async for one in Paths(agent=agent, count=2).stream("Do it.") if isinstance(one, Stored)]

    events = asyncio.run(whole())
    paths = [one for one in (run.run for run in agent.journal.runs()) if one != events[0].run]

    with pytest.raises(InputError, match=r"worked on by several paths from there on\. Fork one of their runs: ") as caught:
        forked(agent, events[0].run, len(events) - 1)
    assert all(one in str(caught.value) for one in paths)
    assert resumed(agent, forked(agent, paths[0], 4)).answer.text == "Done."


def test_a_seed_stays_with_the_fork(tmp_path: Path) -> None:
    """The settings of a fork have its seed, of one without the parent's, unless another is asked for."""
    agent = agent_over(World(), ["Done."], tmp_path / "runs.sqlite")
    agent.options = GenerateOptions(seed=5)
    run = agent.run("Do it.").run
    one, other = forked(agent, run, 3, seed=0), forked(agent, run, 3)
    again = forked(agent, one, 4)
    settings = Settings.load(environ={}, file=_empty(tmp_path))

    found = [settings_of_run(settings, agent.journal.events(name))["seed"] for name in (run, one, other, again)]
    asked = settings_of_run(Settings.load({"seed": 8}, environ={}, file=_empty(tmp_path)), agent.journal.events(one))

    assert found == [5, 0, 5, 0] and asked["seed"] == 8


def _empty(folder: Path) -> Path:
    (folder / "config.toml").touch()
    return folder / "config.toml"


def test_a_partial_answer_is_forked_with_a_larger_budget(tmp_path: Path) -> None:
    """A fork at the end of a run that a budget ended goes on where that run would."""
    plan = [*([("double", {"number": number}) for number in range(6)]), "Done."]
    small = agent_over(World(), plan, tmp_path / "runs.sqlite", Limits(calls=5))
    first = small.run("Do it.")
    larger = agent_over(World(), plan, tmp_path / "runs.sqlite", Limits(calls=20))

    run = forked(larger, first.run, len(small.journal.events(first.run)))

    assert resumed(larger, run).answer.text == "Done."
    assert resumed(larger, first.run).answer.text == "Done."


@given(st.lists(any_event, min_size=1, max_size=6), st.data())
def test_any_events_can_be_copied(tmp_path_factory: pytest.TempPathFactory, events: list[Event], data: st.DataObject) -> None:
    """Copies have the same events and times under another run's hashes, all or none, and what follows happens now."""
    with Journal.open(tmp_path_factory.mktemp("copies") / "runs.sqlite") as journal:
        stored = journal.write("first", *events)
        count = data.draw(st.integers(1, len(events)))
        asyncio.run(journal.copy(stored[:count], "second", MessageAdded(role="user", content="More.")))
        found = journal.events("second")

        assert [(one.event, one.time) for one in found[:count]] == [(one.event, one.time) for one in stored[:count]]
        assert {one.run for one in found} == {"second"} and len(found) == count + 1
        assert journal.events("first") == stored
        assert journal.hash_of("first", 1) != journal.hash_of("second", 1) and journal.hash_of("first", 99) == ""
