"""Parsing: what was rendered comes back under every chunking, and every known malformation has its decided outcome."""

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kimi.conversations import any_text, plain_text, turns
from kimi.vocabularies import small

from k2core.messages import ArgumentsDelta, CallStarted, ContentDelta, Delta, Message, ReasoningDelta, message_from_json
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.markers import resolve_call

FORMAT = KimiChatFormat(small())
CONTROL = small().control
THINK, OPEN_SECTION, CLOSE_SECTION = "<think>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_end|>"


def rebuilt(deltas: Sequence[Delta]) -> Message:
    """The message that a reader of the stream would put together; `reasoning` is '' where none came."""
    reasoning, content, calls = "", "", list[list[str]]()
    for delta in deltas:
        match delta:
            case ReasoningDelta(text=text):
                reasoning += text
            case ContentDelta(text=text):
                content += text
            case CallStarted(index=index, id=call_id, name=name):
                assert index == len(calls), "calls start in order"
                calls.append([call_id, name, ""])
            case ArgumentsDelta(index=index, text=text):
                assert index == len(calls) - 1, "only the last call grows"
                calls[index][2] += text
    return message(content, reasoning, *[tuple(call) for call in calls])  # type: ignore[arg-type]


def message(content: str, reasoning: str | None, *calls: tuple[str, str, str]) -> Message:
    """An assistant's message from (id, name, arguments) of its calls."""
    made = [{"id": one, "function": {"name": name, "arguments": text}} for one, name, text in calls]
    return message_from_json({"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": made})


def chunks(items: Sequence[int] | str, seed: int) -> list[Sequence[int] | str]:
    """The items cut at random places, empty pieces included."""
    draw = random.Random(seed)
    cuts = sorted(draw.randrange(len(items) + 1) for _ in range(draw.randrange(len(items) + 2)))
    return [items[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(items)], strict=True)]


def run(parser: object, pieces: Sequence[Sequence[int] | str]) -> tuple[Message, Message]:
    """(the message of finish, the message rebuilt from the deltas)."""
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.feed(piece)  # type: ignore[attr-defined]
    rest, whole = parser.finish()  # type: ignore[attr-defined]
    return whole, rebuilt([*deltas, *rest])


@given(turns(any_text, first_index=3), st.integers())
def test_ids_round_trip(turn: Message, seed: int) -> None:
    """A rendered turn parses to itself under any chunking of its ids, marker texts in its parts included."""
    ids = FORMAT.render_turn(turn)
    parser = FORMAT.parser(next_call_index=3)
    whole, streamed = run(parser, chunks(ids, seed))

    assert whole == turn and streamed == turn
    assert parser.done and whole.token_ids == tuple(ids)
    assert parser.finish_reason == ("tool_calls" if turn.tool_calls else "stop")
    assert FORMAT.render_turn(whole) == ids


@given(turns(plain_text), st.integers())
def test_text_round_trip(turn: Message, seed: int) -> None:
    """The same by text, cut anywhere, as long as its parts hold no marker."""
    text = small().decode(FORMAT.render_turn(turn))
    parser = FORMAT.text_parser()
    whole, streamed = run(parser, chunks(text, seed))

    assert whole == turn and streamed == turn and parser.done


@given(st.lists(st.integers(0, small().vocab_size - 1) | st.sampled_from(sorted(CONTROL.values())[:24])), st.integers())
def test_any_ids(ids: list[int], seed: int) -> None:
    """Arbitrary ids parse without an error, and the chunking changes nothing."""
    whole, streamed = run(FORMAT.parser(), chunks(ids, seed))
    at_once, _ = run(FORMAT.parser(), [ids])

    assert whole == at_once
    assert (streamed.content, streamed.reasoning, streamed.tool_calls) == (
        whole.content,
        whole.reasoning or "",
        whole.tool_calls,
    )


@given(
    st.lists(any_text | st.sampled_from([CALL, ARGUMENTS, CALL_END, OPEN_SECTION, CLOSE_SECTION])).map("".join), st.integers()
)
def test_any_text(text: str, seed: int) -> None:
    """Arbitrary text with markers parses without an error, and the chunking changes nothing."""
    whole, streamed = run(FORMAT.text_parser(), chunks(text, seed))
    at_once, _ = run(FORMAT.text_parser(), [text])

    assert whole == at_once
    assert (streamed.content, streamed.reasoning, streamed.tool_calls) == (
        whole.content,
        whole.reasoning or "",
        whole.tool_calls,
    )


