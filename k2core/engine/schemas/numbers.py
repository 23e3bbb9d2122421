"""Ranges of numbers as terminals over their JSON texts.

Texts are plain decimals without a sign on zero, of at most `MOST_DIGITS` digits before the point and `MOST_DECIMALS` behind it,
so every one is a finite float. A number that has no bound, or none but 0, may have an exponent as well. A bound is compared
with the text itself; beside a bound a text has no more digits than a float keeps apart, so rounding does not carry it over.
"""

from decimal import Decimal
from math import ceil, floor

from attrs import frozen

MOST_DIGITS = 200
MOST_DECIMALS = 25
SIGNIFICANT = 15  # decimal digits that a float keeps apart
_WHOLE = rf"(?:0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}})"
_FRACTION = rf"(?:\.[0-9]{{1,{MOST_DECIMALS}}})?"
_NOT_ZERO = r"[0.]*[1-9][0-9.]*"
_EXPONENT = r"[eE][+-]?(?:[0-9]{1,2}|[01][0-9]{2}|2[0-8][0-9])"  # neither to infinity nor to nothing, with 17 digits before
_SHORT_WHOLE = r"(?:0|[1-9][0-9]{0,16})"


@frozen
class Interval:
    """Numbers between two bounds; None is no bound.

    Attributes:
        low: the least.
        high: the greatest.
        low_open: *low* itself is not among them.
        high_open: *high* itself is not among them.
    """

    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False

    @property
    def is_empty(self) -> bool:
        """No number is among them."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def whole(self) -> "Interval":
        """The integers among them, with bounds that are integers."""
        low = None if self.low is None else ceil(self.low) + (self.low_open and self.low == ceil(self.low))
        high = None if self.high is None else floor(self.high) - (self.high_open and self.high == floor(self.high))
        return Interval(None if low is None else Decimal(low), None if high is None else Decimal(high))

    def within(self, keyword: str, bound: Decimal) -> "Interval":
        """With one bound of JSON Schema more, by its keyword: ``minimum``, ``exclusiveMinimum``, ``maximum`` or
        ``exclusiveMaximum``."""
        is_open = keyword.startswith("exclusive")
        if keyword.lower().endswith("minimum"):
            if self.low is not None and (self.low, self.low_open) >= (bound, is_open):
                return self
            return Interval(bound, self.high, is_open, self.high_open)
        if self.high is not None and (self.high, not self.high_open) <= (bound, not is_open):
            return self
        return Interval(self.low, bound, self.low_open, is_open)

    def mirrored(self) -> "Interval":
        """The same with signs turned."""
        return Interval(
            None if self.high is None else -self.high,
            None if self.low is None else -self.low,
            self.high_open,
            self.low_open,
        )


def integers(interval: Interval) -> str | None:
    """A terminal for the integers of *interval*; None when there is none that can be written."""
    return _either(interval.whole(), _WHOLE)


def decimals(interval: Interval, places: int | None = None) -> str | None:
    """A terminal for the decimals of *interval*, of at most *places* behind the point; None when none can be written."""
    bounds = [_digits(abs(bound)) for bound in (interval.low, interval.high) if bound]
    most = MOST_DECIMALS if places is None else places
    if bounds:
        apart = max(max(len(fraction) for _, fraction in bounds), SIGNIFICANT - max(len(whole) for whole, _ in bounds))
        most = min(most, apart)
    fraction = rf"(?:\.[0-9]{{1,{most}}})?" if most else ""
    return _either(interval, _WHOLE + fraction, has_exponent=True)


def _either(interval: Interval, shape: str, *, has_exponent: bool = False) -> str | None:
    if interval.is_empty:
        return None
    parts = []
    positive = _magnitudes(interval, shape, has_exponent=has_exponent)
    if positive is not None:
        parts.append(positive)
    negative = _magnitudes(interval.mirrored(), shape, has_exponent=has_exponent, is_positive=True)
    if negative is not None:
        parts.append(f'"-" ({negative})')
    return " | ".join(parts) or None


def _magnitudes(interval: Interval, shape: str, *, has_exponent: bool, is_positive: bool = False) -> str | None:
    """The texts without a sign: those from 0 on, or with *is_positive* those above 0."""
    low, low_open = interval.low, interval.low_open
    if low is None or low < 0 or (low == 0 and is_positive):
        low, low_open = Decimal(0), is_positive
    high, high_open = interval.high, interval.high_open
    if Interval(low, high, low_open, high_open).is_empty:
        return None
    conjuncts: list[str] = [f"/{shape}/"]
    if low_open and low == 0:
        conjuncts.append(f"/{_NOT_ZERO}/")
    elif low > 0:
        if len(_digits(low)[0]) > MOST_DIGITS:
            return None
        conjuncts.append(f"/{at_least(low, is_open=low_open)}/")
    if high is not None and len(_digits(high)[0]) <= MOST_DIGITS:
        conjuncts.append(f"/{at_most(high, is_open=high_open)}/")
    plain = " & ".join(conjuncts)
    if not has_exponent or low != 0 or high is not None:
        return plain
    mantissa = f"(/{_SHORT_WHOLE}{_FRACTION}/{f' & /{_NOT_ZERO}/' if low_open else ''})"
    return f"{plain} | {mantissa} /{_EXPONENT}/"


def at_least(bound: Decimal, *, is_open: bool = False) -> str:
    """Plain decimals that are *bound* or more, with *is_open* more. *bound* is not negative."""
    whole, fraction = _digits(bound)
    parts = [f"[1-9][0-9]{{{len(whole)},}}{_ANY_FRACTION}"] if whole != "0" else [f"[1-9][0-9]*{_ANY_FRACTION}"]
    parts += [f"{head}{_ANY_FRACTION}" for head in _beside(whole, above=True)]
    if not fraction:
        parts.append(whole + (r"\.[0-9]*[1-9][0-9]*" if is_open else _ANY_FRACTION))
    else:
        parts += [rf"{whole}\.{head}" for head in _beside(fraction, above=True, is_open_ended=True)]
        parts.append(rf"{whole}\.{fraction}[0-9]*" + ("[1-9][0-9]*" if is_open else ""))
    return "|".join(parts)


def at_most(bound: Decimal, *, is_open: bool = False) -> str:
    """Plain decimals that are *bound* or less, with *is_open* less. *bound* is not negative."""
    whole, fraction = _digits(bound)
    parts = [f"[0-9]{{1,{len(whole) - 1}}}{_ANY_FRACTION}"] if len(whole) > 1 else []
    parts += [f"{head}{_ANY_FRACTION}" for head in _beside(whole, above=False)]
    if not fraction:
        parts += [] if is_open else [rf"{whole}(?:\.0+)?"]
    else:
        parts.append(whole)
        parts += [rf"{whole}\.{head}" for head in _beside(fraction, above=False, is_open_ended=True)]
        parts += [rf"{whole}\.{fraction[:size]}" for size in range(1, len(fraction))]
        parts += [] if is_open else [rf"{whole}\.{fraction}0*"]
    return "|".join(parts)


_ANY_FRACTION = r"(?:\.[0-9]+)?"


def _beside(digits: str, *, above: bool, is_open_ended: bool = False) -> list[str]:
    """Digit strings that part from *digits* to the one side at some place."""
    parts = []
    for place, digit in enumerate(digits):
        low, high = (int(digit) + 1, 9) if above else (0, int(digit) - 1)
        if low <= high:
            rest = "[0-9]*" if is_open_ended else f"[0-9]{{{len(digits) - place - 1}}}"
            parts.append(f"{digits[:place]}[{low}-{high}]{rest}")
    return parts


def _digits(number: Decimal) -> tuple[str, str]:
    """Digits before and behind the point, without zeros at the outer ends."""
    whole, _, fraction = format(number, "f").partition(".")
    return whole.lstrip("0") or "0", fraction.rstrip("0")
