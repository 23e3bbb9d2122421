"""The grammar of one turn of the family: what it lets through and what it refuses."""

import numpy as np
import pytest
from engine.arguments import canonical
from engine.walks import Walker, corpus, corpus_of, count_of, faults
from kimi.vocabularies import small

from k2core.engine.grammar import Masks
from k2core.engine.offer import MOST_CALLS
from k2core.errors import InputError
from k2core.language import GenerateOptions
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_nano import WEIGHTS

FORMAT = KimiChatFormat(small())
MASKS = Masks(small(), FORMAT.stop_ids)
NAMES = ("note", "note_down", "nö:1", 'q"\\\x7f🙂')
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        },
    }
    for name in NAMES
]
BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|><|im_end|>"


def call(name, index, arguments='{"text":"é"}'):
    """One call of a tool as text."""
    return f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def refused_at(text, *, next_call_index=0, tools=TOOLS, chat_format=FORMAT, masks=MASKS, **options):
    """What the mask refuses of a turn's text, from there to its end; None where it takes all and the turn is whole."""
    chosen = GenerateOptions(**options)
    constraint = masks.start(
        chat_format.grammar(tools, chosen, next_call_index=next_call_index),
        forbidden=chosen.forbidden_calls,
        schemas={tool["function"]["name"]: tool["function"]["parameters"] for tool in tools},
    )
    parser = chat_format.parser()
    ids = chat_format.tokenizer.encode(text, control=True)
    for place, one in enumerate(ids):
        allowed = constraint.allows(one)
        assert constraint.mask()[one] == allowed
        if not allowed:
            return chat_format.tokenizer.decode(ids[place:])
        constraint.accept(one, parser.feed((one,)))
    return None if constraint.done else ""


@pytest.fixture(scope="module")
def nano():
    """A walker over the embedded model's vocabulary."""
    return Walker(KimiChatFormat(KimiTokenizer.open(WEIGHTS)), most=600)


SIZES = [300, pytest.param(10_000, marks=pytest.mark.soak)]


@pytest.mark.parametrize("count", SIZES)
def test_random_turns_of_the_small_vocabulary_are_valid(count):
    """Whatever random logits draw through the masks parses to declared, rightly numbered calls with valid arguments."""
    whole, made, found = count_of(Walker(FORMAT), np.random.default_rng(11), count)

    assert found == []
    assert whole >= 0.9 * count
    assert made >= 0.5 * count


@pytest.mark.parametrize("count", SIZES)
def test_random_turns_of_the_embedded_vocabulary_are_valid(count, nano):
    """The same over the embedded model's tokens, which span several characters and end of one, beginning of the next."""
    whole, made, found = count_of(nano, np.random.default_rng(12), count)

    assert found == []
    assert whole >= 0.9 * count
    assert made >= 0.5 * count


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=pytest.mark.soak)])
def test_random_turns_of_the_real_vocabulary_are_valid(count, assets):
    """The same over the family's own 163,840 tokens."""
    walker = Walker(KimiChatFormat(KimiTokenizer.open(assets / "kimi")), most=300)

    whole, made, found = count_of(walker, np.random.default_rng(13), count)

    assert found == []
    assert whole >= 0.5 * count
    assert made > 0


def test_what_is_allowed_is_what_the_mask_says():
    """Asked for one token or for all of them, the answer is the same, at every position of a turn."""
    rng, tools = np.random.default_rng(1), corpus_of("answer", "get_weather")
    constraint = MASKS.start(FORMAT.grammar(tools, GenerateOptions(tool_choice="required")))
    for _ in range(60):
        each = [constraint.allows(token) for token in range(FORMAT.tokenizer.vocab_size)]
        mask = constraint.mask()
        assert mask.tolist() == each
        constraint.accept(int(rng.choice(np.flatnonzero(mask))))
        if constraint.done:
            break


