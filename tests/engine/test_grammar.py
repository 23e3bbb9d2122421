"""Turns held to a grammar, in the byte format: what is drawn at random is whole and valid; options; forbidden calls."""

import json
import subprocess
import sys

import numpy as np
import pytest
from engine.arguments import NotDrawn, arguments_of, canonical
from engine.walks import Walker, corpus, corpus_of, count_of, faults
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.forbidden import dead_ends, exhausted
from k2core.engine.grammar import Masks
from k2core.engine.offer import MOST_CALLS
from k2core.errors import InputError, K2Error
from k2core.language import GenerateOptions
from k2core.testing.formats import CONTROL, ByteFormat, ByteTokenizer

FORMAT = ByteFormat()
MASKS = Masks(FORMAT.tokenizer, FORMAT.stop_ids)
WALKER = Walker(FORMAT)


def tool(name, parameters):
    """A declaration."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


NOTE = tool("note", {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]})
PICK = tool("pick", {"type": "object", "properties": {"what": {"enum": ["a", "ab", "b"]}}, "required": ["what"]})
NOW = tool("now", {"type": "object", "properties": {}})
TOOLS = [NOTE, PICK, NOW]


def start(tools=TOOLS, *, next_call_index=0, **options):
    """The constraint of one turn."""
    chosen = GenerateOptions(**options)
    return MASKS.start(
        FORMAT.grammar(tools, chosen, next_call_index=next_call_index),
        forbidden=chosen.forbidden_calls,
        schemas={one["function"]["name"]: one["function"]["parameters"] for one in tools},
    )


def refused_at(constraint, text, *, plain=""):
    """What is refused of a turn's text, from there to its end; None where all is taken and the turn is whole.

    *plain* stands in the text for ``{}``, without control tokens.
    """
    before, _, after = text.partition("{}") if plain else (text, "", "")
    encode = FORMAT.tokenizer.encode
    ids = [*encode(before, control=True), *encode(plain), *encode(after, control=True)]
    parser = FORMAT.parser()
    for place, token in enumerate(ids):
        allowed = constraint.allows(token)
        assert bool(constraint.mask()[token]) == allowed
        if not allowed:
            return FORMAT.tokenizer.decode(ids[place:])
        constraint.accept(token, parser.feed((token,)))
    return None if constraint.done else ""


def calls(*texts):
    """A turn of calls as text, ``name:index{arguments}`` each."""
    parts = [text.partition("{") for text in texts]
    return "<think></think>" + "".join(f"<call>functions.{name}<arguments>{{{rest}" for name, _, rest in parts) + "<end>"


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_random_turns_are_valid(count):
    """Whatever random logits draw through the masks parses to declared, rightly numbered calls whose arguments are valid."""
    whole, made, found = count_of(WALKER, np.random.default_rng(7), count)

    assert found == []
    assert whole >= 0.9 * count
    assert made >= 0.5 * count


@pytest.mark.parametrize("declared", corpus(), ids=lambda one: one["function"]["name"])
def test_every_tool_of_the_corpus_can_be_called(declared):
    """Forced to call one tool, random turns come to their end with valid arguments."""
    rng = np.random.default_rng(len(declared["function"]["name"]))
    options = GenerateOptions(tool_choice=declared["function"]["name"])

    walks = [WALKER.walk([declared], options, rng) for _ in range(6)]

    assert [line for walk in walks if walk.is_whole for line in faults(walk, [declared])] == []
    assert any(walk.is_whole for walk in walks)
    assert all(len(walk.message.tool_calls) == 1 for walk in walks if walk.is_whole)


def drawable():
    """Tools of the corpus whose schemas values can be drawn for."""
    out = []
    for one in corpus():
        try:
            out.append(pytest.param(one, arguments_of(one["function"]["parameters"]), id=one["function"]["name"]))
        except NotDrawn:
            continue
    return out


def test_values_are_drawn_for_most_of_the_corpus():
    """The next property is not about a handful of schemas."""
    assert len(drawable()) >= 60


@pytest.mark.parametrize(("declared", "values"), drawable())
@given(data=st.data())
def test_canonical_arguments_pass(declared, values, data):
    """Arguments that a schema admits are let through in the one spelling, byte by byte."""
    name = declared["function"]["name"]
    try:
        value = data.draw(values)
    except NotDrawn:
        pytest.skip("the schema has a part that values are not drawn for")
    text = canonical(value)

    assert refused_at(start([declared]), calls(f"{name}:0{{}}"), plain=text) is None, text


@pytest.mark.parametrize(
    ("options", "text", "rest"),
    [
        ({"tool_choice": "none"}, "<think></think>x<end>", None),
        ({"tool_choice": "none"}, calls("now:0{}"), "<call>functions.now:0<arguments>{}<end>"),
        ({"tool_choice": "required"}, calls("now:0{}"), None),
        ({"tool_choice": "required"}, "<think></think>well<call>functions.now:0<arguments>{}<end>", None),
        ({"tool_choice": "required"}, "<think></think>x<end>", "<end>"),
        ({"tool_choice": "pick"}, calls('pick:0{"what":"b"}'), None),
        ({"tool_choice": "pick"}, calls("now:0{}"), "now:0<arguments>{}<end>"),
        ({"tool_choice": "pick"}, calls('pick:0{"what":"b"}', 'pick:1{"what":"b"}'), None),
        ({"forbidden_tools": ("now",)}, calls("now:0{}"), "w:0<arguments>{}<end>"),
        ({"forbidden_tools": ("now", "gone")}, calls('note:0{"text":""}'), None),
        ({"forbidden_tools": ("now", "note", "pick")}, "<think></think>x<end>", None),
        ({"forbidden_tools": ("now", "note", "pick")}, calls("now:0{}"), "<call>functions.now:0<arguments>{}<end>"),
    ],
)
def test_choice_of_tools(options, text, rest):
    """No call, some call, one tool's call, all but some: each is what the mask leaves."""
    if options == {"tool_choice": "pick"} and text.count("<call>") == 2:
        rest = text[text.rindex("<call>") :]

    assert refused_at(start(**options), text) == rest


