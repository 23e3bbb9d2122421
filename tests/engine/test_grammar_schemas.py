"""JSON Schemas as rules: nothing that a schema refuses, everything in the one spelling, and an honest list of the rest."""

import copy
import datetime
import ipaddress
import json
import random
import re
import uuid
from decimal import Decimal

import jsonschema
import numpy as np
import pytest
from engine.walks import argument_faults, corpus, is_excused
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from k2core.engine.bytewise import END, following, matcher
from k2core.engine.schemas import BASE, rules, spellings
from k2core.engine.schemas.numbers import Interval, decimals, integers
from k2core.engine.schemas.patterns import Untranslatable, terminal
from k2core.engine.schemas.strings import FORMATS, Text


def of_schema(schema, **options):
    """A matcher for the texts of a schema."""
    return matcher(f"start: value\n{rules(schema, 'value', **options).text}{BASE}")


def of_terminal(text):
    """A matcher for the texts of a terminal."""
    return matcher(f"start: T\nT: {text}\n")


def takes(pristine, text):
    """Whether a text is let through to its end."""
    state = pristine.deep_copy()
    return bool(state.consume_tokens(list(text.encode())) and state.is_accepting())


def drawn(pristine, rng, most=200):
    """A random text; None where it did not end in time."""
    state, out = pristine.deep_copy(), bytearray()
    for place in range(most):
        allowed = following(state)
        weights = np.array(
            [1.0 + place / 10 * (byte in map(ord, '"}]')) + (byte < 128) + 2.0 * (byte == END) for byte in allowed]
        )
        byte = int(rng.choice(allowed, p=weights / weights.sum()))
        if byte == END:
            return out.decode()
        assert state.consume_token(byte)
        out.append(byte)
        if state.is_stopped():
            return out.decode()
    return None


@pytest.mark.parametrize("declared", corpus(), ids=lambda one: one["function"]["name"])
def test_what_rules_let_through_is_valid(declared):
    """Random texts of every schema of the corpus are valid up to the listed keywords, and in one of their spellings."""
    schema = declared["function"]["parameters"]
    pristine, rng = of_schema(schema, is_object=True), np.random.default_rng(3)

    texts = [text for _ in range(25) if (text := drawn(pristine, rng)) is not None]

    assert [line for text in texts for line in argument_faults(schema, text)] == []
    for text in texts:
        assert len(re.sub(r'"(?:[^"\\]|\\.)*"', "", text).split()) <= 1, "no whitespace outside of strings"
    if declared["function"]["name"] != "pattern_search":
        assert len(texts) >= 5


UNENFORCED = {
    "cents": {("$.price", "multipleOf")},
    "conditional": {("$", "then"), ("$", "else")},
    "contains": {("$.ids", "contains")},
    "format_unknown": {("$.color", "format"), ("$.expr", "format")},
    "map_bounded": {("$", "minProperties")},
    "not_both": {("$", "not")},
    "not_empty_text": {("$.text", "not")},
    "one_of_overlap": {("$.n", "oneOf")},
    "pattern_properties": {("$", "minProperties")},
    "pattern_unknown": {("$.letters", "pattern"), ("$.tag", "pattern")},
    "remote": {("$.x", "$ref")},
    "unique_texts": {("$.names", "uniqueItems")},
}


