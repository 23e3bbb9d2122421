"""Regular expressions of JSON Schema (``pattern``, ``patternProperties``) as terminals over JSON strings.

A schema's patterns are judged by Python's ``re.search`` (`k2core.tools.schema_errors`), a mask is computed by llguidance. So
a pattern is parsed by Python's own parser and written anew, character by character and in the one spelling of JSON strings:
what the terminal matches is a quoted string whose content Python's ``re.search`` accepts. Where the two worlds differ, the
terminal is the narrower: ``\\d``, ``\\w`` and ``\\s`` are ASCII, their negations leave out what Unicode adds, ``$`` is the end.

Not translated: lookaround elsewhere than behind ``^``, ``\\b``, anchors in the middle, back references, possessive and atomic
groups, flags.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from re import _constants as code  # type: ignore[attr-defined]  # private, but only `re` knows what Python's patterns mean
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from attrs import frozen

Ranges = tuple[tuple[int, int], ...]  # sorted, disjoint, inclusive code points

LAST = 0x10FFFF
ALL: Ranges = ((0, 0xD7FF), (0xE000, LAST))  # no surrogates: they have no UTF-8
SHORT = {
    0x22: r'\\"',
    0x5C: r"\\\\",
    0x08: r"\\b",
    0x0C: r"\\f",
    0x0A: r"\\n",
    0x0D: r"\\r",
    0x09: r"\\t",
}  # JSON's short escapes
CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\bfnrt])'  # any but the control characters that have no short escape
ANY_CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00[01][0-9a-f])'
MOST_REPEATS = 1000


class Untranslatable(Exception):
    """The pattern has a part that no terminal expresses; says which."""


def terminal(pattern: str, *, wide: bool = False) -> str:
    """A pattern as a terminal over whole quoted JSON strings.

    Args:
        pattern: of Python's `re`, searched for in the string.
        wide: match whatever the pattern may match, for use under a negation, instead of only what it matches to all.

    Raises:
        Untranslatable: says what of the pattern has no translation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise Untranslatable(f"Python does not read it: {error}") from error
    if parsed.state.flags & ~int(re.UNICODE):
        raise Untranslatable("it has flags")
    writer, rest = (_WIDE, ANY_CHARACTER) if wide else (_NARROW, CHARACTER)
    alternatives = []
    for items in _branches(list(parsed)):
        start, ahead, items = _leading(items)
        if ahead and wide:
            raise Untranslatable("it looks ahead")
        main = f'/"{"" if start else f"{rest}*"}{writer.whole(items)}"/'
        alternatives.append(" & ".join([main, *ahead]))
    return " | ".join(alternatives)


def _branches(items: list[Any], depth: int = 0) -> list[list[Any]]:
    """The alternatives at both ends of a sequence, opened up as far as they hold anchors."""
    if depth > 8:
        raise Untranslatable("its anchors are nested too deep")
    for place in (0, len(items) - 1):
        if not items or not _has_anchor(items[place]):
            continue
        inner = _alternatives(items[place])
        if inner is not None:
            opened = [[*items[:place], *one, *items[place + 1 :]] for one in inner]
            return [branch for one in opened for branch in _branches(one, depth + 1)]
    return [items]


def _alternatives(item: tuple[Any, Any]) -> list[list[Any]] | None:
    op, value = item
    if op is code.BRANCH:
        return [list(one) for one in value[1]]
    if op is code.SUBPATTERN and not value[1] and not value[2]:
        return [list(value[3])]
    return None


def _has_anchor(item: tuple[Any, Any]) -> bool:
    op, _ = item
    if op in (code.AT, code.ASSERT, code.ASSERT_NOT):
        return True
    inner = _alternatives(item)
    return inner is not None and any(_has_anchor(one) for branch in inner for one in branch)


def _leading(items: list[Any]) -> tuple[bool, list[str], list[Any]]:
    """(anchored, what looks ahead from the start, the rest)."""
    start = False
    ahead: list[str] = []
    while items:
        op, value = items[0]
        if op is code.AT and value in (code.AT_BEGINNING, code.AT_BEGINNING_STRING):
            start = True
        elif start and op in (code.ASSERT, code.ASSERT_NOT) and value[0] == 1:
            if op is code.ASSERT_NOT:
                ahead += [f'~/"{_WIDE.whole(branch)}"/' for branch in _branches(list(value[1]))]
            else:
                ahead.append(f'/"{_NARROW.whole(list(value[1]))}"/')
        else:
            break
        items = items[1:]
    return start, ahead, items