ARGUMENTS = {
    "calculator": {"expression": "23 * 47"},
    "answer": {"claims": [{"evidence": [0, 1], "text": "23 * 47 = 1081"}], "text": "1081"},
    "note": {"text": "so far: 2 of 3"},
    "units": {"to": "mi", "unit": "km", "value": "10"},
    "write_file": {"path": "a.py", "text": "print('hi')\n\tx = \"y\"\n"},
    "read_file": {"path": "a.py"},
    "search": {"query": "tides at Brest"},
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("reasoning", ["", "I need a tool."])
def test_calls_as_the_embedded_model_writes_them_pass(name, reasoning, nano):
    """One call, compact with sorted keys, with or without thinking: what the embedded model was trained on."""
    text = f"<think>{reasoning}</think>{BEGIN}" + call(name, 3, canonical(ARGUMENTS[name])) + END
    options = {"tools": corpus(), "chat_format": nano.format, "masks": nano.masks, "next_call_index": 3}

    assert refused_at(text, **options) is None
    assert refused_at(f"<think>{reasoning}</think>23 * 47 is 1081.<|im_end|>", **options) is None


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


@pytest.mark.parametrize("place", ["<think>{}</think>x<|im_end|>", "<think></think>{}x<|im_end|>"])
def test_other_control_tokens_are_never_text(place):
    """No control token of the vocabulary but the frame's own occurs in thinking or content, nor a byte that is no UTF-8."""
    before = FORMAT.tokenizer.encode(place.partition("{")[0], control=True)
    constraint = MASKS.start(FORMAT.grammar((), GenerateOptions()))
    for one in before:
        constraint.accept(one)

    allowed = {FORMAT.tokenizer.decode_bytes((int(token),)) for token in np.flatnonzero(constraint.mask())}

    assert allowed & {text.encode() for text in FORMAT.tokenizer.control} == ({b"</think>"} if "<think>{" in place else set())
    assert b"\xff" not in allowed
    assert b"\x80" not in allowed
    assert {b"a", b"\xc3", b"\n"} <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_called(name):
    """Quotes, backslashes, colons, control characters: a call's id holds the declared name and nothing else."""
    text = f"<think></think>{BEGIN}{call(name, 12)}{END}"

    assert refused_at(text, next_call_index=12) is None
    assert refused_at(text, next_call_index=12, tool_choice=name) is None
    assert refused_at(text, next_call_index=12, forbidden_tools=(name,)) is not None
    assert refused_at(text, next_call_index=2) is not None


def test_names_that_an_id_cannot_hold_are_refused():
    """A name with whitespace is lost in a call's id, so it is not offered in silence."""
    tools = [{"type": "function", "function": {"name": "a b", "parameters": {}}}]

    with pytest.raises(InputError, match="cannot offer the tool 'a b': whitespace in a name is lost"):
        FORMAT.grammar(tools, GenerateOptions())


def test_forced_and_forbidden_calls():
    """One tool's call alone, no call, some call; forbidden arguments are refused where they part from others."""
    section = f"<think></think>{BEGIN}{call('note', 0)}{END}"

    assert refused_at(section, tool_choice="note") is None
    assert refused_at(section, tool_choice="none") == section.removeprefix("<think></think>")
    assert refused_at("<think></think>x<|im_end|>", tool_choice="required") == "<|im_end|>"
    assert refused_at(section, tool_choice="note_down").startswith(":0<|tool_call_argument_begin|>")
    two = f"<think></think>{BEGIN}{call('note', 0)}{call('note', 1)}{END}"
    assert refused_at(two, tool_choice="note") == call("note", 1) + END
    forbidden = (("note", '{"text": "\\u00e9"}'),)
    assert refused_at(section, forbidden_calls=forbidden) == '"}' + section.partition('"}')[2]
    assert refused_at(section.replace("é", "éa"), forbidden_calls=forbidden) is None
    assert refused_at(section.replace("note:", "note_down:"), forbidden_calls=forbidden) is None


def test_calls_of_one_turn_are_limited():
    """Behind the last call that a turn may hold, only its end is left."""
    calls = "".join(call("note", 5 + index) for index in range(MOST_CALLS))

    assert refused_at(f"<think></think>{BEGIN}{calls}{END}", next_call_index=5) is None
    more = call("note", 5 + MOST_CALLS) + END
    assert refused_at(f"<think></think>{BEGIN}{calls}{more}", next_call_index=5) == more


def test_a_response_of_a_schema():
    """With a schema for the response, a turn is JSON of it or calls, with no text beside."""
    schema = {"type": "array", "items": {"type": "integer"}}

    assert refused_at("<think>R</think>[1,2]<|im_end|>", response_schema=schema) is None
    assert refused_at(f"<think>R</think>{BEGIN}{call('note', 0)}{END}", response_schema=schema) is None
    assert refused_at("<think></think>[1, 2]<|im_end|>", response_schema=schema) == " 2]<|im_end|>"
    assert refused_at(f"<think></think>[1]{BEGIN}", response_schema=schema) == BEGIN
    assert refused_at("<think></think>one<|im_end|>", response_schema=schema) == "one<|im_end|>"


def test_forbidden_calls_over_long_tokens(nano):
    """Tokens that reach over the end of a forbidden text are refused like the byte that ends it."""
    rng, tools = np.random.default_rng(3), corpus_of("choices", "nullable", "only_one")
    made = set()
    for _ in range(60):
        walk = nano.walk(tools, GenerateOptions(forbidden_calls=tuple(made), tool_choice="auto"), rng)
        if walk.is_whole:
            assert faults(walk, tools) == []
            assert made.isdisjoint((one.name, one.arguments) for one in walk.message.tool_calls)
            made |= {(one.name, one.arguments) for one in walk.message.tool_calls}
    assert len(made) > 20


def test_a_forced_tool_must_be_declared():
    """A choice that names no declared tool is one clear line."""
    with pytest.raises(InputError, match=r"cannot force a call of 'nota': it is not declared.*Did you mean 'note'"):
        FORMAT.grammar(TOOLS, GenerateOptions(tool_choice="nota"))