def section(*calls: tuple[str, str]) -> str:
    """A tool section from (id, arguments)."""
    inside = "".join(f"{CALL}{one}{ARGUMENTS}{text}{CALL_END}" for one, text in calls)
    return f"{OPEN_SECTION}{inside}{CLOSE_SECTION}"


X0 = ("functions.x:0", "x", "{}")
BIG = '{"text":"' + "z" * 20_000 + '"}'
# name: (turn as text with its markers, expected message, finish reason)
CASES: dict[str, tuple[str, Message, str]] = {
    "plain": ("<think>R</think>Hi<|im_end|>", message("Hi", "R"), "stop"),
    "no think at all": ("Hi<|im_end|>", message("Hi", None), "stop"),
    "blanks before think": (" \n<think>R</think>Hi<|im_end|>", message("Hi", "R"), "stop"),
    "empty think": ("<think></think>Hi<|im_end|>", message("Hi", ""), "stop"),
    "second think block": ("<think>A</think>x<think>B</think>y<|im_end|>", message("xy", "AB"), "stop"),
    "think inside think": ("<think>A<think>B</think>y<|im_end|>", message("y", "AB"), "stop"),
    "close without open": ("A</think>y<|im_end|>", message("Ay", None), "stop"),
    "end right after think": ("<think>R</think><|im_end|>", message("", "R"), "stop"),
    "end inside think": ("<think>R<|im_end|>", message("", "R"), "stop"),
    "no close before the section": (f"<think>R{section(X0[::2])}{END}", message("", "R", X0), "tool_calls"),
    "calls inside think": (f"<think>R{section(X0[::2])}</think>late{END}", message("", "R", X0), "tool_calls"),
    "content before the section": (f"<think>R</think>Look.{section(X0[::2])}{END}", message("Look.", "R", X0), "tool_calls"),
    "text after the section": (f"<think>R</think>{section(X0[::2])} bye{END}", message("", "R", X0), "tool_calls"),
    "text between calls": (
        f"<think></think>{OPEN_SECTION}hm{CALL}functions.x:0{ARGUMENTS}{{}}{CALL_END}and{CALL}functions.y:1{ARGUMENTS}[]{CALL_END}{END}",
        message("", "", X0, ("functions.y:1", "y", "[]")),
        "tool_calls",
    ),
    "several calls": (
        section(("functions.x:0", "{}"), ("functions.x:1", '{"a":1}'), ("functions.y:2", "{}")) + END,
        message("", None, X0, ("functions.x:1", "x", '{"a":1}'), ("functions.y:2", "y", "{}")),
        "tool_calls",
    ),
    "two sections": (
        section(X0[::2]) + section(("functions.y:1", "{}")) + END,
        message("", None, X0, ("functions.y:1", "y", "{}")),
        "tool_calls",
    ),
    "empty arguments": (section(("functions.x:0", "")) + END, message("", None, X0), "tool_calls"),
    "blank arguments": (section(("functions.x:0", " \n")) + END, message("", None, X0), "tool_calls"),
    "no arguments": (f"{OPEN_SECTION}{CALL}functions.x:0{CALL_END}{CLOSE_SECTION}{END}", message("", None, X0), "tool_calls"),
    "no call end": (
        f"{OPEN_SECTION}{CALL}functions.x:0{ARGUMENTS}{{}}{CLOSE_SECTION}{END}",
        message("", None, X0),
        "tool_calls",
    ),
    "no section end": (f"{OPEN_SECTION}{CALL}functions.x:0{ARGUMENTS}{{}}{CALL_END}{END}", message("", None, X0), "tool_calls"),
    "next call without an end": (
        f"{OPEN_SECTION}{CALL}functions.x:0{ARGUMENTS}{{}}{CALL}functions.y:1{ARGUMENTS}{{}}{CALL_END}{END}",
        message("", None, X0, ("functions.y:1", "y", "{}")),
        "tool_calls",
    ),
    "call without a section": (
        f"<think>R</think>{CALL}functions.x:0{ARGUMENTS}{{}}{CALL_END}{END}",
        message("", "R", X0),
        "tool_calls",
    ),
    "no call begin": (f"{OPEN_SECTION}functions.x:0{ARGUMENTS}{{}}{CALL_END}{END}", message("", None, X0), "tool_calls"),
    "empty section": (f"<think>R</think>Hi{OPEN_SECTION}{CLOSE_SECTION}{END}", message("Hi", "R"), "stop"),
    "blank call": (f"{OPEN_SECTION}{CALL}{CALL_END}{CLOSE_SECTION}{END}", message("", None), "stop"),
    "bare number": (section(("0", "{}")) + END, message("", None, ("functions.0:0", "0", "{}")), "tool_calls"),
    "missing prefix": (section(("x:7", "{}")) + END, message("", None, ("functions.x:7", "x", "{}")), "tool_calls"),
    "newline in the id": (section((" functions.x\n:0\n", "{}")) + END, message("", None, X0), "tool_calls"),
    "dotted name": (
        section(("functions.a.b.c:4", "{}")) + END,
        message("", None, ("functions.a.b.c:4", "a.b.c", "{}")),
        "tool_calls",
    ),
    "hyphenated name": (
        section(("functions.a-b:4", "{}")) + END,
        message("", None, ("functions.a-b:4", "a-b", "{}")),
        "tool_calls",
    ),
    "no number": (
        section(("functions.invalid.0", "{}")) + END,
        message("", None, ("functions.invalid.0:0", "invalid.0", "{}")),
        "tool_calls",
    ),
    "multi-line arguments": (
        section(("functions.x:0", '{\n  "a": "b\\n"\n}')) + END,
        message("", None, ("functions.x:0", "x", '{\n  "a": "b\\n"\n}')),
        "tool_calls",
    ),
    "angle brackets in JSON": (
        section(("functions.x:0", '{"a":"1 < 2 > <b> <| </"}')) + END,
        message("", None, ("functions.x:0", "x", '{"a":"1 < 2 > <b> <| </"}')),
        "tool_calls",
    ),
    "think tags in arguments": (
        section(("functions.x:0", '{"a":"<think>b</think>"}')) + END,
        message("", None, ("functions.x:0", "x", '{"a":"<think>b</think>"}')),
        "tool_calls",
    ),
    "invalid JSON passes": (
        section(("functions.x:0", "{a")) + END,
        message("", None, ("functions.x:0", "x", "{a")),
        "tool_calls",
    ),
    "big arguments": (section(("functions.x:0", BIG)) + END, message("", None, ("functions.x:0", "x", BIG)), "tool_calls"),
    "cut in the reasoning": ("<think>R", message("", "R"), "length"),
    "cut in an id": (f"<think>R</think>{OPEN_SECTION}{CALL}functions.x", message("", "R"), "length"),
    "cut in arguments": (
        f"<think>R</think>{OPEN_SECTION}{CALL}functions.x:0{ARGUMENTS}" + '{"a":',
        message("", "R", ("functions.x:0", "x", '{"a":')),
        "length",
    ),
    "cut before arguments": (
        f"{OPEN_SECTION}{CALL}functions.x:0{ARGUMENTS}",
        message("", None, ("functions.x:0", "x", "")),
        "length",
    ),
    "cut after the section": (f"<think>R</think>{section(X0[::2])}", message("", "R", X0), "tool_calls"),
    "after the end": (f"<think>R</think>Hi{END}more", message("Hi", "R"), "stop"),
}
SINGULAR = (
    "<think>R<|tool_call_section_begin|>\n" + f"{CALL}functions.x:0{ARGUMENTS}{{}}{CALL_END}<|tool_call_section_end|>{END}",
    message("", "R", X0),
    "tool_calls",
)


