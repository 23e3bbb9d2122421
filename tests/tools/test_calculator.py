"""The calculator agrees with Python's Fraction, writes its three forms, and ends every bad expression in a typed error."""

import json
import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k2core.errors import ToolError
from k2core_specs import load
from k2core_tools.calculator import ExpressionError, calculator, evaluate, render
from k2core_tools.numbers import approximate, decimal_places, parse_number, round_half_up

rationals = st.builds(Fraction, st.integers(-(10**15), 10**15), st.integers(1, 10**9))
decimals = st.builds(lambda whole, places: (Fraction(whole, 10**places), places), st.integers(0, 10**9), st.integers(0, 6))


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> tuple[str, Fraction]:
    """An expression as text with the value that Fraction arithmetic gives it; every operation is parenthesised."""
    if depth == 0 or draw(st.booleans()):
        value, places = draw(decimals)
        return (render(value) if places else str(value.numerator)), value
    left, x = draw(trees(depth=depth - 1))
    right, y = draw(trees(depth=depth - 1))
    operator = draw(st.sampled_from(["+", "-", "*", "/", "%", "**", "neg", "abs", "min", "max", "pct"]))
    if operator == "**":
        power = draw(st.integers(-3, 3))
        if x == 0 and power < 0:
            return f"({left})", x
        return f"({left}){draw(st.sampled_from(['**', '^', ' ** ']))}{power}", x**power
    if operator in ("/", "%") and y == 0:
        operator = "+"
    if operator in ("neg", "abs", "pct"):
        return {"neg": (f"-({left})", -x), "abs": (f"abs({left})", abs(x)), "pct": (f"({left})%", x / 100)}[operator]
    if operator in ("min", "max"):
        return f"{operator}({left}, {right})", min(x, y) if operator == "min" else max(x, y)
    values = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y, "%": lambda: x % y}
    space = draw(st.sampled_from(["", " "]))
    return f"({left}){space}{operator}{space}({right})", values[operator]()


@given(tree=trees())
def test_agrees_with_fraction_arithmetic_on_random_trees(tree: tuple[str, Fraction]) -> None:
    """Whatever tree is drawn, the calculator's value is Python's Fraction value."""
    text, value = tree
    if max(value.numerator.bit_length(), value.denominator.bit_length()) < 3000:
        assert evaluate(text) == value


@given(numbers=st.lists(st.integers(0, 999), min_size=1, max_size=8), data=st.data())
def test_precedence_agrees_with_python(numbers: list[int], data: st.DataObject) -> None:
    """Without parentheses, + - * and unary minus bind as they do in Python."""
    operators = data.draw(
        st.lists(st.sampled_from(["+", "-", "*", " - -", "*-", "+-"]), min_size=len(numbers) - 1, max_size=len(numbers) - 1)
    )
    text = str(numbers[0]) + "".join(operator + str(number) for operator, number in zip(operators, numbers[1:], strict=True))
    assert evaluate(text) == eval(text)


@given(text=st.text(alphabet="0123456789.+-*/%^() ,eabsminroundqrtmaxπ×÷−\n'\"", max_size=60))
@example("9**9**9**9")
@example("1" * 3000)
@example("(" * 100 + "1" + ")" * 100)
@example("-" * 500 + "1")
@example("1e99999999999")
@example("2**-99999")
@example("sqrt(2)")
@example("1%%%%%")
def test_any_text_ends_at_once_in_a_value_or_a_typed_error(text: str) -> None:
    """No text hangs the calculator or escapes as another exception, and an error is one line."""
    started = time.perf_counter()
    try:
        result = calculator.function(expression=text)
    except ExpressionError as error:
        result = str(error)
        assert error.position is None or 1 <= error.position <= len(text) + 1
    assert result
    assert "\n" not in result
    assert time.perf_counter() - started < 1.0


@given(value=rationals)
def test_what_is_written_reads_back_as_the_same_value(value: Fraction) -> None:
    """parse_number(render(value)) is value, and a terminating decimal is written without a fraction bar."""
    text = render(value)
    assert parse_number(text) == value
    assert ("/" in text) == (decimal_places(value) is None)
    assert "e" not in text.partition(" (about")[0]


@given(value=rationals, places=st.integers(-4, 6))
def test_rounding_is_at_most_half_a_unit_away(value: Fraction, places: int) -> None:
    """round(x, digits) is a multiple of the unit, at most half of it away, and goes away from zero on a tie."""
    unit = Fraction(1, 10) ** places
    rounded = round_half_up(value, places)
    assert (rounded / unit).denominator == 1
    assert abs(rounded - value) <= unit / 2
    assert abs(rounded - value) < unit / 2 or abs(rounded) > abs(value)
    assert evaluate(f"round({value.numerator}/{value.denominator}, {places})") == rounded