@pytest.mark.parametrize("blank", ["", " ", "\n\t\x0b\x0c\r", "\x1c\x1d\x1e\x1f", "\x85\xa0\u2003\u2028\u3000"])
def test_a_turn_says_something(blank):
    """A turn of blanks alone, whatever blanks Unicode has, cannot end; a call behind them can follow."""
    assert refused_at(start(), f"<think></think>{blank}<end>") == "<end>"
    assert refused_at(start(), f"<think></think>{blank}x{blank}<end>") is None
    assert refused_at(start(), f"<think></think>{blank}<call>functions.now:0<arguments>{{}}<end>") is None


def test_calls_count_on():
    """The index goes on from the conversation's calls, and no other number is allowed."""
    assert refused_at(start(next_call_index=9), calls("now:9{}", 'pick:10{"what":"a"}', "now:11{}")) is None
    assert refused_at(start(next_call_index=9), calls("now:0{}")) == "0<arguments>{}<end>"
    assert refused_at(start(next_call_index=9), calls("now:9{}", "now:9{}")) == "9<arguments>{}<end>"


def test_calls_of_one_turn_are_limited():
    """Behind the last call that a turn may hold, only its end is left."""
    made = [f"now:{index}{{}}" for index in range(MOST_CALLS + 1)]

    assert refused_at(start(), calls(*made[:-1])) is None
    assert refused_at(start(), calls(*made)) == f"<call>functions.now:{MOST_CALLS}<arguments>{{}}<end>"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": "nope"}, "cannot force a call of 'nope': it is not declared. Declared: note, pick, now. Did you mean"),
        ({"tool_choice": "xyz"}, "Use auto, none, required or a declared name."),
        ({"tool_choice": "now", "forbidden_tools": ("now",)}, "cannot force a call of 'now': it is forbidden in this turn"),
        ({"tool_choice": "now", "forbidden_calls": (("now", "{}"),)}, "cannot force a call of 'now': it is forbidden"),
        (
            {"tool_choice": "required", "forbidden_tools": ("now", "note", "pick")},
            r"cannot require a call: all declared tools \(note, pick, now\) are forbidden in this turn",
        ),
    ],
)
def test_impossible_choices_are_one_clear_line(options, words):
    """Options that leave nothing to write are refused before the turn, in one line that says what to do."""
    with pytest.raises(InputError, match=words) as caught:
        FORMAT.grammar(TOOLS, GenerateOptions(**options))
    assert "\n" not in str(caught.value)


