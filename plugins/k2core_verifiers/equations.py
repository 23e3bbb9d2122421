"""Equations in prose: ``23*47 = 1081``, ``12 apples + 5 apples = 17 apples``, ``1082/47 ≈ 23.02``, ``15% of 80 is 12``."""

import re
from fractions import Fraction
from typing import Literal

from attrs import frozen

from k2core.errors import ToolError
from k2core_tools.calculator import evaluate
from k2core_tools.numbers import approximate, decimal_places, render
from k2core_verifiers.quantities import NUMBER, find_numbers, is_rounding

Status = Literal["supported", "refuted", "unchecked"]
_RELATION = re.compile(r"=|≈|≃|\b(?:is equal to|equals|is|makes|gives)\b(?!\s+(?:not|n't))")
_ABOUT = re.compile(r"\s*(?:(?P<about>about|approximately|approx\.?|roughly|around|~|≈)\s*)?[$€£]?\s*", re.I)
_FUNCTIONS = frozenset(("abs", "max", "min", "round", "sqrt"))
_WORDS = {"times": "*", "plus": "+", "minus": "-", "multiplied by": "*", "divided by": "/", "x": "*", "of": "*"}
_STOP_WORDS = "and or is are was the a to from in on at by with for than that which then so if as has have but not"
_STOP = frozenset(_STOP_WORDS.split())
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+\.\d+|\d+|\.\d+"
_TOKEN = re.compile(
    rf"(?P<number>{_NUMBER})|(?P<word>multiplied by|divided by|°?[^\W\d_][\w²³°]*(?:/[^\W\d_][\w²³]*)?)|(?P<money>[$€£])"
    r"|(?P<sign>\*\*|[-+*/%^(),×÷·−–])|(?P<other>\S)"
)
_PLAIN_DASH = re.compile(r"[\d.,]+[-–][\d.,]+")
_EXACT_PLACES = 6  # a quotient with more decimals than this may be stated rounded after "="


@frozen(kw_only=True)
class Equation:
    """An equation and what became of it.

    Attributes:
        expression: left side as written.
        stated: right side as written.
        start: offset of the left side.
        end: offset behind the right side.
        status: ``supported``, ``refuted``, or ``unchecked`` where units forbid a judgement.
        value: what the left side really is.
        right: that value as a hint shows it.
    """

    expression: str
    stated: str
    start: int
    end: int
    status: Status
    value: Fraction
    right: str


@frozen(kw_only=True)
class _Side:
    text: str
    start: int
    end: int
    value: Fraction
    units: frozenset[str]
    has_operator: bool


def find_equations(text: str) -> list[Equation]:
    """Every equation of *text* whose left side is an expression with an operator, recomputed."""
    relations = list(_RELATION.finditer(text))
    found = []
    for place, relation in enumerate(relations):
        start = relations[place - 1].end() if place and _is_symbol(relations[place - 1]) else 0
        end = relations[place + 1].start() if place + 1 < len(relations) else len(text)
        left = _left(text, max(start, relation.start() - 400), relation.start())
        if left is None or (not _is_symbol(relation) and _PLAIN_DASH.fullmatch(left.text)):
            continue
        equation = _compare(text, left, relation, end)
        if equation is not None:
            found.append(equation)
    return found


def _is_symbol(relation: re.Match[str]) -> bool:
    return not relation[0][0].isalpha()


