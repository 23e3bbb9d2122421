"""Numbers in prose: found with all their readings, compared by value, with the rounding that their wording allows.

``1,081``, ``1 081`` and ``1081.0`` are one value; ``15%`` is also 0.15; ``1.2 million`` and ``5.8 × 10^5`` are multiplied out.
A number with decimals, a scale word or a word like *about* may be a rounding of an observed one; a plain integer may not.
"""

import re
from fractions import Fraction

from attrs import frozen

_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
NUMBER = re.compile(
    r"(?<![^\W_])(?<!\w\.)(?P<sign>(?<![\w)])[-−])?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:['’\u00a0\u202f\u2009 ]\d{3})+(?!\d)|\d{1,400})(?P<places>[.,]\d{1,400})?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w))?"
    r"(?:\s?[×x·*]\s?10(?:(?:\^|\*\*)\(?(?P<power>[-−]?\d{1,3})\)?|(?P<raised>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]{1,4})))?"
    r"(?P<percent>\s?%|\s(?:percent|per\scent)\b)?(?:\s(?P<scale>thousand|million|billion|trillion)\b)?"
)
_ABOUT = re.compile(
    r"(?:\b(?P<above>over|more than|at least|above|exceeding)|\b(?P<below>nearly|almost|under|less than|just below|close to)|"
    r"\b(?:about|approximately|approx\.?|roughly|around|circa|ca\.|some|rounded to|rounds to)|[~≈≃])\s*[$€£]?$"
)
_BELOW_TEN = "zero one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = f"{_BELOW_TEN} {_TEENS}".split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS: dict[str, int] = {word: value for value, word in enumerate(_ONES)}
WORDS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
WORDS |= {f"{tens}-{_ONES[ones]}": 10 * value + ones for value, tens in enumerate(_TENS, 2) for ones in range(1, 10)}
WORDS |= {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6}
_WORD = re.compile(r"\b(?:" + "|".join(sorted(WORDS, key=len, reverse=True)) + r")\b", re.I)
_FRACTION = re.compile(r"(?<![\w./])(\d{1,400})/(\d{1,400})(?![\w/])")


CONVERSIONS = frozenset(Fraction(value) for value in (0, 1, 2, 4, 7, 10, 12, 24, 60, 100, 365, 1000, 3600, 1000000))


@frozen(kw_only=True)
class Number:
    """A number as it stands in a text.

    Attributes:
        text: as written, without per cent sign and scale.
        start: offset of its first character.
        end: offset behind it.
        readings: what it may mean; each reading is one or several values that all have to be found.
        unit: the least step that its writing shows; a rounding to it is allowed where `is_rounded`.
        is_rounded: whether the wording allows a rounding.
        direction: 1 for *over*, -1 for *nearly*: the truth may lie a step to that side.
    """

    text: str
    start: int
    end: int
    readings: tuple[tuple[Fraction, ...], ...]
    unit: Fraction = Fraction(1)
    is_rounded: bool = False
    direction: int = 0

    @property
    def value(self) -> Fraction:
        """The first reading's first value."""
        return self.readings[0][0]


def find_numbers(text: str) -> list[Number]:
    """Every number written with digits in *text*, in order."""
    return [_number(text, match) for match in NUMBER.finditer(text)]


def find_number_words(text: str) -> list[Number]:
    """Every number word up to ninety-nine, hundred, thousand and million, each with its own value."""
    return [
        Number(text=match[0], start=match.start(), end=match.end(), readings=((Fraction(WORDS[match[0].lower()]),),))
        for match in _WORD.finditer(text)
    ]


def values_in(text: str) -> frozenset[Fraction]:
    """Every value that *text* can be a source of: all readings, number words, and fractions as quotients."""
    values = {value for number in find_numbers(text) for reading in number.readings for value in reading}
    values.update(number.value for number in find_number_words(text))
    values.update(Fraction(int(top), int(bottom)) for top, bottom in _FRACTION.findall(text) if int(bottom))
    return frozenset(values)


def is_among(number: Number, values: frozenset[Fraction]) -> bool:
    """Whether one reading of *number* is wholly found in *values*."""
    return any(all(_found(value, number, values) for value in reading) for reading in number.readings)


def is_rounding(stated: Fraction, unit: Fraction, truth: Fraction, direction: int = 0) -> bool:
    """Whether *stated* is *truth* rounded to steps of *unit*, whole ones at most 5 % away; *direction* as in `Number`."""
    if unit >= 1 and abs(stated - truth) * 20 > abs(truth):
        return False
    if abs(stated - truth) * 2 <= unit:
        return True
    return direction != 0 and 0 <= (truth - stated) * direction < unit


def _found(value: Fraction, number: Number, values: frozenset[Fraction]) -> bool:
    if value in values or (value > 0 and -value in values):  # a loss of 12 may be -12 in a result
        return True
    if not number.is_rounded:
        return False
    return any(is_rounding(value, number.unit, truth if value < 0 else abs(truth), number.direction) for truth in values)


def _number(text: str, match: re.Match[str]) -> Number:
    whole, places = match["whole"], match["places"] or ""
    sign = -1 if match["sign"] else 1
    digits = re.sub(r"\D", "", whole)
    exponent = int(match["exponent"] or 0) + int((match["power"] or match["raised"] or "0").translate(_SUPERSCRIPTS))
    exponent += _SCALES.get(match["scale"] or "", 0)
    power = Fraction(10) ** exponent
    main = sign * Fraction(f"{digits}.{places[1:] or 0}") * power
    readings: list[tuple[Fraction, ...]] = [(main,)]
    if exponent:
        readings.append((main / power,))
    if places.startswith(","):  # "3,5" is a decimal in much of the world and a list elsewhere
        readings.append((Fraction(int(digits)) * sign, Fraction(int(places[1:]))))
    elif whole != digits and "," not in whole:
        readings.append(tuple(Fraction(int(part)) for part in re.split(r"\D", whole)))
    elif whole != digits:
        readings.append(tuple(Fraction(int(part)) for part in whole.split(",")))
    if match["percent"]:
        readings.append((main / 100,))
    before = _ABOUT.search(text[max(0, match.start() - 24) : match.start()].lower())
    step = Fraction(1, 10 ** (len(places) - 1)) if places else Fraction(1)
    if not places and (before or exponent):
        step = Fraction(10) ** (len(digits) - len(digits.rstrip("0"))) if digits.strip("0") else Fraction(1)
    direction = 1 if before and before["above"] else -1 if before and before["below"] else 0
    end = match.end("places" if places else "whole") if match["percent"] or match["scale"] else match.end()
    return Number(
        text=text[match.start() : end],
        start=match.start(),
        end=match.end(),
        readings=tuple(readings),
        unit=step * power,
        is_rounded=bool(places) or bool(before) or bool(exponent),
        direction=direction,
    )