def test_a_required_call_needs_a_tool():
    """Without tools no call can be required."""
    with pytest.raises(InputError, match="cannot require a call: no tool is declared"):
        FORMAT.grammar([], GenerateOptions(tool_choice="required"))


ANSWER = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


@pytest.mark.parametrize(
    ("options", "text", "rest"),
    [
        ({}, '<think>r</think>{"answer":4}<end>', None),
        ({}, calls("now:0{}"), None),
        ({}, "<think></think>four<end>", "four<end>"),
        ({}, '<think></think>{"answer":4}<call>', "<call>"),
        ({}, '<think></think>{"answer":"4"}<end>', '"4"}<end>'),
        ({"tool_choice": "none"}, '<think></think>{"answer":4}<end>', None),
        ({"tool_choice": "required"}, '<think></think>{"answer":4}<end>', '"answer":4}<end>'),
    ],
)
def test_content_is_json_of_its_schema(options, text, rest):
    """With a schema for the response, a turn is a call or JSON of that schema alone."""
    if options == {"tool_choice": "required"}:
        rest = "<end>"  # a text before the call is free, but a call must follow

    assert refused_at(start(response_schema=ANSWER, **options), text) == rest


def test_forbidden_arguments_turn_away_at_their_last_byte():
    """A forbidden call can be begun, but not ended; the byte that tells it from others is refused, and others go on."""
    forbidden = (("note", '{ "text": "ab" }'), ("pick", '{"what":"b"}'))

    assert refused_at(start(forbidden_calls=forbidden), calls('note:0{"text":"ab"}')) == '"}<end>'
    assert refused_at(start(forbidden_calls=forbidden), calls('note:0{"text":"abc"}')) is None
    assert refused_at(start(forbidden_calls=forbidden), calls('note:0{"text":"a"}')) is None
    assert refused_at(start(forbidden_calls=forbidden), calls('pick:0{"what":"b"}')) == 'b"}<end>'
    assert refused_at(start(forbidden_calls=forbidden), calls('pick:0{"what":"a"}', 'pick:1{"what":"b"}')) == 'b"}<end>'
    assert refused_at(start(forbidden_calls=forbidden), "<think>pick b</think>b<end>") is None


def test_every_value_but_one_forbidden():
    """Where all but one value of a list are forbidden, the last one is what can be written."""
    forbidden = tuple(("pick", canonical({"what": what})) for what in ("a", "ab"))

    assert refused_at(start(forbidden_calls=forbidden), calls('pick:0{"what":"b"}')) is None
    assert refused_at(start(forbidden_calls=forbidden), calls('pick:0{"what":"a"}')) == 'a"}<end>'


def test_a_tool_without_another_call_is_not_offered():
    """A tool whose every possible arguments are forbidden counts as a forbidden tool."""
    forbidden = tuple(("pick", canonical({"what": what})) for what in ("a", "ab", "b"))

    assert exhausted(PICK["function"]["parameters"], [text for _, text in forbidden])
    assert refused_at(start(forbidden_calls=forbidden), calls('pick:0{"what":"b"}')) == 'pick:0<arguments>{"what":"b"}<end>'
    assert refused_at(start(forbidden_calls=(("now", ""),)), calls("now:0{}")) == "w:0<arguments>{}<end>"


def test_what_a_schema_does_not_admit_needs_no_forbidding():
    """Texts that are no JSON, or not of the schema, forbid nothing."""
    schema = NOTE["function"]["parameters"]

    assert dead_ends(schema, ["no json", '{"text":1}', '{"other":"x"}', "[]", '{"text":"\\ud800"}']) == ()


