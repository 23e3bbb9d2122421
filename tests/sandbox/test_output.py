"""What attacks print, shown to what reads it: the tool's text, and the prompt that it becomes a part of."""

from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kimi.vocabularies import small
from sandbox.corpus import CASES

from k2core.errors import InputError
from k2core.interfaces import ToolContext
from k2core.messages import Message, ToolCall
from k2core_kimi.chat_format import KimiChatFormat
from k2core_sandbox import tools
from k2core_sandbox.interpreters import printed
from k2core_sandbox.levels import level
from k2core_sandbox.process import Cell, Reply, Worker
from k2core_sandbox.worker import reply

PRINTS = [case for case in CASES.values() if 106 <= case.family <= 109]


def said(worker: Worker, family: int) -> Cell:
    """The cell of the family's first case."""
    return worker.run(next(case for case in PRINTS if case.family == family).code, timeout_s=10)


@given(value=st.text() | st.none(), error=st.text() | st.none())
@example(value='"\\\x00\x1f\x7f\u2028 é 😀', error=None)
def test_a_reply_is_json_of_any_text(value: str | None, error: str | None) -> None:
    """What the worker writes by hand is read back as it was."""
    read = msgspec.json.decode(reply(3, "ok", value, error), type=Reply)
    assert (read.cell, read.status, read.value, read.error) == (3, "ok", value, error)


def test_code_and_values_of_any_text_go_there_and_back(worker: Worker) -> None:
    """Letters beyond ASCII and lone surrogates neither end the worker nor count as forged."""
    assert worker.run("'é😀' + chr(0)", timeout_s=10).value == "'é😀\\x00'"
    lone = worker.run("class Odd:\n    def __repr__(self): return '\\ud800'\nOdd()", timeout_s=10)
    assert (lone.status, lone.value) == ("ok", "?")
    assert worker.run("print('still here')", timeout_s=10).output == "still here\n"


def test_a_function_of_an_earlier_cell_shows_its_source(worker: Worker) -> None:
    """`inspect` finds the lines of cells that ran before it was imported."""
    worker.run("def half(n):\n    return n / 2", timeout_s=10)
    worker.run("import inspect", timeout_s=10)
    assert worker.run("print(inspect.getsource(half))", timeout_s=10).output == "def half(n):\n    return n / 2\n\n"


def test_no_terminal_sequence_reaches_a_terminal(worker: Worker) -> None:
    """Of sequences nothing but text and newlines is left, and a carriage return hides nothing."""
    text = printed(said(worker, 106))
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []
    assert "all is well\nrefused" in text


@pytest.mark.parametrize("family", [107, 108, 109])
def test_printed_text_stays_in_its_tool_result(worker: Worker, family: int) -> None:
    """What a cell prints is the text of one tool message: the prompt has the same control tokens as with any other text."""
    chat_format = KimiChatFormat(small())

    def control_tokens(text: str) -> list[int]:
        messages = [
            Message(role="user", content="go"),
            Message(role="assistant", tool_calls=(ToolCall(id="functions.python:0", name="python", arguments="{}"),)),
            Message(role="tool", name="python", tool_call_id="functions.python:0", content=text),
        ]
        tokens = chat_format.render(messages)
        lowest = chat_format.tokenizer.encode("<|im_end|>", control=True)[0] - 2
        return [token for token in tokens if token >= lowest]

    text = printed(said(worker, family))
    assert len(text) > 10
    assert control_tokens(text) == control_tokens("plain")


ARGUMENTS = {
    "python": {"code"},
    "run_tests": {"path"},
    "write_file": {"path", "content"},
    "read_file": {"path", "line"},
    "list_files": set(),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_model_has_no_way_to_ask_for_less(strong: None, tmp_path: Path, name: str) -> None:
    """The tools take the arguments of their work and no others; the level is strong unless the operator says otherwise."""
    with ExitStack() as closing:
        tool = getattr(tools, f"make_{name}")(ToolContext(workspace=tmp_path / "workspace", closing=closing))
    assert set(tool.parameters["properties"]) == ARGUMENTS[name]
    assert tool.parameters["additionalProperties"] is False
    assert ToolContext().sandbox == "strong"


def test_a_kept_level_of_another_name_is_not_believed(strong: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the cache cannot turn 'strong' into something else, and only what held is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = level()
    (kept,) = (tmp_path / "k2core").glob("sandbox-strong-*.json")
    kept.write_text('{"name": "reduced", "why": "because", "checks": {}}')
    assert level() == before
    kept.write_text("{")
    assert level() == before


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "XDG_DATA_HOME"])
def test_a_workspace_does_not_hold_our_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Code in the sandbox could change the kept level, compiled modules or the journal there."""
    monkeypatch.setenv(variable, str(tmp_path / "home" / "share"))
    (tmp_path / "home").mkdir()
    with pytest.raises(InputError, match="k2core's own folder"):
        tools._prepared(tmp_path / "home")
