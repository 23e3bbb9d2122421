"""A JSON Schema as rules of a grammar: texts that follow them are JSON of the schema in one spelling.

The one spelling: no whitespace; the keys that a schema declares in sorted order (as declarations are rendered), others behind
them; a character of a string as it is, where JSON demands an escape by the short one. Only numbers keep several spellings
(``1``, ``1.0``, ``1e0``): a model that has begun one of them could not go on in another.

What rules cannot hold to is listed, never dropped in silence; a schema that no rules can be written for at all leaves its tool
with any JSON object, listed as ``("$", "*")`` and logged.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, product
from typing import Any

import structlog
from attrs import frozen

from k2core.engine.bytewise import following, matcher
from k2core.engine.lark import literal
from k2core.engine.schemas.numbers import Interval, decimals
from k2core.engine.schemas.reader import Unmanageable, build
from k2core.engine.schemas.shapes import Anything, Either, Fields, Items, Listed, Multiple, Shape, Shapes, Written
from k2core.engine.schemas.strings import FREE
from k2core.errors import K2Error

DEPTH = 16  # of values that a schema says nothing of
CACHED = 512  # schemas kept
MOST_SPELLINGS = 8

log = structlog.get_logger()


def _base() -> str:
    lines = [f"STRING: {FREE}", f"NUMBER: {decimals(Interval())}"]
    for depth in range(DEPTH + 1):
        inner = f"json-{depth + 1}"
        nested = f" | object-{depth} | array-{depth}" if depth < DEPTH else ""
        lines.append(f'json-{depth}: STRING | NUMBER | "true" | "false" | "null"{nested}')
        if nested:
            lines.append(f'object-{depth}: "{{" (STRING ":" {inner} ("," STRING ":" {inner})*)? "}}"')
            lines.append(f'array-{depth}: "[" ({inner} ("," {inner})*)? "]"')
    return "\n".join(lines) + "\n"


BASE = _base()  # rules that those of every schema refer to; once in a grammar


@frozen
class Rules:
    """Rules of a grammar for the JSON texts of one schema.

    Attributes:
        text: the rules, one a line; the first has the name that was asked for. They refer to `BASE`.
        unenforced: (path, keyword) of what the rules do not hold to; the path is where in the value it was met first, ``$``
            the whole of it. ``("$", "*")`` is the whole schema.
    """

    text: str
    unenforced: tuple[tuple[str, str], ...] = ()


def rules(schema: Mapping[str, Any] | bool, name: str, *, is_object: bool = False) -> Rules:
    """Rules for the values of a schema.

    Args:
        schema: draft 2020-12.
        name: of the first rule, lower case; the others' names begin with it.
        is_object: only objects are asked for, whatever the schema says; so with a tool's arguments.
    """
    return _rules(_text(schema), name, is_object)


def spellings(schema: Mapping[str, Any] | bool, value: Any, *, is_object: bool = False) -> list[str]:
    """The texts by which the rules of a schema may write a value, a few at most; some of them the rules may refuse."""
    shapes = _shapes(_text(schema), is_object)
    if shapes is None:
        return [json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))]
    found = _spelled(shapes.shapes, shapes.root, value)
    return list(dict.fromkeys(islice(found, MOST_SPELLINGS)))


@lru_cache(CACHED)
def _rules(schema: str, name: str, is_object: bool) -> Rules:
    shapes = _shapes(schema, is_object)
    if shapes is None:
        return Rules(f"{name}: {'object-0' if is_object else 'json-0'}\n", (("$", "*"),))
    return Rules(_Writer(shapes.shapes, name).write(shapes.root), shapes.unenforced)


@lru_cache(CACHED)
def _shapes(schema: str, is_object: bool) -> Shapes | None:
    """The shapes of a schema whose grammar llguidance takes; None where there are none, which is logged."""
    try:
        shapes = build(json.loads(schema), is_object=is_object)
        following(matcher(f"start: tool\n{_Writer(shapes.shapes, 'tool').write(shapes.root)}{BASE}"))
    except (Unmanageable, K2Error) as error:
        log.warning("schema.not_enforced", reason=str(error), schema=schema[:200])
        return None
    if shapes.unenforced:
        left = [f"{path}: {keyword}" for path, keyword in shapes.unenforced]
        log.warning("schema.partly_enforced", checked_when_called=left, schema=schema[:200])
    return shapes


class _Writer:
    """Writes shapes as rules whose names begin with *name*."""

    def __init__(self, shapes: Mapping[int, Shape], name: str) -> None:
        self._shapes = shapes
        self._name = name
        self._lines: list[str] = []
        self._named: dict[int, str] = {}
        self._terminals: dict[str, str] = {}

    def write(self, root: int) -> str:
        """All rules, the root's first."""
        first = self.reference(root)
        return "\n".join([f"{self._name}: {first}", *self._lines]) + "\n"

    def reference(self, number: int) -> str:
        """What stands for a shape in another rule."""
        if number in self._named:
            return self._named[number]
        match self._shapes[number]:
            case Anything():
                found = "json-0"
            case Listed(texts):
                found = literal(texts[0]) if len(texts) == 1 else self.terminal(" | ".join(map(literal, texts)))
            case Written(_, terminal):
                found = self.terminal(terminal)
            case Multiple(of, low, high):
                found = f'%json {{"type":"integer","multipleOf":{of},"minimum":{low},"maximum":{high}}}'
            case _:
                found = f"{self._name}-{number}"
        self._named[number] = found
        match self._shapes[number]:
            case Either(options):
                self._line(found, " | ".join(map(self.reference, options)))
            case Items() as items:
                self._array(found, items)
            case Fields() as fields:
                self._object(found, fields)
        return found

    def terminal(self, text: str) -> str:
        """The name of a terminal."""
        if text == FREE:
            return "STRING"
        if text not in self._terminals:
            self._terminals[text] = f"{self._name.upper()}-T{len(self._terminals)}"
            self._lines.append(f"{self._terminals[text]}: {text}")
        return self._terminals[text]

    def _line(self, name: str, body: str) -> None:
        self._lines.append(f"{name}: {body}")

    def _array(self, name: str, shape: Items) -> None:
        first = [self.reference(number) for number in shape.first]
        listed = self._shapes.get(shape.rest)
        if shape.is_set and isinstance(listed, Listed):
            self._set(name, shape, listed.texts)
            return
        rest = self.reference(shape.rest) if shape.rest in self._shapes else None
        most = len(first) if rest is None else shape.most
        body = _tail(first, rest, shape.least, most)
        self._line(name, f'"[" {body} "]"' if body else '"[]"')

    def _set(self, name: str, shape: Items, texts: Sequence[str]) -> None:
        """Each value of a list at most once, in any order: a parameter of the rule has a bit for each."""
        every = f"[0:{len(texts)}]"
        most = len(texts) if shape.most is None else shape.most
        more = [
            f'"," {literal(text)} {name}-more::set_bit({bit}) %if and(bit_clear({bit}), bit_count_lt({every}, {most}))'
            for bit, text in enumerate(texts)
        ]
        begun = [f"{literal(text)} {name}-more::set_bit({bit})" for bit, text in enumerate(texts) if most]
        begun += [] if shape.least else ['""']
        self._line(name, f'"[" {name}-first::0x0 "]"')
        self._line(f"{name}-first::_", " | ".join(begun))
        self._line(f"{name}-more::_", "\n  | ".join([f'"" %if bit_count_ge({every}, {shape.least})', *more]))

    def _object(self, name: str, shape: Fields) -> None:
        fields = [
            (f"{literal(json.dumps(key, ensure_ascii=False) + ':')} {self.reference(number)}", is_needed)
            for key, number, is_needed in shape.declared
        ]
        other = None
        if shape.others:
            other = f"{name}-other"
            self._line(other, " | ".join(f'{self.terminal(key)} ":" {self.reference(one)}' for key, one in shape.others))
        is_full = shape.most is not None and (other is not None or shape.most < len(fields))
        if is_full or shape.least > sum(is_needed for _, is_needed in fields):
            self._counted(name, fields, other, shape)
            return
        at = next((place for place, (_, is_needed) in enumerate(fields) if is_needed), None)
        if at is not None:
            before = [f'({item} ",")?' for item, _ in fields[:at]]
            body = " ".join([*before, fields[at][0], self._following(name, fields, at + 1, other)])
        else:
            begun = [f"{item} {self._following(name, fields, place + 1, other)}" for place, (item, _) in enumerate(fields)]
            begun += [f'{other} ("," {other})*'] if other else []
            body = f"({' | '.join(begun)})?" if begun else ""
        self._line(name, f'"{{" {body} "}}"' if body.strip() else '"{}"')

    def _following(self, name: str, fields: Sequence[tuple[str, bool]], place: int, other: str | None) -> str:
        """The properties from *place* on, behind others."""
        if place == len(fields):
            return f'("," {other})*' if other else ""
        rule = f"{name}-from{place}"
        if rule not in self._terminals:  # any dict of names will do: rules and terminals are told apart by case
            self._terminals[rule] = rule
            item, is_needed = fields[place]
            step = f'"," {item}' if is_needed else f'("," {item})?'
            self._line(rule, f"{step} {self._following(name, fields, place + 1, other)}")
        return rule

    def _counted(self, name: str, fields: Sequence[tuple[str, bool]], other: str | None, shape: Fields) -> None:
        """An object whose properties are counted: a rule for each place and each count so far."""
        top = max(1, shape.least if shape.most is None else shape.most)

        def can_end(place: int, count: int) -> bool:
            left = fields[place:]
            needed = sum(is_needed for _, is_needed in left)
            return (other is not None or count + len(left) >= shape.least) and (
                shape.most is None or count + needed <= shape.most
            )

        def to(place: int, count: int) -> list[str]:
            if (shape.most is not None and count > shape.most) or not can_end(place, count):
                return []
            count = min(count, top)
            rule = f"{name}-at{place}-{count}"
            if rule not in self._terminals:
                self._terminals[rule] = rule
                comma = '"," ' if count else ""
                options: list[str] = []
                if place == len(fields):
                    options += ['""'] if count >= shape.least else []
                    options += [f"{comma}{other} {one}" for one in to(place, count + 1)] if other else []
                else:
                    item, is_needed = fields[place]
                    options += [] if is_needed else to(place + 1, count)
                    options += [f"{comma}{item} {one}" for one in to(place + 1, count + 1)]
                self._line(rule, " | ".join(options))
            return [rule]

        self._line(name, f'"{{" {to(0, 0)[0]} "}}"')