@given(value=rationals.filter(bool))
def test_approximation_has_twelve_digits(value: Fraction) -> None:
    """The approximation is within half a unit of the twelfth significant digit."""
    text = approximate(value)
    assert abs(Fraction(text) - value) <= abs(value) * Fraction(1, 2 * 10**11)
    assert len(re.sub(r"^0+", "", text.lstrip("-").partition("e")[0].replace(".", "")).rstrip("0")) <= 12


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("23*47", "1081"),
        ("47/2", "23.5"),
        ("1082/47", "1082/47 (about 23.0212765957)"),
        ("1/3", "1/3 (about 0.333333333333)"),
        ("-2**2", "-4"),
        ("2^3^2", "512"),
        ("2**-2", "0.25"),
        ("15%", "0.15"),
        ("15% * 80", "12"),
        ("17 % 5", "2"),
        ("-17 % 5", "3"),
        ("10% - 3", "-2.9"),
        ("200*(1+15%)", "230"),
        ("6 × 7 ÷ 2 − 1", "20"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-3"),
        ("round(1082/47, 2)", "23.02"),
        ("sqrt(16)", "4"),
        ("sqrt(2.25)", "1.5"),
        ("max(1, 2, 1/3)", "2"),
        ("abs(-0.0)", "0"),
        ("1.50", "1.5"),
        (".5+5.", "5.5"),
        ("6.02e23", "602" + "0" * 21),
        ("1/2**41", f"1/{2**41} (about 4.54747350886e-13)"),
        ("1**9**9", "1"),
        ("(-1)**(10**30+1)", "-1"),
        ("0**0", "1"),
    ],
)
def test_results_have_the_frozen_forms(expression: str, result: str) -> None:
    """Integers, plain decimals and rationals with twelve digits, exactly as the embedded model was taught."""
    assert calculator.function(expression=expression) == result


@pytest.mark.parametrize(
    ("expression", "message", "position"),
    [
        ("1/0", "division by zero", 2),
        ("5%0", "division by zero", 2),
        ("0**-1", "division by zero", 2),
        ("", "the expression is empty; write one like 23*47", 1),
        ("23*", "expected a number at position 4, found the end", 4),
        ("23**47x", "expected an operator at position 7, found 'x'", 7),
        ("1,081+2", "unexpected ',' at position 2; write numbers without thousands separators", 2),
        ("(1,081)+2", "unexpected ',' at position 3; write numbers without thousands separators", 3),
        ("(1+2", "expected ')' at position 5 for '(' at position 1, found the end", 5),
        ("2 $ 3", "unexpected '$' at position 3", 3),
        ("sqr(4)", "no function 'sqr' at position 1. Known: abs, max, min, round, sqrt. Did you mean 'sqrt'?", 1),
        ("sqrt(2)", "sqrt at position 1 is not exact: about 1.41421356237", 1),
        ("sqrt(-4)", "sqrt at position 1 of the negative number -4", 1),
        ("2**0.5", "the exponent 0.5 at position 2 is not an integer", 2),
        ("9**9**9**9", "the value at position 5 has more than 1000 digits", 5),
        ("abs(1,2)", "abs at position 1 takes 1 argument, found 2", 1),
        ("2(3)", "expected an operator at position 2, found '('", 2),
    ],
)
def test_errors_say_what_and_where(expression: str, message: str, position: int) -> None:
    """A bad expression names what was found and the position, counted from 1."""
    with pytest.raises(ExpressionError) as caught:
        evaluate(expression)
    assert str(caught.value) == message
    assert caught.value.position == position


def test_declaration_is_what_the_embedded_model_was_trained_on() -> None:
    """The calculator's declaration is byte for byte the one in the episode format."""
    declared = load("formats/nano_episode.toml")["tools"]["calculator"]
    assert json.dumps(calculator.declaration(), sort_keys=True, separators=(",", ":"), ensure_ascii=False) == declared
    assert calculator.effect == "pure"


@pytest.mark.parametrize("text", ["", "abc", "1/0", "1..2", "1 2", "٣", "1e9999", "--1", "1,08", "9" * 3000])
def test_text_that_is_no_number_is_refused(text: str) -> None:
    """parse_number raises a typed error for anything that is no number."""
    with pytest.raises(ToolError):
        parse_number(text)
