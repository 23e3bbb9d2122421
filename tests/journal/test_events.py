"""Events as versioned JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal.strategies import any_event, by_kind

from k2core import events
from k2core.errors import FormatError
from k2core.messages import Message, ToolCall


def test_every_kind_has_a_strategy():
    """A new kind of event joins the round-trip property."""
    assert set(by_kind) == set(events.KINDS)


@given(any_event)
def test_round_trip(event):
    """An event's JSON text gives the same event back."""
    text = json.dumps(event.to_json(), allow_nan=False)

    assert events.event_from_json(json.loads(text)) == event


@given(any_event)
def test_kind_and_version_stand_in_the_object(event):
    """Every object names its kind and the format's version."""
    body = event.to_json()

    assert body["kind"] == event.kind
    assert body["v"] == 1


@given(st.sampled_from(sorted(events.KINDS)), st.integers(2, 99))
def test_a_newer_version_is_kept(kind, version):
    """An event of a known kind in a newer format is kept as it is."""
    body = {"v": version, "kind": kind, "new": [1, {"a": None}]}

    event = events.event_from_json(body)

    assert isinstance(event, events.UnknownEvent)
    assert event.to_json() == body


def test_a_kind_that_is_gone_is_kept():
    """A plan, which an earlier k2core stored beside the thinking that it copied, is kept as it is."""
    body = {"v": 1, "kind": "plan", "text": "Plan times: 23*47."}

    event = events.event_from_json(body)

    assert event == events.UnknownEvent(kind="plan", body=body) and event.to_json() == body


def test_unknown_fields_are_ignored():
    """A field that a later k2core added does not stop reading."""
    assert events.event_from_json({"v": 1, "kind": "note", "text": "a", "colour": 3}) == events.NoteKept(text="a")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "no 'kind'"),
        ([], "no 'kind'"),
        ({"v": 1, "kind": "note"}, "'note' is malformed: Object missing required field `text`"),
        ({"v": 1, "kind": "turn", "token_ids": ["a"]}, r"'turn' is malformed: Expected `int`, got `str`"),
        ({"v": 1, "kind": "answer", "text": "a", "status": "odd"}, "'answer' is malformed: Invalid enum value"),
    ],
)
def test_a_malformed_event_is_one_line(body, words):
    """A malformed object names the kind and what is wrong."""
    with pytest.raises(FormatError, match=words) as caught:
        events.event_from_json(body)

    assert "\n" not in str(caught.value)


def test_turn_and_message_give_messages_back():
    """A turn and a message event give exactly the message that they came from, token ids included."""
    call = ToolCall(id="functions.a:0", name="a", arguments="{}")
    message = Message(role="assistant", content="c", reasoning="r", tool_calls=(call,), token_ids=(1, 2), name="n")

    added = events.MessageAdded.of(message).message()
    turn = events.TurnEnded(reasoning="r", content="c", calls=(call,), token_ids=(1, 2)).message()

    assert (added, added.token_ids) == (message, (1, 2))
    assert (turn.role, turn.tool_calls, turn.token_ids) == ("assistant", (call,), (1, 2))


def test_status_line_counts():
    """A status line shows its counts when it has them."""
    assert str(events.StatusLine(text="compiling kernels (once)", done=7, total=14)) == "compiling kernels (once): 7 of 14"
    assert str(events.StatusLine(text="loading")) == "loading"


def test_stored_event_as_json():
    """A stored event's object begins with its place."""
    stored = events.Stored(run="r", sequence=3, time="t", event=events.NoteKept(text="x"))

    assert stored.to_json() == {"run": "r", "sequence": 3, "time": "t", "v": 1, "kind": "note", "text": "x"}
