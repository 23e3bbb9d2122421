"""Hypothesis strategies of the chat format's tests: assistant turns and whole conversations."""

import json
from collections.abc import Mapping

from attrs import evolve
from hypothesis import strategies as st

from k2core.messages import Message, ToolCall
from k2core_kimi.parser import TEXT_MARKERS

LOOKALIKES = [
    "<|im_end|>",
    "<|im_system|>",
    "<|im_assistant|>",
    "<think>",
    "</think>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "[EOS]",
    "<|reserved_token_300|>",
]
pieces = ["a", " ", "\n", "<", "|", ">", "<|", "<|tool", "</", "🙂", "é", "你", "{}", "functions.x:0"]
plain_text = (st.text(max_size=12) | st.lists(st.sampled_from(pieces), max_size=6).map("".join)).filter(
    lambda text: not any(marker in text for marker in TEXT_MARKERS)
)
any_text = st.lists(plain_text | st.sampled_from(LOOKALIKES), max_size=4).map("".join)
names = st.text("abXY_09.-", min_size=1, max_size=6).map("f{}".format)
bodies = st.lists(st.sampled_from([*pieces, *LOOKALIKES]), max_size=3).map("".join)  # cheap: a conversation has many


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def arguments(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON text of arguments, or what a model wrote in its place; never blank (that would be read as ``{}``)."""
    written = st.dictionaries(st.text(max_size=4), st.integers() | texts, max_size=2).map(_json)
    return written | texts.filter(lambda text: bool(text.strip()))


def turns(texts: st.SearchStrategy[str], *, first_index: int = 0) -> st.SearchStrategy[Message]:
    """Canonical assistant turns: reasoning is text, call ids are native and count up."""

    def build(reasoning: str, content: str, calls: list[tuple[str, str]]) -> Message:
        made = tuple(
            ToolCall(id=f"functions.{name}:{first_index + at}", name=name, arguments=text)
            for at, (name, text) in enumerate(calls)
        )
        return Message(role="assistant", reasoning=reasoning, content=content, tool_calls=made)

    return st.builds(build, texts, texts, st.lists(st.tuples(names, arguments(texts)), max_size=3))


CALLING_TURNS = turns(bodies).filter(lambda turn: bool(turn.tool_calls))
ROLES = st.sampled_from(["user", "user", "_input"])
STYLES = st.sampled_from(["native", "foreign", "same"])
OWN_IDS = st.none() | st.lists(st.integers(0, 200), max_size=5).map(tuple)
THOUGHTS = st.none() | bodies


@st.composite
def steps(draw: st.DrawFn) -> list[Message]:
    """One assistant message with calls, and the results of all of them or of the first."""
    turn = draw(CALLING_TURNS)
    style = draw(STYLES)
    calls = tuple(
        evolve(call, id={"native": call.id, "foreign": f"call_{at}", "same": "x"}[style])
        for at, call in enumerate(turn.tool_calls)
    )
    token_ids = draw(OWN_IDS)
    step = Message(role="assistant", reasoning=draw(THOUGHTS), content=turn.content, tool_calls=calls, token_ids=token_ids)
    order = draw(st.permutations(calls))[: draw(st.integers(0, len(calls)))]
    with_id = draw(st.booleans())
    results = [
        Message(
            role="tool",
            content=draw(bodies),
            tool_call_id=call.id if with_id else None,
            name=draw(st.sampled_from((None, call.name))),
        )
        for call in order
    ]
    return [step, *results]


STEPS = steps()


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Conversations with foreign or missing call ids, results in any order, several finished answers."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append(Message(role="system", content=draw(bodies)))
    for _ in range(draw(st.integers(0, 3))):
        messages.append(Message(role=draw(ROLES), content=draw(bodies)))
        for _ in range(draw(st.integers(0, 2))):
            messages += draw(STEPS)
        if draw(st.booleans()):
            messages.append(Message(role="assistant", content=draw(bodies), reasoning=draw(THOUGHTS)))
    return messages
