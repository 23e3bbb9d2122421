"""Exact numbers as text: how calculator, units and the verifiers write a rational and read one.

An integer is written as its digits, a terminating decimal in plain notation, and any other rational as
``1082/47 (about 23.0212765957)`` with twelve significant digits.
"""

import decimal
import re
from fractions import Fraction

from k2core.errors import ToolError

MAX_DIGITS = 1000  # of a numerator or denominator, so that no result floods a context or takes noticeable time
MAX_PLACES = 40  # decimals written out; a terminating decimal with more is written as a rational
ABOUT_DIGITS = 12
_NUMBER = re.compile(r"([+-]?)(\d+(?:,\d{3})+|\d+)?(?:\.(\d*))?(?:[eE]([+-]?\d{1,4}))?")


def render(value: Fraction) -> str:
    """*value* as the calculator writes it; see the module's first lines for the three forms."""
    if value.denominator == 1:
        return str(value.numerator)
    places = decimal_places(value)
    if places is not None and places <= MAX_PLACES:
        return _plain(value, places)
    return f"{value.numerator}/{value.denominator} (about {approximate(value)})"


def approximate(value: Fraction, digits: int = ABOUT_DIGITS) -> str:
    """*value* rounded half to even to *digits* significant digits, trailing zeros removed.

    Below 10^-4 and from 10^digits on it is written like ``3.33333333333e-05``.
    """
    with decimal.localcontext() as context:
        context.prec = digits
        rounded = decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)
    if rounded and not -4 <= rounded.adjusted() < digits:
        mantissa, exponent = rounded.normalize().scaleb(-rounded.adjusted()), rounded.adjusted()
        return f"{mantissa:f}e{exponent:+03d}"
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def decimal_places(value: Fraction) -> int | None:
    """How many decimals write *value* exactly: 0 for an integer, None if no finite number does."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None


def parse_number(text: str) -> Fraction:
    """The value of a number as people and the calculator write it.

    Accepts ``1081``, ``-3.5``, ``1,081``, ``6.02e23``, ``1082/47`` and ``1082/47 (about 23.0212765957)``.

    Raises:
        ToolError: *text* is no such number, or has more than 1000 digits.
    """
    body = re.sub(r"\s*\(about [^()]*\)$", "", text.strip().replace("−", "-"))
    parts = [_parse_decimal(part.strip()) for part in body.split("/", 1)] if len(body) <= 2 * MAX_DIGITS else [None]
    values = [part for part in parts if part is not None]
    if len(values) != len(parts):
        shown = text if len(text) <= 40 else text[:39] + "…"
        raise ToolError(f"'{shown}' is not a number. Write it like 23.5")
    if len(values) == 1:
        return values[0]
    if values[1] == 0:
        raise ToolError("division by zero")
    return values[0] / values[1]


def round_half_up(value: Fraction, places: int) -> Fraction:
    """*value* rounded to *places* decimals (negative: to tens, hundreds …), halves away from zero."""
    scale = Fraction(10) ** places
    scaled = abs(value) * scale
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    return Fraction(whole if value >= 0 else -whole) / scale


def _parse_decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None or not text.isascii() or (match[2] is None and not match[3]):
        return None
    if match[4] is not None and abs(int(match[4])) > MAX_DIGITS:
        return None
    fraction = match[3] or ""
    value = Fraction(int((match[2] or "0").replace(",", "") + fraction), 10 ** len(fraction))
    if match[4] is not None:
        value *= Fraction(10) ** int(match[4])
    return -value if match[1] == "-" else value


def _plain(value: Fraction, places: int) -> str:
    digits = str(abs(value.numerator) * (10**places // value.denominator)).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}"
