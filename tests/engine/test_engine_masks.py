"""Turns of the engine held to their grammar: what options ask for, with and without masks, guesses and batch mates."""

import asyncio
import json

import pytest
from attrs import evolve
from engine.test_engine import USER, engine, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.engine.offer import offered
from k2core.engine.options import checked, sampler_of
from k2core.errors import InputError
from k2core.interfaces import GenerateOptions
from k2core.messages import Message, TurnEnd, Usage
from k2core.testing.formats import CONTROL, ByteTokenizer
from k2core.testing.loaded import HashModel
from k2core.tools import schema_errors


def tool(name, /, **properties):
    """A declaration whose parameters are all required."""
    schema = {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


TOOLS = [
    tool("add", left={"type": "integer"}, right={"type": "integer"}),
    tool("colour", name={"enum": ["red", "green", "blue"]}),
]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}


class Eager(HashModel):
    """Logits are hashes; markers and JSON's own characters are likely, so that turns end soon."""

    def __init__(self):
        super().__init__(vocab=ByteTokenizer.vocab_size)

    def _row(self, sequence):
        row = super()._row(sequence)
        row[list(CONTROL.values())] += 5
        row[list(b'",:}]0123456789abc')] += 3
        return row


def said(made, **options):
    """The end of a turn under random logits."""
    return turn(made, [USER], TOOLS, max_tokens=600, temperature=1.0, **options)[-1]


def check(end, first=0):
    """A whole turn's calls are declared, numbered and valid."""
    for place, call in enumerate(end.message.tool_calls):
        assert call.id == f"functions.{call.name}:{first + place}"
        assert call.name in SCHEMAS
        assert schema_errors(SCHEMAS[call.name], json.loads(call.arguments)) == []
        assert call.arguments == json.dumps(
            json.loads(call.arguments), separators=(",", ":"), sort_keys=True, ensure_ascii=False
        )
    assert end.message.content.strip() or end.message.tool_calls


@given(
    seed=st.integers(0, 500),
    choice=st.sampled_from(["auto", "none", "required", "add", "colour"]),
    forbidden=st.sampled_from([(), ("add",)]),
    drafts=st.sampled_from([0, 6]),
)
@settings(max_examples=60, deadline=None)
def test_random_logits_make_valid_turns(seed, choice, forbidden, drafts):
    """Whatever the logits, a turn that ends is what its options ask for, with and without guesses the same."""
    if choice in forbidden:
        choice = "auto"
    with engine(Eager(), masks=True, drafts=drafts) as made, engine(Eager(), masks=True) as plain:
        ends = [said(one, seed=seed, tool_choice=choice, forbidden_tools=forbidden) for one in (made, plain)]
    end = ends[0]

    assert ends[0].message.token_ids == ends[1].message.token_ids
    assert end.usage.mask_seconds > 0
    if end.finish_reason == "length":
        return
    check(end)
    names = [call.name for call in end.message.tool_calls]
    assert not set(names) & set(forbidden)
    if choice == "none":
        assert names == []
    elif choice == "required":
        assert names
    elif choice != "auto":
        assert names == [choice]


def test_most_turns_under_random_logits_end():
    """The property above is about something: nine turns in ten end by themselves, calls among them."""
    with engine(Eager(), masks=True) as made:
        ends = [said(made, seed=seed) for seed in range(100)]

    assert sum(end.finish_reason != "length" for end in ends) >= 90
    assert sum(end.finish_reason == "tool_calls" for end in ends) >= 10


def test_turns_at_once_keep_their_own_grammars():
    """Turns in one batch are held each to its own options, and their tokens are those of turns alone."""

    async def together(made):
        async def one(seed, choice):
            options = GenerateOptions(max_tokens=600, temperature=1.0, seed=seed, tool_choice=choice)
            return [part async for part in made.generate([USER], TOOLS, options)][-1]

        return await asyncio.gather(*(one(seed, choice) for seed, choice in asked))

    asked = [(seed, choice) for seed in range(4) for choice in ("none", "required", "add", "auto")]
    with engine(Eager(), masks=True) as made, engine(Eager(), masks=True) as plain:
        found = asyncio.run(together(made))
        expected = [said(plain, seed=seed, tool_choice=choice) for seed, choice in asked]

    assert [one.message.token_ids for one in found] == [one.message.token_ids for one in expected]


