"""Every swap and every refusal is an event of the conversation's run, in order, wherever it falls."""

import asyncio
import itertools
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from swap.parts import ANSWER, OPENED, call, opened

from k2core.agent.journal import Journal
from k2core.agent.swap_events import following
from k2core.agent.swaps import Swaps
from k2core.errors import JournalError, K2Error, UnknownName
from k2core.events import ModelSwitched, RunEnded, RunStarted, Stored, Swapped, Warned

POLITE = call("answer", text="Done, please.", claims=[])


def told(agent, run):
    """Swaps by what they are to, refusals by their last word, in order."""
    events = [one.event for one in agent.journal.events(run)]
    found = [one for one in events if isinstance(one, Swapped | Warned)]
    return [one.new if isinstance(one, Swapped) else one.text.split()[-1] for one in found]


def test_swaps_between_questions_are_written_at_once(tmp_path):
    """To and fro is two events behind the run's end, there before the next question begins; a refusal says why."""
    agent, tools, verifiers = opened(tmp_path, [POLITE] * 2, verified=True)
    run = agent.run("hi").run
    verifiers.use("polite", "lenient")
    verifiers.use("polite", "default")
    with pytest.raises(UnknownName):
        tools.use("double", "ading")
    tools.use("double", "adding")
    behind = [one.event for one in agent.journal.events(run)]
    end = max(place for place, one in enumerate(behind) if isinstance(one, RunEnded))
    assert [one.new for one in behind[end + 1 :] if isinstance(one, Swapped)] == ["lenient", "default", "adding"]
    refusal = behind[end + 3]
    assert isinstance(refusal, Warned)
    assert refusal.text.startswith("the swap of tool 'double' for 'ading' was refused: no implementation of tool 'double'")
    agent.run("hi", run=run)
    assert told(agent, run) == ["lenient", "default", "'adding'?", "adding"]


def test_what_comes_before_the_first_question_goes_into_its_run(tmp_path):
    """In the order in which it happened: at once, refused, and last what waited for the question, as it was asked for."""
    agent, tools, verifiers = opened(tmp_path, [ANSWER] * 3, verified=True)
    tools.use("double", "words")  # waits
    verifiers.use("polite", "lenient")
    with pytest.raises(UnknownName):
        verifiers.use("polite", "lenint")
    run = agent.run("hi").run
    assert told(agent, run) == ["lenient", "'lenient'?", "words"]
    kinds = [one.event.kind for one in agent.journal.events(run)]
    assert kinds[:6] == ["run.started", "message", "message", "swapped", "warning", "swapped"]
    other = agent.run("hi").run
    assert told(agent, other) == ["words", "lenient"]  # a run of its own is told what is in force


def test_what_is_refused_while_a_question_is_worked_on_is_in_its_run(tmp_path):
    """Before the next turn, and also where the question has just ended."""

    async def ask():
        async for item in agent.stream("Double it."):
            if isinstance(item, Stored):
                runs.append(item.run)
                if item.event.kind in ("tool.result", "run.ended"):
                    with pytest.raises(UnknownName):
                        tools.use("double", item.event.kind)

    runs = []
    agent, tools, _ = opened(tmp_path, [call("double", number=1), ANSWER])
    asyncio.run(ask())
    kinds = [one.event.kind for one in agent.journal.events(runs[0])]
    assert [kind for kind in kinds if kind in ("turn", "tool.result", "warning", "run.ended")] == [
        "turn", "tool.result", "warning", "turn", "tool.result", "warning", "run.ended", "warning",
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.sampled_from(["adding", "shifting", "words", "default", "wrong", "ask", "new"]), max_size=12))
def test_runs_together_tell_the_whole_story(tmp_path_factory, steps):
    """Whatever is swapped, refused and asked, every event is in a run once, each run's swaps follow upon each other."""
    agent, tools, _ = opened(tmp_path_factory.mktemp("swap"), [ANSWER] * 14)
    runs, refused, run, held = [], 0, None, ["default"]
    for step in [*steps, "ask"]:
        if step in ("ask", "new"):
            run = agent.run("hi", run=run if step == "ask" else None).run
            runs = [*dict.fromkeys([*runs, run])]
        else:
            try:
                tools.use("double", step)
            except UnknownName:
                refused += 1
        now = tools.implementations()["double"][0]
        held += [now] if now != held[-1] else []
    events = {one: [stored.event for stored in agent.journal.events(one)] for one in runs}
    swapped = {one: [event for event in of if isinstance(event, Swapped)] for one, of in events.items()}
    assert sum(isinstance(event, Warned) for of in events.values() for event in of) == refused
    assert all(first.new == second.old for of in swapped.values() for first, second in itertools.pairwise(of))
    assert all(of[0].old == "default" for of in swapped.values() if of)
    assert (swapped[run][-1].new if swapped[run] else "default") == held[-1]
    if len(runs) == 1:
        assert [one.new for one in swapped[run]] == held[1:]


def test_a_run_that_goes_on_in_another_session_has_swaps_that_follow(tmp_path):
    """What is swapped there, before a question and behind the end, begins where the run's last swap ended."""
    agent, tools, _ = opened(tmp_path, [ANSWER])
    tools.use("double", "adding")
    run = agent.run("hi").run
    other, others, _ = opened(tmp_path, [ANSWER])
    other.last_run = run
    others.use("double", "shifting")
    others.use("double", "adding")
    others.use("double", "default")
    found = [one.event for one in other.journal.events(run) if isinstance(one.event, Swapped)]
    assert [(one.old, one.new) for one in found] == [
        ("default", "adding"), ("adding", "shifting"), ("shifting", "adding"), ("adding", "default"),
    ]  # fmt: skip


def test_what_cannot_be_written_waits_and_says_so(tmp_path):
    """While another process holds the file a swap holds, but is not in the log; the question after it writes it."""
    agent, tools, _ = opened(tmp_path, [ANSWER] * 3)
    agent.journal = OPENED.enter_context(Journal.open(tmp_path / "runs.sqlite", busy_timeout_s=0.05))
    run = agent.run("hi").run
    holder = sqlite3.connect(tmp_path / "runs.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with capture_logs() as logs:
        tools.use("double", "adding")
    assert [one["event"] for one in logs] == ["swaps.not_written"] and run in logs[0]["line"]
    with pytest.raises(JournalError), capture_logs():
        agent.run("hi", run=run)
    holder.close()
    assert told(agent, run) == [] and tools.implementations()["double"][0] == "adding"
    with pytest.raises(K2Error):
        tools.use("double", "wrong")
    agent.run("hi", run=run)
    assert told(agent, run)[0] == "adding" and len(told(agent, run)) == 2


def test_a_switch_that_a_question_has_told_is_not_told_again():
    """Whoever tells of the new model first, the run has it once; a switch back is another one."""
    one, other = ({"model": "m", "backend": name} for name in ("numba", "onnx"))
    to, back = ModelSwitched(model=other), ModelSwitched(model=one)
    swaps = Swaps()
    assert following([to], [to], swaps) == []
    assert following([to], [to, back, back, to], swaps) == [back, to]
    assert following([RunStarted(question="q", model=other, tools=(), limits={}, options={})], [to], swaps) == [to]