@pytest.mark.parametrize("declared", corpus(), ids=lambda one: one["function"]["name"])
def test_what_is_not_enforced_is_known(declared):
    """The list of what a mask does not hold to is exactly what is expected of each schema of the corpus."""
    found = rules(declared["function"]["parameters"], "tool", is_object=True).unenforced

    assert set(found) == UNENFORCED.get(declared["function"]["name"], set())


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}}, "contains"),
        ({"type": "string", "not": {"pattern": "^[a-m]"}}, "not"),
        ({"enum": ["a", "b"], "type": "string"}, None),
        ({"type": "integer", "oneOf": [{"minimum": 0}, {"maximum": 9}]}, "oneOf"),
        ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
        ({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2}, "minProperties"),
    ],
)
def test_listed_keywords_are_the_only_ones_missed(schema, keyword):
    """What random texts miss of a schema are listed keywords, and those that are listed can be missed."""
    pristine, rng = of_schema(schema), np.random.default_rng(1)
    listed = {name for _, name in rules(schema, "value").unenforced}
    texts = [text for _ in range(150) if (text := drawn(pristine, rng, most=60)) is not None]
    errors = [error for text in texts for error in jsonschema.Draft202012Validator(schema).iter_errors(json.loads(text))]

    assert listed == ({keyword} if keyword else set())
    assert all(is_excused(error, listed) for error in errors)
    assert len(texts) >= 10
    if keyword not in (None, "minProperties"):  # a key twice is rare
        assert errors


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["string", "null"]}, ['"a"', "null"], ["1", "true"]),
        ({"type": "string"}, ['"\\n\\t\\r\\b\\f\\"\\\\/"', '"é\u2028\x7f🙂"', '""'], ['"\\u0061"', '"\\/"', '"\n"', "'a'"]),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ['"é"', '"🙂🙂"', '"\\n\\n"'], ['""', '"abc"', '"🙂🙂🙂"']),
        ({"type": "string", "maxLength": 10**9}, ['"abc"'], ["1"]),
        ({"type": "integer"}, ["0", "-1", "10"], ["-0", "01", "1.0", "1e3", "+1", "1" * 300]),
        ({"type": "number"}, ["0", "-1.50", "1.0", "2e-7", "1E+5", "1e+22", "0.0"], ["1e999", ".5", "01", "NaN", "1."]),
        ({"type": "number", "minimum": 0}, ["0", "0.0", "1e5"], ["-1", "-0.5"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["1", "1.0", "0.001", "1.000"], ["0", "0.0", "1.01"]),
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 5.5}, ["4", "5"], ["3", "6"]),
        ({"type": "integer", "multipleOf": 4, "minimum": 6}, ["8", "12"], ["4", "10", "6"]),
        ({"type": "number", "multipleOf": 2}, ["4", "-2", "0"], ["3", "2.0"]),
        ({"enum": [1, "1", None]}, ["1", '"1"', "null"], ["true"]),
        ({"enum": [{"b": 1, "a": [True]}]}, ['{"a":[true],"b":1}'], ['{"b":1,"a":[true]}']),
        ({"enum": [1, 2, 3], "minimum": 2}, ["2", "3"], ["1"]),
        ({"const": "\ud800"}, [], []),
        ({"type": "array", "items": {"const": 1}, "maxItems": 2}, ["[]", "[1]", "[1,1]"], ["[1,1,1]", "[2]"]),
        ({"type": "array", "prefixItems": [{"const": 1}, {}], "items": False}, ["[]", "[1]", "[1,2]"], ["[2]", "[1,2,3]"]),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 2},
            ["[1,2]", "[1,2,2]"],
            ["[1]", "[1,1]"],
        ),
        ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, ["[]", "[2,1]"], ["[1,1]", "[1,2,1]"]),
        ({"type": "array", "items": False}, ["[]"], ["[1]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "object", "properties": {"b": {}, "a": {}}}, ["{}", '{"a":1,"b":[]}'], ['{"b":1,"a":1}', '{"c":1}']),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": {"const": 1}}, ['{"a":0,"x":1}'], ['{"x":2}']),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, ['{"x":1}'], ['{"x":1,"a":1}']),
        ({"type": "object", "required": ["q"]}, ['{"q":1}', '{"q":1,"a":2}'], ["{}"]),
        ({"type": "object", "properties": {"a": False, "b": {}}}, ["{}", '{"b":1}'], ['{"a":1}']),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, ["{}", '{"a":1}'], ['{"a":1,"b":1}']),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, ['{"a":1,"b":1}', '{"b":1}'], ["{}"]),
        ({"type": "object", "patternProperties": {"^x": {"const": 1}}}, ["{}", '{"xy":1}'], ['{"x":2}', '{"y":1}']),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
            ['{"x":null,"y":true}'],
            ['{"x":true}', '{"y":null}'],
        ),
        ({"type": "object", "propertyNames": {"maxLength": 1}}, ['{"a":1}'], ['{"ab":1}']),
        (
            {"type": "object", "properties": {"a": {}, "bb": {}}, "propertyNames": {"maxLength": 1}},
            ['{"a":1}'],
            ['{"a":1,"bb":1}'],
        ),
        ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, ["1", "[1]"], ['"a"']),
        ({"allOf": [{"minimum": 2}, {"maximum": 3}], "type": "integer"}, ["2", "3"], ["1", "4"]),
        ({"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, ['"ab"', '"axb"'], ['"a"', '"b"']),
        (
            {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}, "type": "object"},
            ['{"a":1}', '{"b":1}'],
            ['{"a":1,"b":1}', "{}"],
        ),
        (
            {"dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}, "type": "object"},
            ['{"a":1,"b":1}', '{"b":1}', "{}"],
            ['{"a":1}'],
        ),
        ({}, ["1", '{"a":[{}]}', "null", '"x"'], ["{a:1}", ""]),
        (True, ["1"], [""]),
    ],
)
def test_texts_of_a_schema(schema, good, bad):
    """Keyword by keyword: texts that are let through and texts that are not."""
    with capture_logs():
        pristine = of_schema(schema)

    assert [text for text in good if not takes(pristine, text)] == []
    assert [text for text in bad if takes(pristine, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a$", "minLength": 2}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]},
        {"type": "string"},
        {"type": "object", "properties": {"a": 5}},
        {"type": "object", "anyOf": "nothing"},
        {"type": "object", "properties": {str(n): {"type": ["null", "array"], "minItems": n} for n in range(2000)}},
    ],
)
def test_a_hopeless_schema_leaves_any_object(schema):
    """A schema that admits no arguments, or is none, is listed as a whole, logged, and its tool takes any JSON object."""
    with capture_logs() as logs:
        found = rules({"$comment": "not seen before", **schema} if isinstance(schema, dict) else schema, "tool", is_object=True)

    assert found.unenforced == (("$", "*"),)
    assert [entry["event"] for entry in logs] == ["schema.not_enforced"]
    assert takes(matcher(f"start: tool\n{found.text}{BASE}"), '{"a":{"b":[1,"x"]}}')


