"""The control tokens that frame a conversation, as text, and the id that a call carries.

Source: chat_template.jinja of moonshotai/Kimi-K2-Thinking, revision 6126819; MoonshotAI/Kimi-K2 docs/tool_call_guidance.md.
"""

import re
from collections.abc import Sequence

END, MIDDLE = "<|im_end|>", "<|im_middle|>"
USER, ASSISTANT, SYSTEM = "<|im_user|>", "<|im_assistant|>", "<|im_system|>"
THINK, THINK_END = "<think>", "</think>"
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
EOS = "[EOS]"  # first configs of the family stopped at it

# What some models write in place of the section's markers; no vocabulary has them as a token.
SINGULAR_SECTION, SINGULAR_SECTION_END = "<|tool_call_section_begin|>", "<|tool_call_section_end|>"

TURN = (THINK, THINK_END, SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END, END)
FRAME = (MIDDLE, USER, ASSISTANT, SYSTEM)

_NATIVE = re.compile(r"functions\.(.+):([0-9]+)", re.DOTALL)
_PLAIN = re.compile(r"(.+):([0-9]+)", re.DOTALL)
_FUSED = re.compile(r"functions[_.:\-]?(.+?)[_.:\-]?[0-9]*", re.DOTALL)
_BLANK = re.compile(r"\s+")


def native_id(name: str, index: int) -> str:
    """The family's id of call number *index* of the conversation."""
    return f"functions.{name}:{index}"


def native_name(call_id: str) -> str | None:
    """The tool's name inside a native id; None for an id of another form."""
    match = _NATIVE.fullmatch(call_id)
    return match[1] if match else None


def resolve_call(written: str, index: int, tools: Sequence[str] = ()) -> tuple[str, str]:
    """(id, name) of a call from what the model wrote in the id's place.

    Whitespace, line breaks too, is dropped first. Then, in this order: a native id is kept as it is; ``NAME:IDX`` gets the
    missing prefix; a bare number means the only declared tool; a declared name with its separators lost
    (``functions_get_time_3``, ``functionsget_time3``) is found again; anything else is taken for the name itself with number
    *index*, so that the registry can tell the model which names exist.

    Args:
        written: the id as generated.
        index: number of this call in the conversation.
        tools: declared names, as far as the caller knows them.
    """
    text = _BLANK.sub("", written)
    if name := native_name(text):
        return text, name
    if match := _PLAIN.fullmatch(text):
        return f"functions.{text}", match[1]
    if text.isdigit() and len(tools) == 1:
        return native_id(tools[0], index), tools[0]
    if (match := _FUSED.fullmatch(text)) and match[1] in tools:
        return native_id(match[1], index), match[1]
    name = text.removeprefix("functions.")
    return native_id(name, index), name
