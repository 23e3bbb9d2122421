"""Two things that are said to do the same, called with what is drawn until they differ; what they differ on is shrunk.

Hypothesis draws and shrinks. Values come from JSON Schemas as tools have them, and texts from what tokenizers find hard.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import frozen

from k2core.errors import InputError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Drawn = TypeVar("Drawn")
SHRINKING_S = 10.0  # that what two differ on is made simpler for
_MORE = 3  # items of an array or an object beyond the least


@frozen(kw_only=True)
class Disagreement(Generic[Drawn]):
    """Where two differ; the simplest that was found.

    Attributes:
        given: what both were given.
        first, second: what came out, as text.
    """

    given: Drawn
    first: str
    second: str


@frozen(kw_only=True)
class Comparison(Generic[Drawn]):
    """What came of calling two again and again.

    Attributes:
        calls: calls of each until they differed, or all.
        failures: of these, calls that ended as errors on both sides.
        disagreement: None where they always agreed.
        steady: the disagreement came again when it was tried again.
    """

    calls: int
    failures: int = 0
    disagreement: Disagreement[Drawn] | None = None
    steady: bool = True


def compare(
    strategy: "Callable[[], SearchStrategy[Drawn]]",
    call: Callable[[Drawn], tuple[Disagreement[Drawn] | None, bool]],
    *,
    count: int,
    seed: int,
) -> Comparison[Drawn]:
    """Draw until *call* finds a disagreement, then find the simplest.

    Args:
        strategy: makes the strategy, so that Hypothesis is needed only here.
        call: gives the disagreement, if any, and whether both failed.
        count: how many are drawn at most; fewer where there are no more.
        seed: of what is drawn.

    Raises:
        InputError: Hypothesis is missing, or nothing can be drawn.
    """
    try:
        from hypothesis import HealthCheck, given, settings
        from hypothesis import seed as seeded
        from hypothesis.errors import Flaky, Unsatisfiable
    except ImportError as error:
        raise InputError("drawing what to compare with needs Hypothesis. Install it with: pip install hypothesis") from error
    found: list[Disagreement[Drawn]] = []
    known: dict[str, Disagreement[Drawn]] = {}
    calls = failures = 0
    until = math.inf

    @seeded(seed)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(strategy())
    def agree(drawn: Drawn) -> None:
        nonlocal calls, failures, until
        if time.monotonic() > until:  # simple enough: nothing is called any more
            disagreement, both_failed = known.get(repr(drawn)), False
        else:
            disagreement, both_failed = call(drawn)
        if not found:
            calls, failures = calls + 1, failures + both_failed
        if disagreement is not None:
            if not found:
                until = time.monotonic() + SHRINKING_S
            found.append(disagreement)
            known[repr(drawn)] = disagreement
            raise AssertionError

    try:
        agree()
    except AssertionError:
        return Comparison(calls=calls, failures=failures, disagreement=found[-1])  # what shrinking ended at
    except Flaky:
        return Comparison(calls=calls, failures=failures, disagreement=found[-1], steady=False)
    except Unsatisfiable as error:
        raise InputError("nothing can be drawn: what is asked for contradicts itself") from error
    return Comparison(calls=calls, failures=failures)


def values_of(schema: Mapping[str, Any] | bool, words: Sequence[str] = ()) -> "SearchStrategy[Any]":
    """A strategy for the values of a JSON Schema as tools have them, its ``examples`` and ``default`` among them.

    Args:
        schema: without references.
        words: strings are drawn from these, besides any text.

    Raises:
        InputError: the schema has what nobody can draw from here; says what.
    """
    import jsonschema

    drawn = _values(schema, words)
    if isinstance(schema, bool):
        return drawn
    validator = jsonschema.Draft202012Validator(schema)
    return drawn.filter(validator.is_valid)


def texts(most: int = 40) -> "SearchStrategy[str]":
    """Any text that can be stored: scripts, digits, white space, marks, emoji, and mixtures of them."""
    from hypothesis import strategies as st

    plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=most)
    common = st.text("ab Zé1,.\n", max_size=most)
    return plain | common


def _values(schema: Mapping[str, Any] | bool, words: Sequence[str]) -> "SearchStrategy[Any]":
    from hypothesis import strategies as st

    if schema is True or schema == {}:
        return st.none() | st.booleans() | st.integers() | texts(10)
    if schema is False or "$ref" in schema or "not" in schema or "if" in schema:
        raise _undrawable(schema)
    known = [*schema.get("examples", ()), *([schema["default"]] if "default" in schema else [])]
    drawn = _typed(schema, words)
    return st.sampled_from(known) | drawn if known else drawn


def _typed(schema: Mapping[str, Any], words: Sequence[str]) -> "SearchStrategy[Any]":
    from hypothesis import strategies as st

    if "enum" in schema or "const" in schema:
        return st.sampled_from(list(schema.get("enum", [schema.get("const")])))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            rest = {key: value for key, value in schema.items() if key != keyword}
            return st.one_of([_values({**rest, **option}, words) for option in schema[keyword]])
    kinds = schema.get("type", "object" if "properties" in schema else ())
    if not kinds:
        raise _undrawable(schema)
    makers: dict[str, Callable[[], SearchStrategy[Any]]] = {
        "null": st.none,
        "boolean": st.booleans,
        "string": lambda: _strings(schema, words),
        "integer": lambda: _numbers(schema, whole=True),
        "number": lambda: _numbers(schema, whole=False),
        "array": lambda: _arrays(schema, words),
        "object": lambda: _objects(schema, words),
    }
    return st.one_of([makers[kind]() for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _strings(schema: Mapping[str, Any], words: Sequence[str]) -> "SearchStrategy[str]":
    from hypothesis import strategies as st

    least, most = schema.get("minLength", 0), schema.get("maxLength", schema.get("minLength", 0) + 30)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=most)
    if not words:
        return text
    return st.lists(st.sampled_from(words), min_size=1, max_size=6).map(" ".join) | text


def _numbers(schema: Mapping[str, Any], *, whole: bool) -> "SearchStrategy[Any]":
    from hypothesis import strategies as st

    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    step = schema.get("multipleOf")
    if step is not None:
        bounds = [None if math.isinf(one) else round(one / step) for one in (low, high)]
        return st.integers(*bounds).map(lambda one: one * step)
    integers = st.integers(None if low == -math.inf else math.ceil(low), None if high == math.inf else math.floor(high))
    if whole:
        return integers
    return st.floats(
        None if low == -math.inf else low, None if high == math.inf else high, allow_nan=False, allow_infinity=False
    )


def _arrays(schema: Mapping[str, Any], words: Sequence[str]) -> "SearchStrategy[list[Any]]":
    from hypothesis import strategies as st

    least = schema.get("minItems", 0)
    most = schema.get("maxItems", least + _MORE)
    first = [_values(one, words) for one in schema.get("prefixItems", ())]
    rest = schema.get("items", True)
    if not first:
        return st.lists(_values(rest, words), min_size=least, max_size=most)
    more: SearchStrategy[list[Any]] = st.just([]) if rest is False else st.lists(_values(rest, words), max_size=_MORE)
    return st.builds(lambda start, end: [*start, *end], st.tuples(*first), more)


def _objects(schema: Mapping[str, Any], words: Sequence[str]) -> "SearchStrategy[dict[str, Any]]":
    from hypothesis import strategies as st

    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    if required - properties.keys():
        raise _undrawable(schema)
    extra = schema.get("additionalProperties", True)
    if not properties and extra is not False:
        values = _values(extra, words)
        return st.dictionaries(texts(10), values, min_size=schema.get("minProperties", 0), max_size=_MORE)
    return st.fixed_dictionaries(
        {name: _values(one, words) for name, one in properties.items() if name in required},
        optional={name: _values(one, words) for name, one in properties.items() if name not in required},
    )


def _undrawable(schema: object) -> InputError:
    text = json.dumps(schema)
    return InputError(f"cannot draw values from the schema {text if len(text) <= 200 else text[:199] + '…'}")


def words_of(text: str) -> list[str]:
    """The words of *text*, each once, sorted."""
    return sorted(set(re.findall(r"\w+", text)))