@given(
    taken=st.lists(st.sampled_from(["a", "ab", "b", "", "é", '"', "ba"]), max_size=6),
    wanted=st.sampled_from(["a", "ab", "b", "", "é", '"', "ba", "abc"]),
)
def test_exactly_the_forbidden_calls_are_refused(taken, wanted):
    """Of a string's values, those that are forbidden cannot be written, and every other can."""
    forbidden = tuple(("note", json.dumps({"text": text})) for text in taken)

    refused = refused_at(start(forbidden_calls=forbidden), calls("note:0" + canonical({"text": wanted})))

    assert (refused is not None) == (wanted in taken)


@pytest.mark.parametrize("seed", range(8))
def test_random_turns_never_make_a_forbidden_call(seed):
    """Over small schemas, random turns go on with other calls until none is left, then without the tool."""
    rng = np.random.default_rng(seed)
    tools = [*corpus_of("choices", "one_of_overlap", "nullable", "some_of_them"), PICK]
    made = set()
    for _ in range(25):
        options = GenerateOptions(forbidden_calls=tuple(made))
        walk = WALKER.walk(tools, options, rng)
        if walk.is_whole:
            assert faults(walk, tools) == []
            assert made.isdisjoint((call.name, call.arguments) for call in walk.message.tool_calls)
            made |= {(call.name, call.arguments) for call in walk.message.tool_calls}


def test_forced_tokens_are_what_follows_in_any_case():
    """Where the grammar leaves no choice, the tokens are given; they are allowed one after the other."""
    constraint = start([NOTE], tool_choice="note")
    for token in FORMAT.tokenizer.encode("<think></think><call>", control=True):
        constraint.accept(token)

    forced = constraint.forced()

    assert FORMAT.tokenizer.decode(forced).startswith("functions.note:0<arguments>")
    for token in forced:
        assert constraint.allows(token)
        constraint.accept(token)


@pytest.mark.parametrize("seed", range(5))
def test_asking_for_forced_tokens_changes_no_mask(seed):
    """Masks are the same whether forced tokens were asked for or not, and the first forced token is always an allowed one."""
    rng = np.random.default_rng(seed)
    tools = [corpus()[number] for number in rng.choice(len(corpus()), 3, replace=False)]
    asked, other = start(tools, tool_choice="required"), start(tools, tool_choice="required")
    for position in range(200):
        if rng.random() < 0.5:
            forced = asked.forced()
            assert not forced or other.allows(forced[0])
        mask = other.mask()
        assert np.array_equal(asked.mask(), mask)
        logits = rng.gumbel(size=len(mask)) + WALKER.plain + WALKER.closing * position / 20
        token = int(np.where(mask, logits, -np.inf).argmax())
        asked.accept(token)
        other.accept(token)
        if other.done:
            break
    assert asked.done == other.done


def test_masks_of_another_width():
    """A model's rows may be wider than the vocabulary: what lies behind it is never allowed."""
    constraint = start()

    wide = constraint.mask(300)

    assert wide.shape == (300,)
    assert np.flatnonzero(wide).tolist() == [CONTROL["<think>"]]
    assert constraint.mask().shape == (ByteTokenizer.vocab_size,)
    assert not constraint.allows(ByteTokenizer.vocab_size)
    assert not constraint.allows(-1)


def test_a_token_that_is_not_allowed_is_refused():
    """Going on by a refused token is one clear error, and so is a grammar that cannot be compiled."""
    constraint = start()
    with pytest.raises(K2Error, match="cannot hold the turn to its grammar"):
        constraint.accept(ord("x"))
    with pytest.raises(K2Error, match="cannot compile the turn's grammar"):
        MASKS.start("start: nowhere\n")


def test_two_turns_of_one_grammar_are_apart():
    """A compiled grammar is used again, and each turn has its own place in it."""
    first, second = start(), start()
    first.accept(CONTROL["<think>"])

    assert first.allows(ord("x"))
    assert not second.allows(ord("x"))
    assert second.allows(CONTROL["<think>"])
    assert first.seconds > 0


def test_importing_the_masks_loads_no_llguidance():
    """The library is loaded by the first turn, not by the import."""
    code = "import k2core.engine.grammar, sys; print('llguidance' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
