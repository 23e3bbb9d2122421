"""JSON in and out: shapes of the answers, and one friendly line for every wrong shape."""

import inspect
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kimi.vocabularies import small

from k2core.cli.wire import Wire
from k2core.errors import K2Error
from k2core.plugins import Plugins
from k2core_kimi import wire
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.tokenizer import KimiTokenizer

FORMAT = KimiChatFormat(small())
ids_of = small().encode


@pytest.mark.parametrize("verb", [name for name in vars(Wire) if not name.startswith("_")])
def test_the_module_is_what_the_interface_says(verb: str) -> None:
    """Every function of the seam is there, with the names and defaults that it documents."""
    documented, written = (inspect.signature(getattr(where, verb)).parameters.values() for where in (Wire, wire))

    assert [(one.name, one.default) for one in documented][1:] == [(one.name, one.default) for one in written]


def test_encode_and_decode() -> None:
    """Both ways, control tokens on and off."""
    end = small().control["<|im_end|>"]

    assert wire.encode(small(), "a<|im_end|>", True) == {"ids": [97, end], "count": 2}
    assert end not in wire.encode(small(), "a<|im_end|>")["ids"]
    assert wire.decode(small(), [97, end]) == {"text": "a<|im_end|>", "utf8": True}
    assert wire.decode(small(), {"ids": [97, end]}, False) == {"text": "a", "utf8": True}
    assert wire.decode(small(), [0xE4]) == {"text": "\ufffd", "utf8": False}


def test_render() -> None:
    """Messages and tools give text and ids; without `generate` no turn is opened."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    result = wire.render(FORMAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "tools": tools})

    assert result["text"].startswith('<|im_system|>tool_declare<|im_middle|>[{"function":{"name":"f"},"type":"function"}]')
    assert result["text"].endswith("<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|>")
    assert result["ids"] == ids_of(result["text"], control=True) and result["count"] == len(result["ids"])
    assert wire.render(FORMAT, {"messages": [], "generate": False})["text"].endswith("<|im_end|>")


TURN = [
    "<think>R</th",
    "ink>Hi<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call",
    '_argument_begin|>{"a"',
    ":1}<|tool_call_end|><|tool_calls_section_end|><|im_end|>",
]
CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_parse_text() -> None:
    """Chunks of text, cut inside markers, to the message and the deltas of each chunk."""
    result = wire.parse(FORMAT, {"chunks": TURN})
    started = {"index": 0, "id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": ""}}

    assert result == {
        "content": "Hi",
        "reasoning_content": "R",
        "tool_calls": [CALL],
        "finish_reason": "tool_calls",
        "deltas": [
            [{"reasoning_content": "R"}],
            [{"content": "Hi"}],
            [{"tool_calls": [started]}, {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}],
            [{"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}],
        ],
        "flushed": [],
    }
    assert json.loads(json.dumps(result)) == result


def test_parse_ids() -> None:
    """Lists of ids give the same message."""
    ids = ids_of("".join(TURN), control=True)
    result = wire.parse(FORMAT, {"chunks": [ids[:5], [], ids[5:]]})

    assert (result["content"], result["reasoning_content"], result["tool_calls"]) == ("Hi", "R", [CALL])
    assert len(result["deltas"]) == 3 and result["deltas"][1] == []


def test_a_bare_list_is_shorthand() -> None:
    """A list alone stands for the object with only messages, or only chunks."""
    messages = [{"role": "user", "content": "Hi"}]

    assert wire.render(FORMAT, messages) == wire.render(FORMAT, {"messages": messages})
    for chunks in (TURN, [ids_of("".join(TURN), control=True)]):
        assert wire.parse(FORMAT, chunks) == wire.parse(FORMAT, {"chunks": chunks})


def test_parse_options() -> None:
    """Further keys: the first call's number, declared tools, an opened think block; what is left comes flushed."""
    data = {"chunks": ["R</think><|tool_call_begin|>0<|tool_call_argument_begin|>"], "thinking": True}
    result = wire.parse(FORMAT, data | {"next_call_index": 4, "tools": [{"function": {"name": "f"}}]})

    assert result["reasoning_content"] == "R" and result["tool_calls"][0]["id"] == "functions.f:4"
    assert wire.parse(FORMAT, {"chunks": ["<think>a<"]})["flushed"] == [{"reasoning_content": "<"}]


BAD: list[tuple[str, Any, str]] = [
    ("render", "x", "expected an object with 'messages'"),
    ("render", [5], r"messages\[0\] is int"),
    ("parse", [5], r"chunks\[0\]"),
    ("render", {}, "no key 'messages'"),
    ("render", {"messages": {}}, "'messages' is dict, expected a list"),
    ("render", {"messages": [], "tool": []}, "Did you mean 'tools'"),
    ("render", {"messages": ["x"]}, r"messages\[0\] is str"),
    ("render", {"messages": [{"content": "x"}]}, r"messages\[0\] has no 'role'"),
    ("render", {"messages": [{"role": "user", "content": 5}]}, r"messages\[0\]\.content"),
    ("render", {"messages": [], "tools": {}}, "'tools' is dict, expected a list"),
    ("render", {"messages": [], "tools": ["x"]}, "tool 0"),
    ("render", {"messages": [], "generate": 1}, "expected true or false"),
    ("parse", "x", "expected an object with 'chunks'"),
    ("parse", {"chunks": "x"}, "'chunks' is str, expected a list"),
    ("parse", {"chunks": ["x", [1]]}, r"chunks\[1\] is list"),
    ("parse", {"chunks": [[1, "x"]]}, r"chunks\[0\]\[1\] is 'x'"),
    ("parse", {"chunks": [5]}, r"chunks\[0\]"),
    ("parse", {"chunks": [[10**9]]}, "outside the vocabulary"),
    ("parse", {"chunks": [], "next_call_index": -1}, "next_call_index"),
    ("parse", {"chunks": [], "tools": [{}]}, r"tools\[0\]"),
    ("encode", 5, "expected text"),
    ("decode", "x", "'ids' is str"),
    ("decode", [True], r"ids\[0\] is True"),
    ("decode", {"id": []}, "Did you mean 'ids'"),
]


def ask(what: str, data: Any) -> dict[str, Any]:
    """One of the four functions by name."""
    first = small() if what in ("encode", "decode") else FORMAT
    return dict(getattr(wire, what)(first, data))


@pytest.mark.parametrize(("what", "data", "says"), BAD)
def test_wrong_shapes(what: str, data: Any, says: str) -> None:
    """A wrong shape is one line that names the key or the place."""
    with pytest.raises(K2Error, match=says) as caught:
        ask(what, data)

    assert "\n" not in str(caught.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 700) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "tools", "chunks", "role", "content", "tool_calls", "function", "name", "ids"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["render", "parse", "encode", "decode"]), values)
def test_nothing_but_typed_errors(what: str, data: Any) -> None:
    """Whatever JSON comes in, an answer or a typed error goes out."""
    try:
        answer = ask(what, data)
    except K2Error as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert json.loads(json.dumps(answer)) is not None


def test_plugin_registers_both() -> None:
    """The plugin offers the tokenizer and the chat format, lazily, under the family's name."""
    import k2core_kimi

    plugins = Plugins()
    report = plugins.add(k2core_kimi, name="kimi")

    assert set(report.provides) == {("tokenizer", "kimi"), ("chat format", "kimi")}
    assert plugins.get("tokenizer", "kimi").load() == KimiTokenizer.open
    assert plugins.get("chat format", "kimi").load() is KimiChatFormat
