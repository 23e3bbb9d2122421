"""The scripted model that tests of agents use."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.errors import K2Error
from k2core.interfaces import GenerateOptions
from k2core.messages import ArgumentsDelta, CallStarted, ContentDelta, Message, ReasoningDelta, ToolCall
from k2core.testing.models import ScriptedModel, call_turn

USER = Message(role="user", content="two words")


def ask(model, *messages, **options):
    """All parts of one turn."""

    async def collect():
        return [part async for part in model.generate(messages or (USER,), (), GenerateOptions(**options))]

    return asyncio.run(collect())


calls = st.lists(st.builds(ToolCall, id=st.text(max_size=5), name=st.text(max_size=5), arguments=st.text(max_size=40)))
messages = st.builds(
    Message,
    role=st.just("assistant"),
    content=st.text(max_size=60),
    reasoning=st.none() | st.text(min_size=1, max_size=60),
    tool_calls=calls.map(tuple),
)


@given(messages, st.integers(1, 20))
def test_deltas_add_up_to_the_message(message, piece):
    """The streamed pieces, none longer than asked for, add up to the turn's message."""
    *deltas, end = ask(ScriptedModel([message], piece=piece))

    texts = [one.text for one in deltas if not isinstance(one, CallStarted)]
    assert all(0 < len(text) <= piece for text in texts)
    assert "".join(one.text for one in deltas if isinstance(one, ReasoningDelta)) == (message.reasoning or "")
    assert "".join(one.text for one in deltas if isinstance(one, ContentDelta)) == message.content
    for index, call in enumerate(message.tool_calls):
        pieces = [one.text for one in deltas if isinstance(one, ArgumentsDelta) and one.index == index]
        assert "".join(pieces) == call.arguments
    assert end.message == message
    assert end.finish_reason == ("tool_calls" if message.tool_calls else "stop")


def test_turns_in_every_form_and_requests_recorded():
    """Texts, messages and functions are played in order, and every request is kept."""
    model = ScriptedModel(["one", call_turn(0, "a", x=1), lambda messages: f"{len(messages)} messages"])

    first, second, third = (ask(model, *[USER] * count)[-1].message for count in (1, 2, 3))

    assert first.content == "one"
    assert second.tool_calls == (ToolCall(id="functions.a:0", name="a", arguments='{"x":1}'),)
    assert third.content == "3 messages"
    assert [len(request.messages) for request in model.requests] == [1, 2, 3]
    model.assert_complete()


def test_running_out_and_being_incomplete():
    """A request beyond the script and a turn never asked for are told."""
    model = ScriptedModel(["one", "two"])
    ask(model)
    with pytest.raises(AssertionError, match="1 of 2 scripted turns"):
        model.assert_complete()
    ask(model)

    with pytest.raises(K2Error, match="asked for turn 3, but its script has 2"):
        ask(model)


def test_usage_counts_words():
    """Prompt, cached and generated tokens are counted in words."""
    model = ScriptedModel([Message(role="assistant", reasoning="a b c", content="d e"), "x"])

    first = ask(model, USER)[-1]
    second = ask(model, USER, first.message, Message(role="user", content="go on now"))[-1].usage

    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.reasoning_tokens) == (2, 5, 3)
    assert (second.prompt_tokens, second.cached_tokens, second.computed_tokens) == (10, 2, 9)


@pytest.mark.parametrize(
    ("options", "reasoning", "content"),
    [({"max_tokens": 2}, "a b", ""), ({"max_tokens": 4}, "a b c", "d"), ({"max_reasoning_tokens": 1}, "a", "")],
)
def test_limits_cut_a_turn(options, reasoning, content):
    """A turn longer than the limits is cut as a real model's would be."""
    end = ask(ScriptedModel([Message(role="assistant", reasoning="a b c", content="d e")]), **options)[-1]

    assert (end.finish_reason, end.message.reasoning, end.message.content) == ("length", reasoning, content)


def test_errors_of_the_script_come_out_and_closing_ends_it():
    """An exception of a scripted function is raised by generate; a closed model refuses."""

    def fails(messages):
        raise ConnectionError("gone")

    model = ScriptedModel([fails, "x"])
    with pytest.raises(ConnectionError, match="gone"):
        ask(model)
    model.close()
    with pytest.raises(K2Error, match="after it was closed"):
        ask(model)