def _compare(text: str, left: _Side, relation: re.Match[str], end: int) -> Equation | None:
    gap = _ABOUT.match(text, relation.end())
    begin = gap.end() if gap else relation.end()
    is_about = relation[0] in "≈≃" or bool(gap and gap["about"])
    right = _right(text, begin, end)
    number = NUMBER.match(text, begin)
    status: Status
    if not left.has_operator and not (right is not None and right.has_operator):
        return None
    if right is not None and right.has_operator:
        status = "supported" if right.value == left.value else "refuted"
        units, stated, stop = right.units, right.text, right.end
    elif number is not None:
        stated_number = find_numbers(text[begin : number.end()])[0]
        values = [reading[0] for reading in stated_number.readings if len(reading) == 1]
        places = decimal_places(left.value)
        tolerant = is_about or places is None or places > _EXACT_PLACES
        unit = stated_number.unit if is_about or stated_number.unit < Fraction(1, 10) else Fraction(0)
        is_right = left.value in values or (tolerant and any(is_rounding(one, unit, left.value) for one in values))
        status = "supported" if is_right else "refuted"
        stated, stop = stated_number.text, number.end()
        units = right.units if right is not None else frozenset()
    else:
        return None
    if status == "refuted" and len(left.units | units) > 1:
        status = "unchecked"  # the sides may differ by a conversion
    shown = render(left.value) if decimal_places(left.value) is not None else f"about {approximate(left.value)}"
    return Equation(
        expression=left.text, stated=stated, start=left.start, end=stop, status=status, value=left.value, right=shown
    )


def _left(text: str, start: int, end: int) -> _Side | None:
    """The longest run of numbers, signs and units that ends at *end*."""
    tokens = list(_TOKEN.finditer(text, start, end))
    first, open_brackets = len(tokens), 0
    while first and _continues(tokens, first - 1):
        sign = tokens[first - 1][0]
        if sign == "," and not open_brackets:
            break
        open_brackets += (sign == ")") - (sign == "(")
        first -= 1
    run = tokens[first:]
    while run and ((run[0].lastgroup == "word" and not _is_function(run, 0)) or run[0][0] in ")+*/%^,×÷·**–"):
        run = run[1:]
    if len(run) > 1 and run[0][0] in "-−" and run[0].end() != run[1].start():
        run = run[1:]  # a dash between words, not a sign
    while run and run[0][0] == "(" and sum(t[0] == "(" for t in run) > sum(t[0] == ")" for t in run):
        run = run[1:]
    return _side(text, run)


def _right(text: str, start: int, end: int) -> _Side | None:
    run: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text, start, min(end, start + 400)):
        run.append(token)
        if not _continues(run, len(run) - 1) or (token[0] == "," and "(" not in [t[0] for t in run]):
            run.pop()
            break
    while run and (run[-1][0] in "(+-*/^,×÷·−–**" or (run[-1][0] in _WORDS)):
        run.pop()
    while run and run[-1][0] == ")" and sum(t[0] == ")" for t in run) > sum(t[0] == "(" for t in run):
        run.pop()
    return _side(text, run)


def _continues(tokens: list[re.Match[str]], at: int) -> bool:
    token = tokens[at]
    if token.lastgroup in ("number", "sign", "money"):
        return True
    if token.lastgroup != "word":
        return False
    word = token[0].lower()
    if _is_function(tokens, at):
        return True
    if word in _WORDS:
        return at > 0 and (word != "of" or tokens[at - 1][0] == "%")
    after_number = at > 0 and (tokens[at - 1].lastgroup == "number" or tokens[at - 1][0] == ")")
    before_number = at + 1 < len(tokens) and tokens[at + 1].lastgroup == "number"
    return after_number and not before_number and word not in _STOP


def _is_function(tokens: list[re.Match[str]], at: int) -> bool:
    return tokens[at][0].lower() in _FUNCTIONS and at + 1 < len(tokens) and tokens[at + 1][0] == "("


def _side(text: str, run: list[re.Match[str]]) -> _Side | None:
    if not run:
        return None
    parts, units, operators = [], set(), 0
    for place, token in enumerate(run):
        word = token[0].lower()
        if token.lastgroup == "number":
            parts.append(token[0].replace(",", ""))
        elif _is_function(run, place):
            parts.append(word)
            operators += 1
        elif word in _WORDS:
            parts.append(_WORDS[word])
            operators += 1
        elif token.lastgroup in ("word", "money"):
            units.add(word.rstrip("s") if len(word) > 3 else word)
        else:
            parts.append(token[0])
            operators += token[0] not in "()," and not (place == 0 and token[0] in "-−")
    try:
        value = evaluate(" ".join(parts))
    except ToolError:
        return None
    start, end = run[0].start(), run[-1].end()
    return _Side(text=text[start:end], start=start, end=end, value=value, units=frozenset(units), has_operator=operators > 0)