def _tail(first: Sequence[str], rest: str | None, least: int, most: int | None) -> str:
    """The items of an array without its brackets."""
    if most == 0:
        return ""
    if not first:
        assert rest is not None
        bounds = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        body = rest if most == 1 else f'{rest} ("," {rest}){bounds}'
        return body if least else f"({body})?"
    body = ""
    behind = len(first)
    if rest is not None and (most is None or most > behind):
        bounds = f"{{{max(0, least - behind)},{'' if most is None else most - behind}}}"
        body = f'("," {rest}){bounds}'
    for place in reversed(range(behind if most is None else min(behind, most))):
        comma = '"," ' if place else ""
        body = f"{comma}{first[place]} {body}" if place < least else f"({comma}{first[place]} {body})?"
    return body


def _spelled(shapes: Mapping[int, Shape], number: int, value: Any) -> Iterator[str]:
    shape = shapes.get(number)
    match shape:
        case Either(options):
            for option in options:
                yield from _spelled(shapes, option, value)
        case Items(first, rest, _, _, _) if isinstance(value, list):
            numbers = [first[place] if place < len(first) else rest for place in range(len(value))]
            parts = [_spelled(shapes, inner, one) for inner, one in zip(numbers, value, strict=True)]
            yield from (f"[{','.join(texts)}]" for texts in product(*map(_few, parts)))
        case Fields(declared, others, _, _, _) if isinstance(value, dict):
            known = {key: inner for key, inner, _ in declared}
            keys = [key for key in known if key in value] + sorted(value.keys() - known.keys())
            parts = []
            for key in keys:
                inners = [known[key]] if key in known else [inner for _, inner in others]
                texts = [text for inner in inners for text in _few(_spelled(shapes, inner, value[key]))]
                parts.append(iter([f"{json.dumps(key, ensure_ascii=False)}:{text}" for text in texts]))
            yield from (f"{{{','.join(texts)}}}" for texts in product(*map(_few, parts)))
        case Anything() | Listed() | Written() | Multiple():
            yield json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            if isinstance(value, float) and value.is_integer():
                yield str(int(value))
            elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
                yield str(float(value))


def _few(texts: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(islice(texts, MOST_SPELLINGS)))


def _text(schema: Any) -> str:
    return json.dumps(schema, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
