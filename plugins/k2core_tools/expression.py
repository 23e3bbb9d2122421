"""The calculator's grammar: text to an exact rational, by recursive descent, without eval.

::

    sum      = product (("+" | "-") product)*
    product  = signed (("*" | "/" | "%") signed)*
    signed   = ("-" | "+") signed | power
    power    = percent (("**" | "^") signed)?            right-associative; the exponent is an integer
    percent  = atom "%"*                                 per cent, when no operand follows the sign
    atom     = number | "(" sum ")" | function "(" sum ("," sum)* ")"
    function = abs | max | min | round | sqrt

``×``, ``·``, ``÷``, ``−`` and ``–`` stand for ``*``, ``*``, ``/``, ``-`` and ``-``. The sign ``%`` is the remainder when an
operand follows it (``17 % 5`` is 2, with the divisor's sign as in Python) and per cent otherwise (``15%`` is 0.15,
``15% * 80`` is 12); a ``+`` or ``-`` after it is taken as an operator, so ``10% - 3`` is -2.9. ``-2**2`` is -4.
``round(x)`` and ``round(x, digits)`` round halves away from zero.
"""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from attrs import define, field, frozen

from k2core.errors import ToolError, nearest
from k2core_tools.numbers import MAX_DIGITS, approximate, render, round_half_up

MAX_LENGTH = 2000  # characters of an expression
MAX_DEPTH = 40  # nested parentheses, signs and exponents
_MAX_BITS = int(MAX_DIGITS * math.log2(10))
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>\*\*|[-+*/%^(),]))", re.ASCII
)
_SAME = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"})