def outcomes(make: Callable[[], object], items: Sequence[int] | str) -> list[tuple[Message, Message, str]]:
    """The outcome at once, item by item, and cut at random."""
    found = []
    for pieces in ([items], [items[at : at + 1] for at in range(len(items))], *(chunks(items, seed) for seed in range(5))):
        parser = make()
        found.append((*run(parser, pieces), parser.finish_reason))  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("text", "expected", "reason"), [*CASES.values(), SINGULAR], ids=[*CASES, "singular section marker"])
@pytest.mark.parametrize("by", ["ids", "text"])
def test_decided_cases(by: str, text: str, expected: Message, reason: str) -> None:
    """Each known malformation has one outcome, by ids and by text, streamed in any pieces or not at all."""
    items: Sequence[int] | str = text
    if by == "ids":
        items = small().encode(text, control=True)
        found = outcomes(FORMAT.parser, items)
    else:
        found = outcomes(FORMAT.text_parser, items)

    for whole, streamed, finish_reason in found:
        assert whole == expected and whole.reasoning == expected.reasoning
        assert (streamed.content, streamed.reasoning, streamed.tool_calls) == (
            expected.content,
            expected.reasoning or "",
            expected.tool_calls,
        )
        assert finish_reason == reason


class TestByIds:
    """What only ids can tell."""

    def test_marker_text_stays_text(self) -> None:
        """A model that quotes a marker as text does not call anything."""
        ids = [CONTROL[THINK], *small().encode(section(X0[::2])), CONTROL["</think>"], *small().encode(END), CONTROL[END]]
        whole, _ = run(FORMAT.parser(), [ids])

        assert whole == message(END, section(X0[::2]))

    def test_singular_marker_without_a_call_is_text(self) -> None:
        """The singular marker is dropped only right before a call."""
        text = "<think>R</think>See <|tool_call_section_begin|> there"
        whole, _ = run(FORMAT.parser(), [[token] for token in small().encode(text, control=True)])

        assert whole.content == "See <|tool_call_section_begin|> there"

    def test_control_tokens_of_the_frame_have_no_text(self) -> None:
        """A stray tag or reserved token does not leak into the message."""
        text = "<think>R<|im_user|></think>a<|im_middle|>[PAD]b<|im_end|>"
        whole, _ = run(FORMAT.parser(), [small().encode(text, control=True)])

        assert whole == message("ab", "R")

    def test_eos_ends_a_turn(self) -> None:
        """[EOS], at which first configs of the family stopped, ends a turn too."""
        parser = FORMAT.parser()
        parser.feed(small().encode("<think></think>a[EOS]", control=True))

        assert parser.done and set(FORMAT.stop_ids) == {CONTROL["[EOS]"], CONTROL[END]}

    def test_half_a_character_before_a_marker(self) -> None:
        """Bytes that never become a character are U+FFFD, in the part where they were written."""
        ids = [CONTROL[THINK], 0xF0, 0x9F, CONTROL["</think>"], 0xE4, CONTROL[END]]
        whole, streamed = run(FORMAT.parser(), [[token] for token in ids])

        assert whole == streamed == message("\ufffd", "\ufffd")

    def test_content_before_the_last_unfinished_token_counts_as_cut(self) -> None:
        """By ids a missing end marker is always a cut; by text it may have been removed."""
        by_ids, by_text = FORMAT.parser(), FORMAT.text_parser()
        by_ids.feed(small().encode("<think></think>Hi", control=True))
        by_text.feed("<think></think>Hi")

        assert (by_ids.finish_reason, by_text.finish_reason) == ("length", "stop")

    def test_a_call_starts_before_its_arguments(self) -> None:
        """Id and name come once, then the arguments in pieces, then nothing is left to flush."""
        parser = FORMAT.parser(next_call_index=2)
        parts = ["<think>R</think>", OPEN_SECTION, CALL, "x:2", ARGUMENTS, '{"a"', ":1}", CALL_END, CLOSE_SECTION, END]
        deltas = [parser.feed(small().encode(part, control=True)) for part in parts]

        assert deltas[4] == [CallStarted(index=0, id="functions.x:2", name="x")]
        assert deltas[5:7] == [[ArgumentsDelta(index=0, text='{"a"')], [ArgumentsDelta(index=0, text=":1}")]]
        assert not any(deltas[7:]) and parser.finish()[0] == []

    def test_prompt_that_opened_the_thinking(self) -> None:
        """With `thinking` the first text is reasoning."""
        parser = FORMAT.parser(thinking=True)
        whole, _ = run(parser, [small().encode("R</think>Hi<|im_end|>", control=True)])

        assert whole == message("Hi", "R")


@pytest.mark.parametrize(
    ("written", "tools", "expected"),
    [
        ("functions.get_time:9", (), ("functions.get_time:9", "get_time")),
        ("functions.functions.x:9", (), ("functions.functions.x:9", "functions.x")),
        ("get_time:9", (), ("functions.get_time:9", "get_time")),
        ("3", ("get_time",), ("functions.get_time:5", "get_time")),
        ("3", ("get_time", "other"), ("functions.3:5", "3")),
        ("functionsget_time5", ("get_time",), ("functions.get_time:5", "get_time")),
        ("functions_get_time_5", ("get_time",), ("functions.get_time:5", "get_time")),
        ("functions.get_time", ("get_time",), ("functions.get_time:5", "get_time")),
        ("get_time", (), ("functions.get_time:5", "get_time")),
        ("call_ab12", ("get_time",), ("functions.call_ab12:5", "call_ab12")),
        ("", (), ("functions.:5", "")),
    ],
)
def test_call_ids(written: str, tools: tuple[str, ...], expected: tuple[str, str]) -> None:
    """Native ids stay; others are repaired as documented, never dropped."""
    assert resolve_call(written, 5, tools) == expected