@frozen
class _Writer:
    """Writes parsed items anew.

    Attributes:
        wide: the result matches whatever the pattern may match, for negations; else only what it matches to all.
    """

    wide: bool

    def whole(self, items: list[Any]) -> str:
        """Items up to the string's end."""
        end = False
        while items and items[-1][0] is code.AT and items[-1][1] in (code.AT_END, code.AT_END_STRING):
            end, items = True, items[:-1]
        rest = ANY_CHARACTER if self.wide else CHARACTER
        return self.sequence(items) + (f"{rest}*" if not end else r"(?:\\n)?" if self.wide else "")

    def sequence(self, items: Iterable[tuple[Any, Any]]) -> str:
        """Items one after the other."""
        return "".join(self.item(op, value) for op, value in items)

    def item(self, op: Any, value: Any) -> str:
        """One parsed item."""
        if op is code.LITERAL:
            return self.characters(((value, value),))
        if op is code.NOT_LITERAL:
            return self.characters(_without(ALL, ((value, value),)))
        if op is code.ANY:
            return self.characters(_without(ALL, ((10, 10),)))
        if op is code.IN:
            return self.characters(self.set(value))
        if op is code.BRANCH:
            return f"(?:{'|'.join(self.sequence(one) for one in value[1])})"
        if op is code.SUBPATTERN and not value[1] and not value[2]:
            return f"(?:{self.sequence(value[3])})"
        if op in (code.MAX_REPEAT, code.MIN_REPEAT):
            least, most, inner = value
            if least > MOST_REPEATS or (most is not code.MAXREPEAT and most > MOST_REPEATS):
                raise Untranslatable(f"it repeats more than {MOST_REPEATS} times")
            return f"(?:{self.sequence(inner)}){{{least},{'' if most is code.MAXREPEAT else most}}}"
        raise Untranslatable(f"it has {str(op).lower().replace('_', ' ')} in a place where no terminal can have it")

    def set(self, items: Sequence[tuple[Any, Any]]) -> Ranges:
        """The members of ``[...]``."""
        negated = bool(items) and items[0][0] is code.NEGATE
        found: list[tuple[int, int]] = []
        for op, value in items[1:] if negated else items:
            if op is code.LITERAL:
                found.append((value, value))
            elif op is code.RANGE:
                found.append(value)
            elif op is code.CATEGORY:
                found += _category(value, wide=self.wide != negated)
            else:
                raise Untranslatable(f"its character set has {str(op).lower()}")
        ranges = _normal(found)
        return _without(ALL, ranges) if negated else ranges

    def characters(self, ranges: Ranges) -> str:
        """One character of a set as JSON writes it; control characters without a short escape only where there is no other."""
        ranges = _without(ranges, ((0xD800, 0xDFFF),))
        escaped = sorted({*range(0x20), *SHORT})
        raw = _without(ranges, tuple((number, number) for number in escaped))
        members = [number for number in escaped if any(low <= number <= high for low, high in ranges)]
        parts = [_raw(raw)] if raw else []
        parts += [SHORT[number] for number in members if number in SHORT]
        if self.wide or not parts:
            parts += [rf"\\u{number:04x}" for number in members if number not in SHORT]
        if not parts:
            raise Untranslatable("it has an empty character set")
        return parts[0] if len(parts) == 1 and raw else f"(?:{'|'.join(parts)})"


_NARROW, _WIDE = _Writer(False), _Writer(True)


def _raw(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _hex(ranges[0][0])
    return f"[{''.join(f'{_hex(low)}-{_hex(high)}' for low, high in ranges)}]"


def _hex(number: int) -> str:
    return chr(number) if number < 0x80 and chr(number).isalnum() else rf"\x{{{number:x}}}"


def _category(name: Any, *, wide: bool) -> Ranges:
    """A class by its name: with *wide* everything that it may mean to anybody, else only what it means to all."""
    positive = {
        code.CATEGORY_DIGIT: (str.isdecimal, "0-9"),
        code.CATEGORY_SPACE: (str.isspace, "\t-\r - "),
        code.CATEGORY_WORD: (_is_word, "0-9A-Z_-_a-z"),
    }
    negative = {
        code.CATEGORY_NOT_DIGIT: code.CATEGORY_DIGIT,
        code.CATEGORY_NOT_SPACE: code.CATEGORY_SPACE,
        code.CATEGORY_NOT_WORD: code.CATEGORY_WORD,
    }
    if name in negative:
        return _without(ALL, _category(negative[name], wide=not wide))
    if name not in positive:
        raise Untranslatable(f"its character set has {str(name).lower()}")
    belongs, narrow = positive[name]
    ascii_ranges = tuple((ord(narrow[at]), ord(narrow[at + 2])) for at in range(0, len(narrow), 3))
    return _normal([*ascii_ranges, *_unicode(belongs)]) if wide else ascii_ranges


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


@cache
def _unicode(belongs: Callable[[str], bool]) -> Ranges:
    """Every character of a class of Python's, and the byte order mark, which is a space to others."""
    members = [number for number in range(LAST + 1) if belongs(chr(number)) or number == 0xFEFF]
    return _normal([(number, number) for number in members])


def _normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def _without(ranges: Ranges, removed: Ranges) -> Ranges:
    out = []
    for low, high in ranges:
        for cut_low, cut_high in removed:
            if cut_high < low or cut_low > high:
                continue
            if cut_low > low:
                out.append((low, cut_low - 1))
            low = cut_high + 1
        if low <= high:
            out.append((low, high))
    return tuple(out)
