"""The grammar of one turn of the family: what it lets through and what it refuses."""

import pytest
from kimi.vocabularies import small

from k2core.engine.grammar import Masks
from k2core.errors import InputError
from k2core.language import GenerateOptions
from k2core_kimi.chat_format import KimiChatFormat

FORMAT = KimiChatFormat(small())
MASKS = Masks(small())
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        },
    }
    for name in ("note", "note_down", "nö:1")
]
BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|><|im_end|>"


def call(name, index):
    """One call of a tool as text."""
    return f'<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{{"text":"é"}}<|tool_call_end|>'


def refused_at(text, *, next_call_index=0, tools=TOOLS, **options):
    """What the mask refuses of a turn's text, from there to its end; None where it takes all and the turn is whole."""
    constraint = MASKS.start(FORMAT.grammar(tools, GenerateOptions(**options), next_call_index=next_call_index))
    ids = FORMAT.tokenizer.encode(text, control=True)
    for place, one in enumerate(ids):
        allowed = constraint.allows(one)
        assert constraint.mask()[one] == allowed
        if not allowed:
            return FORMAT.tokenizer.decode(ids[place:])
        constraint.accept(one)
    return None if constraint.done else ""


@pytest.mark.parametrize(
    "text",
    [
        "<think></think>Brest 4.1 m.<|im_end|>",
        "<think>Hm.\n\nOh: é 你 🙂</think>\n Brest<|im_end|>",
        f"<think></think>{BEGIN}{call('note', 0)}{END}",
        f"<think>R</think>Let me see.{BEGIN}{call('note_down', 0)}{call('note', 1)}{END}",
        f"<think>R</think> {BEGIN}{call('nö:1', 0)}{END}",
    ],
)
def test_turns_of_the_family_pass(text):
    """Answers and calls, with and without thinking and text before a call, are let through to the end."""
    assert refused_at(text) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think></think><|im_end|>", "<|im_end|>"),
        ("<think>R</think>\n \t<|im_end|>", "<|im_end|>"),
        ("<think>a<think>b</think>x<|im_end|>", "<think>b</think>x<|im_end|>"),
        ("<think>a<|im_end|>", "<|im_end|>"),
        ("x<|im_end|>", "x<|im_end|>"),
        (f"<think></think>{BEGIN}{END}", END),
        (f"<think></think>{BEGIN}{call('note', 0)}<|im_end|>", "<|im_end|>"),
        (f"<think></think>{BEGIN}{call('note', 0)}{END[:-10]}x", "x"),
    ],
)
def test_a_malformed_turn_cannot_be_written(text, rest):
    """Empty answers, markers inside thinking, empty or open sections are refused at the first wrong token."""
    assert refused_at(text) == rest


def test_a_forced_tool_must_be_declared():
    """A choice that names no declared tool is one clear line."""
    with pytest.raises(InputError, match=r"cannot force a call of 'nota': it is not declared.*Did you mean 'note'"):
        FORMAT.grammar(TOOLS, GenerateOptions(tool_choice="nota"))
