"""What a session gives its tools: the documents, and the user's folder for what they keep."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from k2core.agent.session import Choice, session_tools
from k2core.interfaces import Tool
from k2core.plugins import Plugins


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