class ExpressionError(ToolError):
    """An expression that has no exact value here.

    Attributes:
        position: where it went wrong, counted in characters from 1; None where the whole is meant.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        self.position = position
        super().__init__(message)


def evaluate(expression: str) -> Fraction:
    """The exact value of *expression*.

    Time is bounded: expressions have at most 2000 characters and 40 levels, values at most 1000 digits, and a power is
    refused before it is computed.

    Raises:
        ExpressionError: it is malformed, divides by zero, has an irrational root, or grows beyond the limits.
    """
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(
            f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are allowed", MAX_LENGTH + 1
        )
    parser = _Parser(tokens=_tokens(expression))
    value = parser.sum()
    parser.expect_end()
    return value


@frozen
class _Token:
    kind: str  # number, name, sign, end
    text: str
    position: int


def _tokens(expression: str) -> list[_Token]:
    text = expression.translate(_SAME)
    tokens, at = [], 0
    while match := _TOKEN.match(text, at):
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind) + 1))
        at = match.end()
    rest = text[at:].lstrip()
    if rest:
        raise ExpressionError(f"unexpected {rest[0]!r} at position {len(text) - len(rest) + 1}", len(text) - len(rest) + 1)
    if not tokens:
        raise ExpressionError("the expression is empty; write one like 23*47", 1)
    tokens.append(_Token("end", "", len(text) + 1))
    return tokens


@define
class _Parser:
    tokens: list[_Token]
    at: int = 0
    depth: int = 0
    _calls: int = field(default=0)  # open function calls, where a comma means a next argument

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.take("+", "-")) is not None:
            right = self.product()
            value = self.bounded(value + right if sign.text == "+" else value - right, sign)
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while (sign := self.take("*", "/", "%")) is not None:
            right = self.signed()
            if sign.text != "*" and right == 0:
                raise ExpressionError("division by zero", sign.position)
            value = self.bounded(
                value * right if sign.text == "*" else value / right if sign.text == "/" else value % right, sign
            )
        return value

    def signed(self) -> Fraction:
        sign = self.take("-", "+")
        if sign is None:
            return self.power()
        value = self.nested(self.signed, sign)
        return -value if sign.text == "-" else value

    def power(self) -> Fraction:
        base = self.percent()
        sign = self.take("**", "^")
        if sign is None:
            return base
        exponent = self.nested(self.signed, sign)
        return self.bounded(_power(base, exponent, sign), sign)

    def percent(self) -> Fraction:
        value = self.atom()
        while self.peek.text == "%" and not self.operand_follows():
            sign = self.next()
            value = self.bounded(value / 100, sign)
        return value

    def atom(self) -> Fraction:
        token = self.next()
        if token.kind == "number":
            return self.bounded(_number(token), token)
        if token.kind == "name":
            return self.bounded(self.function(token), token)
        if token.text == "(":
            calls, self._calls = self._calls, 0
            value = self.nested(self.sum, token)
            self._calls = calls
            self.close(token)
            return value
        found = "the end" if token.kind == "end" else f"'{token.text}'"
        raise ExpressionError(f"expected a number at position {token.position}, found {found}", token.position)

    def function(self, name: _Token) -> Fraction:
        known = _FUNCTIONS.get(name.text.lower())
        if known is None:
            near = nearest(name.text, _FUNCTIONS)
            hint = f" Did you mean '{near}'?" if near else ""
            raise ExpressionError(
                f"no function '{name.text}' at position {name.position}. Known: {', '.join(_FUNCTIONS)}.{hint}", name.position
            )
        opening = self.take("(")
        if opening is None:
            raise ExpressionError(f"expected '(' after {name.text} at position {self.peek.position}", self.peek.position)
        self._calls += 1
        values = [self.nested(self.sum, opening)]
        while self.take(",") is not None:
            values.append(self.nested(self.sum, opening))
        self._calls -= 1
        self.close(opening)
        return known(values, name)

    def nested(self, rule: Callable[[], Fraction], token: _Token) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} levels of nesting at position {token.position}", token.position)
        value = rule()
        self.depth -= 1
        return value

    def bounded(self, value: Fraction, token: _Token) -> Fraction:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            raise _too_large(token)
        return value

    @property
    def peek(self) -> _Token:
        return self.tokens[self.at]

    def next(self) -> _Token:
        token = self.tokens[self.at]
        if token.kind != "end":
            self.at += 1
        return token

    def take(self, *texts: str) -> _Token | None:
        return self.next() if self.peek.kind == "sign" and self.peek.text in texts else None

    def operand_follows(self) -> bool:
        after = self.tokens[self.at + 1]
        return after.kind in ("number", "name") or after.text == "("

    def close(self, opening: _Token) -> None:
        if self.take(")") is None:
            self.reject_comma()
            found = "the end" if self.peek.kind == "end" else f"'{self.peek.text}'"
            raise ExpressionError(
                f"expected ')' at position {self.peek.position} for '(' at position {opening.position}, found {found}",
                self.peek.position,
            )

    def expect_end(self) -> None:
        token = self.peek
        self.reject_comma()
        if token.kind != "end":
            raise ExpressionError(f"expected an operator at position {token.position}, found '{token.text}'", token.position)

    def reject_comma(self) -> None:
        if self.peek.text == "," and not self._calls:
            position = self.peek.position
            raise ExpressionError(
                f"unexpected ',' at position {position}; write numbers without thousands separators", position
            )


def _number(token: _Token) -> Fraction:
    mantissa, _, exponent = token.text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or (exponent and (len(exponent) > 5 or abs(int(exponent)) > MAX_DIGITS)):
        raise _too_large(token)
    return Fraction(mantissa + "0" if mantissa.endswith(".") else mantissa) * Fraction(10) ** int(exponent or 0)


def _power(base: Fraction, exponent: Fraction, sign: _Token) -> Fraction:
    if exponent.denominator != 1:
        raise ExpressionError(f"the exponent {render(exponent)} at position {sign.position} is not an integer", sign.position)
    if base == 0 and exponent < 0:
        raise ExpressionError("division by zero", sign.position)
    if base in (0, 1, -1):
        return base ** (abs(exponent.numerator) % 2 + 2 if exponent else 0)  # 9**9**9 may stand in the exponent
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    if bits * abs(exponent.numerator) > _MAX_BITS:
        raise _too_large(sign)
    return base**exponent.numerator


def _too_large(token: _Token) -> ExpressionError:
    return ExpressionError(f"the value at position {token.position} has more than {MAX_DIGITS} digits", token.position)


def _one(values: Sequence[Fraction], name: _Token) -> Fraction:
    if len(values) != 1:
        raise ExpressionError(f"{name.text} at position {name.position} takes 1 argument, found {len(values)}", name.position)
    return values[0]


def _abs(values: Sequence[Fraction], name: _Token) -> Fraction:
    return abs(_one(values, name))


def _max(values: Sequence[Fraction], name: _Token) -> Fraction:
    return max(values)


def _min(values: Sequence[Fraction], name: _Token) -> Fraction:
    return min(values)


def _round(values: Sequence[Fraction], name: _Token) -> Fraction:
    if len(values) > 2:
        raise ExpressionError(f"round at position {name.position} takes 1 or 2 arguments, found {len(values)}", name.position)
    digits = values[1] if len(values) == 2 else Fraction(0)
    if digits.denominator != 1 or abs(digits) > MAX_DIGITS // 2:
        raise ExpressionError(f"round at position {name.position} takes whole digits up to {MAX_DIGITS // 2}", name.position)
    return round_half_up(values[0], digits.numerator)


def _sqrt(values: Sequence[Fraction], name: _Token) -> Fraction:
    value = _one(values, name)
    if value < 0:
        raise ExpressionError(f"sqrt at position {name.position} of the negative number {render(value)}", name.position)
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root == value:
        return root
    scale = 10**40  # forty decimals below the leading digit are far more than the twelve that are shown
    shift = scale * scale * max(1, 10 ** (2 * max(0, len(str(value.denominator)) - len(str(value.numerator)))))
    about = Fraction(math.isqrt(value.numerator * shift // value.denominator), math.isqrt(shift))
    raise ExpressionError(f"sqrt at position {name.position} is not exact: about {approximate(about)}", name.position)


_FUNCTIONS: dict[str, Callable[[Sequence[Fraction], _Token], Fraction]] = {
    "abs": _abs,
    "max": _max,
    "min": _min,
    "round": _round,
    "sqrt": _sqrt,
}