def test_forbidden_calls_are_not_made():
    """A call that must not be made is turned away from, however often it is drawn; with nothing left, the tool goes too."""
    every = [("colour", json.dumps({"name": name})) for name in ("red", "green", "blue")]
    with engine(Eager(), masks=True) as made:
        for seed in range(20):
            end = said(made, seed=seed, tool_choice="colour", forbidden_calls=tuple(every[:2]))
            assert end.message.tool_calls[0].arguments == '{"name":"blue"}'
        end = said(made, seed=1, tool_choice="required", forbidden_calls=tuple(every))
        assert {call.name for call in end.message.tool_calls} == {"add"}
        with pytest.raises(InputError, match="it is forbidden in this turn"):
            said(made, tool_choice="colour", forbidden_calls=tuple(every))


@pytest.mark.parametrize("seed", range(5))
def test_the_content_is_json_of_the_response_schema(seed):
    """A turn that calls nothing has content that the schema accepts."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]}
    with engine(Eager(), masks=True) as made:
        end = said(made, seed=seed, tool_choice="none", response_schema=schema)

    assert end.finish_reason == "stop"
    assert schema_errors(schema, json.loads(end.message.content)) == []


@pytest.mark.parametrize(
    ("options", "said_so"),
    [
        ({"tool_choice": "ad"}, "cannot force a call of 'ad': it is not declared. Declared: add, colour. Did you mean 'add'?"),
        (
            {"tool_choice": "required", "forbidden_tools": ("add", "colour")},
            "all declared tools \\(add, colour\\) are forbidden",
        ),
    ],
)
def test_options_that_leave_nothing_are_refused_before_anything_is_computed(options, said_so):
    """A choice that cannot be met is one clear line, and no token is computed for it."""
    model = Eager()
    with engine(model, masks=True) as made, pytest.raises(InputError, match=said_so):
        said(made, **options)

    assert model.computed == 0


@pytest.mark.parametrize("where", ["engine", "turn"])
def test_what_only_masks_can_hold_to_is_refused_without_them(where):
    """Without masks, an option that needs them is refused aloud, never dropped."""
    with engine(Eager(), masks=where == "turn") as made:
        options = {"masks": False} if where == "turn" else {}
        assert said(made, **options).usage.mask_seconds == 0
        for asked in ({"tool_choice": "required"}, {"response_schema": {}}, {"forbidden_tools": ("add",)}):
            with pytest.raises(InputError, match=f"{next(iter(asked))} cannot be held to without masks"):
                said(made, **asked, **options)


@pytest.mark.parametrize(
    "schema",
    [5, "x", [], False, {"type": "strange"}, {"enum": []}, {"type": "integer", "minimum": 5, "maximum": 3},
     {"type": "object", "properties": 5}],
)  # fmt: skip
def test_a_response_schema_that_is_none_is_refused(schema):
    """What is no schema, and what nothing satisfies, is one line when the turn is asked for."""
    with pytest.raises(InputError, match="response_schema"):
        offered([], GenerateOptions(response_schema=schema))


@pytest.mark.parametrize(
    ("content", "schema", "problem"),
    [
        ("[1,1]", {"type": "array", "uniqueItems": True}, "non-unique"),
        ('{"a":1}', {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "'b' is a required property"),
        ("[1,", {"type": "array"}, "no JSON"),
        ("[1,2]", {"type": "array", "uniqueItems": True}, ""),
    ],
)
def test_contents_are_checked_for_what_masks_do_not_hold_to(content, schema, problem):
    """A turn whose content is whole and wrong ends in an error that says how; a cut one, or one with calls, does not."""
    end = TurnEnd(message=Message(role="assistant", content=content), finish_reason="stop", usage=Usage())
    options = GenerateOptions(response_schema=schema)
    found = checked(end, options)
    assert (problem in str(found)) if problem else found is end
    cut = evolve(end, finish_reason="length")
    assert checked(cut, options) is cut


@pytest.mark.parametrize(
    "options",
    [{"forbidden_tools": "calculator"}, {"forbidden_calls": ("calculator",)}, {"forbidden_calls": "x"}, {"masks": "no"}],
)
def test_options_of_the_wrong_form_are_refused(options):
    """A text is no list of names, a name is no pair, and a word is no answer to yes or no."""
    with pytest.raises(InputError, match=next(iter(options))):
        sampler_of(GenerateOptions(**options))
