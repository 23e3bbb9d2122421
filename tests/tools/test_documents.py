"""Search finds passages with file and line and is never broken by a query or a file; read never leaves the folder."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from k2core.errors import InputError, ToolError
from k2core.interfaces import Tool, ToolContext
from k2core_specs import load
from k2core_tools.documents import DocumentIndex, make_read, make_search
from k2core_tools.folder import MAX_BYTES
from k2core_tools.passages import PASSAGE, cut

BRIDGES = """# Tal Bridge

Opened in 1873 by Mara Oduya.
It is 412 m long.

# Ruvo Bridge

Opened in 1901.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two documents."""
    inside = tmp_path / "docs"
    (inside / "more").mkdir(parents=True)
    (inside / "bridges.md").write_text(BRIDGES, encoding="utf-8")
    (inside / "more" / "são.txt").write_text("Crème brûlée costs 7 euros.\n", encoding="utf-8")
    return inside


OPENED = ExitStack()  # what `tools` opened


@pytest.fixture(autouse=True, scope="module")
def indexes_are_closed() -> Iterator[None]:
    """Close the indexes at the end."""
    yield
    OPENED.close()


def tools(folder: Path) -> tuple[Tool, Tool]:
    """Search and read over *folder*."""
    context = ToolContext(documents=folder, closing=OPENED)
    return make_search(context), make_read(context)


def test_search_gives_file_line_and_passage(folder: Path) -> None:
    """The frozen form: rank, file:line, passage; a heading stands with its paragraph."""
    search, _ = tools(folder)
    first = search.function(query="When was the Tal Bridge opened?").splitlines()[0]
    assert first == "[1] bridges.md:1 # Tal Bridge Opened in 1873 by Mara Oduya. It is 412 m long."
    assert search.function(query="creme brulee") == "[1] more/são.txt:1 Crème brûlée costs 7 euros."
    assert search.function(query="zeppelin") == "no results"
    assert search.function(query="") == "no results"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tool, Tool]:
    """Tools over a folder that many examples share."""
    inside = tmp_path_factory.mktemp("docs")
    (inside / "bridges.md").write_text(BRIDGES, encoding="utf-8")
    return tools(inside)


@given(query=st.text(max_size=80))
@example('"')
@example("NEAR(a b, 2) AND -x OR text: * ^")
@example("_ __ ___")
@example("\x00bridge")
@example("a" * 5000)
def test_no_query_breaks_the_search(shared: tuple[Tool, Tool], query: str) -> None:
    """Whatever the query, the result is passages or `no results`."""
    result = shared[0].function(query=query)
    assert result == "no results" or result.startswith("[1] bridges.md:")


@given(name=st.text(max_size=40), line=st.integers(-5, 20))
@example("../bridges.md", 1)
@example("/etc/passwd", 1)
@example("bridges.md/../../x", 1)
@example(".", 1)
@example("\x00", 1)
@example("a" * 5000, 1)
def test_no_name_breaks_or_escapes_read(shared: tuple[Tool, Tool], name: str, line: int) -> None:
    """Whatever file is asked for, read gives lines of the one document or a typed error."""
    try:
        assert "of 8]" in shared[1].function(file=name, line=line)
    except ToolError as error:
        assert str(error)


@given(text=st.text(alphabet=st.sampled_from("ab .#\n;é"), max_size=1500))
def test_passages_hold_every_word_once_and_stay_short(text: str) -> None:
    """Cutting loses and doubles no word, keeps the order, and points at the line where the passage starts."""
    passages = cut(text)
    assert " ".join(one.text for one in passages).replace(" ", "") == "".join(text.split())
    lines = text.split("\n")
    for one in passages:
        assert len(one.text) <= PASSAGE + 20
        assert one.text.split()[0] in " ".join(lines[one.line - 1].split()) or len(lines[one.line - 1]) > PASSAGE


def test_only_changed_files_are_read_again_and_removed_ones_vanish(folder: Path, tmp_path: Path) -> None:
    """A changed file is found by its new words, a removed one no more; a second index on the same data sees both."""
    data = tmp_path / "data"
    index = DocumentIndex(folder, data)
    assert index.search("Tal")
    (folder / "bridges.md").write_text("The ferry is new and runs daily.\n", encoding="utf-8")
    assert [row[:2] for row in index.search("ferry")] == [("bridges.md", 1)]
    assert not index.search("Tal")
    (folder / "bridges.md").unlink()
    assert not index.search("ferry")
    index.close()
    again = DocumentIndex(folder, data)
    assert again.names() == ["more/são.txt"]
    again.close()


def test_a_damaged_or_unwritable_index_is_replaced_by_one_in_memory(folder: Path, tmp_path: Path) -> None:
    """The index is only a cache: when its file is damaged, search works all the same and says so once."""
    data = tmp_path / "data"
    index = DocumentIndex(folder, data)
    index.search("Tal")
    index.close()
    next(data.glob("documents-*.sqlite")).write_bytes(b"no database at all" * 200)
    with closing(DocumentIndex(folder, data)) as again, capture_logs() as logs:
        assert again.search("Tal")
    assert [entry["event"] for entry in logs] == ["documents.index_in_memory"]
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with closing(DocumentIndex(folder, blocked / "data")) as homeless, capture_logs():
        assert homeless.search("Tal")


def test_files_that_cannot_be_read_are_skipped_and_reported_in_one_line(folder: Path, tmp_path: Path) -> None:
    """Not UTF-8, too large, a link out of the folder, a FIFO: skipped with the reason; the others are found."""
    (folder / "latin.txt").write_bytes("caf\xe9 Tal".encode("latin-1"))
    (folder / "large.txt").write_bytes(b"Tal " * (MAX_BYTES // 4 + 1))
    (tmp_path / "secret.txt").write_text("Tal secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "dangling.txt").symlink_to(folder / "nowhere.txt")
    (folder / "outside").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    with closing(DocumentIndex(folder)) as index, capture_logs() as logs:
        found = index.search("Tal secret")
        index.search("Tal")
    assert {row[0] for row in found} == {"bridges.md"}
    assert index.skipped == {
        "dangling.txt": "No such file or directory",
        "large.txt": "larger than 4 MB",
        "latin.txt": "not UTF-8 at byte 4",
        "link.txt": "a link that leaves the folder",
        "pipe.txt": "not a file",
    }
    assert [entry["event"] for entry in logs] == ["documents.skipped"]
    told = (
        "not searched: dangling.txt (No such file or directory), large.txt (larger than 4 MB), latin.txt (not UTF-8 at byte 4)"
    )
    assert logs[0]["line"] == f"{told} and 2 more"
    with capture_logs():
        result = tools(folder)[0].function(query="Tal")
    assert result.splitlines()[0].startswith("[1] bridges.md:") and result.splitlines()[-1] == f"({told} and 2 more)"


def test_read_names_only_what_it_can_read(folder: Path) -> None:
    """A misspelt name is told the nearest documents that can be read, however alike others are."""
    (folder / "notes1.txt").write_bytes(b"caf\xe9")
    (folder / "notes2.txt").write_text("Readable.\n")
    with pytest.raises(ToolError) as caught:
        tools(folder)[1].function(file="notes.txt", line=1)

    assert "Nearest: notes2.txt" in str(caught.value) and "notes1.txt" not in str(caught.value)


def test_read_shows_lines_and_where_they_end(folder: Path) -> None:
    """Read gives the text from the line on and says which lines of how many."""
    _, read = tools(folder)
    assert read.function(file="bridges.md", line=6) == "# Ruvo Bridge\n\nOpened in 1901.\n[lines 6-8 of 8]"
    (folder / "long.txt").write_text("\n".join(f"line {n}" for n in range(1, 101)))
    assert read.function(file="long.txt", line=2).endswith("line 41\n[lines 2-41 of 100]")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("../secret.txt", 1, "'../secret.txt' is outside the documents folder"),
        ("link.txt", 1, "'link.txt' is outside the documents folder"),
        ("outside/secret.txt", 1, "'outside/secret.txt' is outside the documents folder"),
        ("bridge.md", 1, "no document 'bridge.md'. Nearest: bridges.md"),
        ("bridges.md", 0, "'bridges.md' has lines 1 to 8, not 0"),
        ("bridges.md", 9, "'bridges.md' has lines 1 to 8, not 9"),
        ("more", 1, "cannot read 'more': Is a directory"),
        (".", 1, "cannot read '.': it is a folder"),
    ],
)
def test_read_refuses(folder: Path, tmp_path: Path, file: str, line: int, message: str) -> None:
    """Anything outside the folder, by .. or by a link, and anything that is no line of a document, is refused."""
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "outside").symlink_to(tmp_path)
    with pytest.raises(ToolError) as caught:
        tools(folder)[1].function(file=file, line=line)
    assert str(caught.value).startswith(message)


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    """A folder that does not exist is refused when the tool is made; one that vanishes is an observation."""
    with pytest.raises(InputError, match="does not exist; give one with --docs FOLDER"):
        make_search(ToolContext(documents=tmp_path / "nowhere"))
    gone = tmp_path / "gone"
    gone.mkdir()
    search, _ = tools(gone)
    gone.rmdir()
    with pytest.raises(ToolError, match="does not exist"):
        search.function(query="x")


def test_declarations_are_what_the_embedded_model_was_trained_on(folder: Path) -> None:
    """Search and read are declared byte for byte as in the episode format."""
    declared = load("formats/nano_episode.toml")["tools"]
    for one in tools(folder):
        assert json.dumps(one.declaration(), sort_keys=True, separators=(",", ":"), ensure_ascii=False) == declared[one.name]
        assert one.effect == "read"
