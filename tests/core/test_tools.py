"""Tools: schema from a signature, every argument error with its path, deadlines, bounded results."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from k2core import tool
from k2core.errors import PluginError, ToolError
from k2core.interfaces import ToolResult
from k2core.messages import ToolCall
from k2core.toolmaking import check_tool
from k2core.tools import Registry


@tool(effect="read")
def weather(city: str, days: int = 1, scale: Literal["C", "F"] = "C") -> str:
    """Say what the weather
    will be.

    Args:
        city: a city's name,
            in English.
        days: how many days ahead.
    """
    return f"{city} {days} {scale}"


def call(registry: Registry, name: str, arguments: object) -> ToolResult:
    """The result of one call with its arguments given as JSON text or as an object."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return asyncio.run(registry.call(ToolCall(id=f"functions.{name}:0", name=name, arguments=text)))


def test_a_schema_comes_from_hints_and_docstring() -> None:
    """Types, defaults, choices and descriptions of a function end up in its declaration; unknown arguments are refused."""
    function = weather.declaration()["function"]

    assert function["description"] == "Say what the weather will be."
    assert function["parameters"] == {
        "type": "object",
        "additionalProperties": False,
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "description": "a city's name, in English."},
            "days": {"type": "integer", "default": 1, "description": "how many days ahead."},
            "scale": {"enum": ["C", "F"], "default": "C"},
        },
    }


def test_every_argument_error_is_named_with_its_path() -> None:
    """A call with three mistakes gets three findings, each with its path."""
    result = call(Registry.of([weather]), "weather", {"days": "two", "scale": "K"})

    assert not result.ok and result.text.startswith("error: invalid arguments: ")
    assert all(
        piece in result.text for piece in ("$: 'city' is a required property", "$.days: 'two' is not", "$.scale: 'K' is not")
    )


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("wether", "{}", "error: no tool 'wether'. Known: weather. Did you mean 'weather'?"),
        ("weather", '{"city":', "error: invalid arguments: not JSON"),
        ("weather", "[1]", "error: invalid arguments: $: [1] is not of type 'object'"),
        ("weather", {"city": "Oslo"}, "Oslo 1 C"),
        ("weather", {"city": "Oslo", "days": 3, "scale": "F"}, "Oslo 3 F"),
    ],
)
def test_calls_give_results_or_observations(name: str, arguments: object, expected: str) -> None:
    """Unknown names and malformed arguments are observations for the model, never exceptions."""
    assert call(Registry.of([weather]), name, arguments).text.startswith(expected)


@given(
    arguments=st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_no_arguments_can_raise(arguments: object) -> None:
    """Whatever a model writes as arguments, a call returns a result."""
    assert isinstance(call(Registry.of([weather]), "weather", arguments), ToolResult)


def returning(value: Any) -> Callable[..., Any]:
    """A tool that returns *value*."""

    @tool(effect="pure", timeout_s=0.2, name="one")
    def one() -> Any:
        """Return it."""
        return value() if callable(value) else value

    return one


def hang() -> None:
    """Sleep far beyond any deadline."""
    time.sleep(5)


def fail() -> None:
    """Raise what a careless tool raises."""
    raise KeyError("lost\nkey")


def leave() -> None:
    """Try to end the process."""
    raise SystemExit(3)


def refuse() -> None:
    """Raise what a careful tool raises."""
    raise ToolError("no such city")


@pytest.mark.parametrize(
    ("value", "ok", "expected"),
    [
        ("text", True, "text"),
        ({"b": 1, "a": "é"}, True, '{"b":1,"a":"é"}'),
        (b"bytes", True, "bytes"),
        (b"\xff\xfe", False, "error: the tool returned 2 bytes that are not UTF-8 text"),
        (object(), False, "error: the tool returned object, which is neither text nor JSON"),
        (hang, False, "error: timed out after 0.2 s"),
        (fail, False, "error: KeyError: 'lost\\nkey'"),
        (leave, False, "error: RuntimeError: SystemExit: 3"),
        (refuse, False, "error: no such city"),
        ("\ud800", True, "?"),
    ],
)
def test_what_a_tool_does_becomes_text(value: Any, ok: bool, expected: str) -> None:
    """Text, JSON, bytes, failures, hangs and exits all end as a result the model can read."""
    result = call(Registry.of([returning(value)]), "one", {})

    assert (result.ok, result.text) == (ok, expected)


def test_a_huge_result_is_cut_and_says_so() -> None:
    """A result of 100 MB is cut to the limit, with its full size recorded."""
    result = call(Registry.of([returning("x" * 100_000_000)], result_limit=1000), "one", {})

    assert result.truncated and result.full_bytes == 100_000_000
    assert result.text == "x" * 1000 + "\n[cut: 1000 of 100000000 characters shown]"


def test_typed_arguments_arrive_typed() -> None:
    """A structured parameter reaches the function as its own type, and its constraints are checked."""

    class Point(msgspec.Struct):
        x: float
        y: float

    @tool(effect="pure")
    def norm(point: Point, power: Annotated[int, msgspec.Meta(ge=1)]) -> str:
        """Compute a norm."""
        return f"{type(point).__name__} {point.x + point.y} {power}"

    registry = Registry.of([norm])
    assert call(registry, "norm", {"point": {"x": 1, "y": 2}, "power": 2}).text == "Point 3.0 2"
    assert "$.power: 0 is less than the minimum of 1" in call(registry, "norm", {"point": {"x": 1, "y": 2}, "power": 0}).text


def test_functions_that_no_schema_fits_are_refused() -> None:
    """A parameter without a hint, a variadic one, or a type that JSON lacks is refused when the tool is made."""

    def no_hint(x):  # type: ignore[no-untyped-def]
        """Lack a hint."""

    def variadic(*x: int) -> None:
        """Take any number."""

    def odd(x: Callable[[], int]) -> None:
        """Take a function."""

    for function, piece in ((no_hint, "no type hint"), (variadic, "variadic"), (odd, "cannot make a tool of 'odd'")):
        with pytest.raises(PluginError, match=piece):
            tool(function)


@pytest.mark.parametrize("word", [{"pattern": "(?<n>a"}, {"pattern": "\\p{L}"}, {"type": "odd"}])
def test_a_schema_that_cannot_be_read_is_refused(word: dict[str, str]) -> None:
    """Parameters that no call could be checked against are refused when the tool is registered."""
    with pytest.raises(PluginError, match="'weather': its parameters are no JSON Schema"):
        check_tool(evolve(weather, parameters={"type": "object", "properties": {"city": word}}))


def test_two_tools_of_one_name_are_refused() -> None:
    """A registry holds one tool of each name."""
    with pytest.raises(PluginError, match="'weather'"):
        Registry.of([weather, weather])
