"""What a tool may return beside text, and what it may know about its call."""

import asyncio
import hashlib
import json

import pytest

from k2core import tool
from k2core.agent.blobs import Blobs
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.errors import JournalError
from k2core.events import ToolReturned
from k2core.interfaces import CallContext, Tool, ToolOutput, current_call
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry


def calling(name: str, index: int, /, **arguments: object) -> Message:
    """A turn with one call."""
    call = ToolCall(id=f"functions.{name}:{index}", name=name, arguments=json.dumps(arguments))
    return Message(role="assistant", content="", tool_calls=(call,))


def returned(tmp_path, one: Tool, *turns: Message) -> tuple[list[ToolReturned], Blobs]:
    """What the calls of *turns* to one tool returned, as the journal has it."""
    with Journal.open(tmp_path / "runs.sqlite") as journal:
        agent = Agent(model=ScriptedModel([*turns, "done"]), tools=Registry.of([one]), journal=journal)
        run = agent.run("Go.").run
        events = [stored.event for stored in journal.events(run)]
    return [event for event in events if isinstance(event, ToolReturned)], Blobs(tmp_path / "files")


def test_files_and_details_are_kept_beside_the_journal(tmp_path):
    """Content lies under its hash, the event names it, and the model sees the text alone."""

    @tool
    def draw(name: str) -> ToolOutput:
        """Draw."""
        return ToolOutput(text="drawn", files={name: b"\x89PNG", "copy": b"\x89PNG"}, details={"strokes": 3})

    (event,), blobs = returned(tmp_path, draw, calling("draw", 0, name="a.png"))
    assert (event.text, event.ok, dict(event.details)) == ("drawn", True, {"strokes": 3})
    assert [(one.name, one.size) for one in event.files] == [("a.png", 4), ("copy", 4)]
    assert {one.sha256 for one in event.files} == {hashlib.sha256(b"\x89PNG").hexdigest()}
    assert blobs.read(event.files[0].sha256) == b"\x89PNG"


def test_a_tool_may_say_that_it_failed_in_more_than_a_line(tmp_path):
    """An output that is not ok keeps its whole text and is no evidence."""

    @tool
    def fail() -> ToolOutput:
        """Fail."""
        return ToolOutput(text="error: no\nline two", ok=False)

    (event,), _ = returned(tmp_path, fail, calling("fail", 0))
    assert (event.text, event.ok) == ("error: no\nline two", False)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_call_knows_its_run_and_what_came_before(tmp_path, kind):
    """Sync and async tools see the run, their number, the time left and their own earlier calls, in order."""
    seen: list[CallContext] = []

    def look(word: str) -> ToolOutput:
        """Look."""
        seen.append(current_call())
        return ToolOutput(text=f"saw {word}", details={"word": word})

    async def look_later(word: str) -> ToolOutput:
        """Look."""
        await asyncio.sleep(0)
        return look(word)

    one = tool(look if kind == "sync" else look_later)
    events, _ = returned(tmp_path, one, *(calling(one.name, index, word=word) for index, word in enumerate("abc")))
    assert [event.text for event in events] == ["saw a", "saw b", "saw c"]
    assert {call.run for call in seen} != {""} and len({call.run for call in seen}) == 1
    assert [call.index for call in seen] == [0, 1, 2]
    assert all(0 < call.left_s <= one.timeout_s for call in seen)
    assert [(past.arguments, past.text, past.details) for past in seen[2].past] == [
        ({"word": "a"}, "saw a", {"word": "a"}),
        ({"word": "b"}, "saw b", {"word": "b"}),
    ]
    assert current_call().run == ""


def test_a_damaged_file_is_told(tmp_path):
    """A content that no longer has its hash, or is gone, is an error and never returned."""
    blobs = Blobs(tmp_path)
    digest = blobs.keep(b"content")
    blobs.path(digest).write_bytes(b"other")
    with pytest.raises(JournalError, match="another hash"):
        blobs.read(digest)
    blobs.path(digest).unlink()
    with pytest.raises(JournalError, match="cannot read"):
        blobs.read(digest)


def test_a_folder_that_cannot_be_written_loses_nothing(tmp_path):
    """Where a content cannot be kept, the error is one line and no part of it stays."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match="cannot keep a file of 7 bytes"):
        Blobs(tmp_path / "file").keep(b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