def test_beyond_the_limits_less_is_enforced():
    """Where llguidance's limits do not reach, lengths and then patterns are given up by name, the rest of the schema is not."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "pattern": "^(a{1,900}|b{1,900}){900}$", "minLength": 9000},
            "b": {"type": "integer"},
        },
        "required": ["a", "b"],
    }

    found = rules(schema, "tool", is_object=True)

    assert found.unenforced == (("$.a", "minLength"),)
    assert not takes(matcher(f"start: tool\n{found.text}{BASE}"), '{"a":"","b":"x"}')


JUNK = [None, True, False, 0, -1, 2, 1.5, "", "a", "object", [], {}, ["a"], {"a": 1}, [{}], "#", "#/$defs/x", "\ud800", 10**30]


def parts_of(node, path=()):
    """(path, part) of everything in a schema."""
    yield path, node
    for step, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from parts_of(inner, (*path, step))


def is_schema(schema):
    """Whether jsonschema takes a schema for one."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        return False
    return True


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 60))])
def test_no_schema_makes_it_raise(seed):
    """Schemas with parts put where they do not belong: rules never raise, and what is still a schema is held to."""
    chosen, rng = random.Random(seed), np.random.default_rng(seed)
    schemas = [one["function"]["parameters"] for one in corpus()]
    parts = [part for schema in schemas for _, part in parts_of(schema)]
    keywords = sorted({path[-1] for schema in schemas for path, _ in parts_of(schema) if path and isinstance(path[-1], str)})
    held = 0
    for _ in range(60):
        schema = copy.deepcopy(chosen.choice(schemas))
        for _ in range(chosen.randint(1, 3)):
            _, node = chosen.choice(list(parts_of(schema)))
            value = copy.deepcopy(chosen.choice(parts + JUNK * 3))
            if isinstance(node, dict):
                node[chosen.choice(keywords)] = value
            elif isinstance(node, list) and node:
                node[chosen.randrange(len(node))] = value
        with capture_logs():
            found = rules(schema, "value", is_object=True)
        if found.unenforced == (("$", "*"),) or not is_schema(schema):
            continue
        held += 1
        text = drawn(of_schema(schema, is_object=True), rng, most=120)
        assert text is None or argument_faults(schema, text) == [], schema
    assert held >= 5


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"allOf": [{"properties": {"a": {}}, "unevaluatedProperties": False}, {"properties": {"b": {}}}], "type": "object"},
            ['{"a":1}', "{}"],
            ['{"b":1}', '{"a":1,"b":1}'],
        ),
        (
            {"allOf": [{"properties": {"a": {}}}], "properties": {"b": {}}, "unevaluatedProperties": False, "type": "object"},
            ['{"a":1,"b":1}'],
            ['{"c":1}'],
        ),
        (
            {
                "anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}],
                "unevaluatedProperties": False,
            },
            ['{"a":1}', '{"b":1}'],
            ['{"a":1,"b":1}'],
        ),
        ({"type": "object", "minProperties": 2, "maxProperties": 1, "properties": {"a": {}}}, ['{"anything":"goes"}'], ["1"]),
    ],
)
def test_what_is_left_over_is_settled_where_it_is_said(schema, good, bad):
    """``unevaluatedProperties`` is about what its own schema declares, options included."""
    with capture_logs():
        pristine = of_schema(schema, is_object=True)

    assert [text for text in good if not takes(pristine, text)] == []
    assert [text for text in bad if takes(pristine, text)] == []


