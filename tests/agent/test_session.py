"""What a session is made of: what its tools get, what its model is held to, and another backend in the middle of it."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.session import Choice, Session, session_tools
from k2core.errors import CapacityError, InputError, UnknownName
from k2core.events import ModelSwitched, TurnEnded
from k2core.interfaces import Tool
from k2core.plugins import Plugins
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry
from k2core_nano import WEIGHTS

needs_nano = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)


def search_of(choice: Choice, closing: ExitStack) -> Tool:
    """The shipped search as a session has it."""
    found: Tool = next(one for one in session_tools(Plugins.discover(), choice, closing) if one.name == "search")
    return found


@pytest.mark.parametrize("is_given", [True, False])
def test_searching_keeps_its_index_beside_the_runs(is_given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index lies in the folder of the store, the user's own by default; making the tools makes no folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    documents = tmp_path / "docs"
    documents.mkdir()
    (documents / "bridge.md").write_text("The Tal Bridge opened in 1873.\n")
    store = tmp_path / "mine" / "runs.sqlite" if is_given else None

    with ExitStack() as closing:
        search = search_of(Choice(tools=("search",), documents=documents, store=store), closing)
        assert [one.name for one in tmp_path.iterdir()] == ["docs"]
        assert "1873" in search.function(query="bridge")
    (index,) = tmp_path.rglob("documents-*.sqlite")
    assert index.parent == tmp_path / "mine" if is_given else index.parent.name == "k2core"


@needs_nano
def test_a_session_goes_on_with_another_backend(tmp_path: Path) -> None:
    """After a switch the conversation goes on in the same run; its log has the switch with its report, once."""
    with Session.open(Choice(store=tmp_path / "runs.sqlite")) as session:
        first = session.agent.run("What is 23 times 47?")
        report = session.use("numba", check=30)
        second = session.agent.run("What is 12 plus 30?", run=first.run)
        session.agent.run("What is 13 plus 30?", run=first.run)
        events = session.agent.journal.events(first.run)
        with pytest.raises(UnknownName, match="no backend 'nunba'"):
            session.use("nunba")
        with pytest.raises(InputError, match=r"limit is -1\.0, but it must be a positive number"):
            session.use("numba", limit=-1.0)
        after = session.agent.run("What is 23 times 47?")

    switched = [one.event for one in events if isinstance(one.event, ModelSwitched)]
    assert first.answer.text == after.answer.text == "The answer is 1081."
    assert second.answer.text == "The answer is 42."
    assert (report.tokens, report.max_delta) == (30, 0.0)
    assert [one.model["switch"] for one in switched] == [str(report)]


def test_a_model_that_brings_its_own_backend_cannot_switch(tmp_path: Path) -> None:
    """A scripted or remote model says so in one line."""
    with (
        Session.open(Choice(store=tmp_path / "runs.sqlite"), model=ScriptedModel(["Hello."])) as session,
        pytest.raises(InputError, match="it brings its own"),
    ):
        session.use("numba")


def test_a_run_that_goes_on_with_another_model_says_so(tmp_path: Path) -> None:
    """Whoever reads the log sees where another model took over."""
    with Journal.open(tmp_path / "runs.sqlite") as journal:
        agents = [
            Agent(model=ScriptedModel(["Hello."] * 2, name=name), tools=Registry.of([]), journal=journal)
            for name in ("one", "other")
        ]
        run = agents[0].run("hi").run
        agents[0].run("hi", run=run)
        agents[1].run("hi", run=run)
        kinds = [one.event for one in journal.events(run) if isinstance(one.event, ModelSwitched | TurnEnded)]

    assert [type(one) for one in kinds] == [TurnEnded, TurnEnded, ModelSwitched, TurnEnded]
    assert isinstance(kinds[2], ModelSwitched)
    assert kinds[2].model["model"] == "other"


@needs_nano
def test_masks_guesses_and_cache_change_no_answer(tmp_path: Path) -> None:
    """The same run with masks off, without guesses and with little cache; too little cache is refused with the numbers."""
    texts = set()
    for number, options in enumerate(({}, {"masks": False}, {"drafts": 0}, {"cache_bytes": 5 * 10**6})):
        with Session.open(Choice(store=tmp_path / f"{number}.sqlite", **options)) as session:  # type: ignore[arg-type]
            result = session.agent.run("What is 23 times 47?")
            turns = [one.event for one in session.agent.journal.events(result.run) if isinstance(one.event, TurnEnded)]
            texts.add(tuple(turn.token_ids for turn in turns))
            assert (sum(turn.usage.mask_seconds for turn in turns) == 0) == (options == {"masks": False})
            assert (sum(turn.usage.drafted_tokens for turn in turns) == 0) == (options == {"drafts": 0})
    with pytest.raises(CapacityError, match=r"context of 2048 tokens: its cache takes 4.2 MB .* but the limit is 3.0 MB"):
        Session.open(Choice(store=tmp_path / "5.sqlite", cache_bytes=3 * 10**6))

    assert len(texts) == 1
