"""What attacks print, shown to what reads it: the tool's text, and the prompt that it becomes a part of."""

import pytest
from kimi.vocabularies import small
from sandbox.corpus import CASES

from k2core.interfaces import ToolContext
from k2core.messages import Message, ToolCall
from k2core_kimi.chat_format import KimiChatFormat
from k2core_sandbox import tools
from k2core_sandbox.interpreters import printed
from k2core_sandbox.levels import level
from k2core_sandbox.process import Cell, Worker

PRINTS = [case for case in CASES.values() if 106 <= case.family <= 109]


def said(worker: Worker, family: int) -> Cell:
    """The cell of the family's first case."""
    return worker.run(next(case for case in PRINTS if case.family == family).code, timeout_s=10)


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


def test_a_model_has_no_way_to_ask_for_less(strong: None) -> None:
    """No tool has an argument about isolation, and a level that the operator did not name is refused."""
    taken = {name: set(getattr(tools, f"make_{name}").__code__.co_names) for name in ("python", "run_tests")}
    assert all("sandbox" not in names for names in taken.values())
    before = level()
    assert level() == before and before.name == "strong"
    assert ToolContext().sandbox == "strong"