def test_a_hopeless_schema_is_logged_once():
    """The second turn with the same tool says nothing more."""
    schema = {"type": "object", "properties": {"logged once": False}, "required": ["logged once"]}
    with capture_logs() as logs:
        for name in ("tool-1", "tool-2"):
            rules(schema, name, is_object=True)

    assert len(logs) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text('aé"\\\n🙂', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('abé"', max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(value=VALUES, schema=st.sampled_from([{}, None]))
def test_spellings_are_let_through(value, schema):
    """What spellings gives for a value is a text that the rules let through and that is the value."""
    schema = {"const": value} if schema is None else schema

    texts = spellings(schema, value)

    assert any(takes(of_schema(schema), text) for text in texts)
    assert all(json.loads(text) == value for text in texts)


def test_spelling_puts_other_keys_behind():
    """Declared keys come first, in sorted order, others behind them; whole floats have both their forms."""
    schema = {"type": "object", "properties": {"n": {"type": "number"}, "b": {}}, "additionalProperties": {}}

    texts = spellings(schema, {"z": 1, "a": "é", "n": 2.0, "b": None})

    assert '{"b":null,"n":2,"a":"é","z":1}' in texts
    assert '{"b":null,"n":2.0,"a":"é","z":1}' in texts


PATTERNS = [
    r"^[a-z]+$", "foo", "^(a|b)$", "^a$|^b", r"^\d{3}-\d{4}$", r"^\S+@\S+$", r"^(?=.*\d)(?!x)[^\s]{2,}$", r"^\x00$",
    r'^["\\/]+$', r"^[\w.-]+$", "", "^$", r"^(?!foo$|\d)\w+$", r"\D\W\S", "^#([A-Fa-f0-9]{6}|[A-Fa-f0-9]{3})$",
    r"^v?\d+\.\d+(\.\d+)?$", "^.{3,5}$", r'^[^/\\:*?"<>|]+$', "^/([^/]+/)*[^/]*$", r"[\n\t]x", r"^[\x00-\x1f]+$",
    "^é+[α-ω]🙂?$", "(^|x)a(y|$)", r"^[^\W\d_]+$", "^(?:ab){2,}?c*$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_means_to_python(pattern):
    """Random texts of a pattern's terminal are strings in which Python finds the pattern."""
    pristine, rng = of_terminal(terminal(pattern)), np.random.default_rng(5)

    texts = [text for _ in range(60) if (text := drawn(pristine, rng, most=300)) is not None]

    assert [text for text in texts if not re.search(pattern, json.loads(text))] == []


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_a_pattern_is_not_narrower_on_plain_text(pattern, data):
    """Strings of printable ASCII in which Python finds a pattern are let through."""
    value = data.draw(st.from_regex(pattern))
    if value.isascii() and value.isprintable() and re.search(pattern, value):
        assert takes(of_terminal(terminal(pattern)), json.dumps(value))


@pytest.mark.parametrize(
    "pattern", [r"a\bb", "(?i)a", r"\p{L}", r"(a)\1", "a(?=b)c", "x^y", "a*+b", "(?>a)b", "^a{5000}$", "[", "(?<!a)b"]
)
def test_what_no_terminal_says_is_told(pattern):
    """Patterns without a translation are refused by name, never translated to something else."""
    with pytest.raises(Untranslatable):
        terminal(pattern)


CHECKS = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}
EXAMPLES = {
    "date": (["2024-02-29", "1999-12-31", "2000-02-29"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01", "24-1-1"]),
    "time": (["12:00:00Z", "23:59:59.123+02:00"], ["24:00:00Z", "12:00", "12:00:00"]),
    "date-time": (["2024-02-29T00:00:00Z", "2024-01-01T10:20:30.5-05:00"], ["2024-02-29 00:00:00Z", "2024-02-30T00:00:00Z"]),
    "duration": (["P1D", "PT5M", "P1Y2M3DT4H5M6S", "P3W"], ["P", "PT", "1D", "P1S"]),
    "email": (["a.b+c@example.com", "o'x@a-b.co.uk"], ["a@", "@b.c", "a b@c.d", "a..b@c.d"]),
    "hostname": (["example.com", "localhost"], ["-a.b", "a..b", ""]),
    "ipv4": (["0.0.0.0", "192.168.1.255"], ["256.1.1.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["::1", "2001:db8::ff00:42:8329", "1:2:3:4:5:6:7:8", "::"], ["1::2::3", "12345::", ":1"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "uri": (["https://example.com/a?x=1&y=2#z", "mailto:a@b.c", "urn:isbn:1", "file:///etc"], ["plain", "//a.b", "a b:c"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    """Random texts of a format are read by Python's own parser of it, known good texts pass and bad ones do not."""
    pristine, rng = of_terminal(Text(formats=(name,)).terminal()), np.random.default_rng(2)
    good, bad = EXAMPLES[name]

    for _ in range(60):
        text = drawn(pristine, rng)
        if text is not None and name in CHECKS:
            CHECKS[name](json.loads(text))
    assert [text for text in good if not takes(pristine, json.dumps(text))] == []
    assert [text for text in bad if takes(pristine, json.dumps(text))] == []


BOUND = st.none() | st.integers(-1000, 1000) | st.decimals(-50, 50, places=3).map(float)


@given(
    low=BOUND,
    high=BOUND,
    low_open=st.booleans(),
    high_open=st.booleans(),
    value=st.decimals(-1100, 1100, places=4),
    seed=st.integers(0, 99),
)
@example(low=0.001, high=1e9, low_open=True, high_open=True, value=Decimal(0), seed=0)
@example(low=-0.5, high=0, low_open=True, high_open=False, value=Decimal("-0.4999"), seed=0)
def test_intervals(low, high, low_open, high_open, value, seed):
    """A number's text is let through where the number lies between the bounds, and every random text lies there."""
    bounds = [None if bound is None else Decimal(repr(bound)) for bound in (low, high)]
    interval = Interval(*bounds, low_open, high_open)

    def inside(number):
        return (low is None or number > low or (number == low and not low_open)) and (
            high is None or number < high or (number == high and not high_open)
        )

    for text, is_whole in ((decimals(interval), False), (integers(interval), True)):
        written = format(value.normalize() + 0, "f")
        wanted = inside(float(value)) and not (is_whole and "." in written)
        if text is None:
            assert not wanted
            continue
        pristine = of_terminal(text)
        assert takes(pristine, written) == wanted
        for _ in range(3):
            found = drawn(pristine, np.random.default_rng(seed), most=300)
            assert found is None or (inside(json.loads(found)) and np.isfinite(float(found)))


def test_what_is_left_to_be_checked_is_logged_once():
    """A schema with a keyword that the mask does not hold to is named in the log, once however often it is used."""
    schema = {"type": "object", "properties": {"once": {"not": {"type": "string"}}}, "title": "logged once"}
    with capture_logs() as logs:
        for name in ("first", "first", "second"):
            assert rules(schema, name).unenforced == (("$.once", "not"),)

    assert [one["event"] for one in logs] == ["schema.partly_enforced"]
    assert logs[0]["checked_when_called"] == ["$.once: not"]
