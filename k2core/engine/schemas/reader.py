"""From a JSON Schema to the shapes of the values that it admits.

`build` reads a schema (draft 2020-12 as tools declare it): references are followed, everything that must hold at once is
merged, what is left is one shape per JSON type. A shape never admits more than its schema, but for the keywords listed in
`Shapes.unenforced`; it may admit less:

- an object that declares properties and says nothing of others has no others;
- lists of values (``enum``, ``const``) are sifted with the schema's own validator;
- what only a check of the whole value could tell (two patterns for one key, an option of ``oneOf`` beside another) is left out.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice, product
from typing import Any
from urllib.parse import unquote

from attrs import define, evolve, field

from k2core.engine.bytewise import is_empty
from k2core.engine.lark import literal
from k2core.engine.schemas.numbers import Interval, decimals, integers
from k2core.engine.schemas.patterns import Untranslatable, terminal
from k2core.engine.schemas.shapes import (
    Anything,
    Either,
    Fields,
    Items,
    Listed,
    Multiple,
    Shape,
    Shapes,
    Written,
    kinds,
    least_of,
    possible,
    same,
)
from k2core.engine.schemas.strings import FORMATS, FREE, MOST_LENGTH, Text, conjunction, without
from k2core.errors import K2Error

MOST_SHAPES = 3000  # of one schema
MOST_MULTIPLE = 2**31  # greatest `multipleOf` that llguidance takes
LARGE = 10**15  # magnitude up to which multiples are written
MOST_WAYS = 16  # to hold one option of a `oneOf` apart from the others
MOST_COUNTED = 2000  # rules that may count the properties of one object
MOST_LISTED = 32  # values of which an array may hold each once
TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
ANNOTATIONS = frozenset(
    ("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "$vocabulary", "$dynamicAnchor", "title", "description",
     "default", "examples", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "contentSchema")
)  # fmt: skip
IGNORED = ("not", "then", "else", "contains", "$dynamicRef", "$recursiveRef")  # what no shape holds to


class Unmanageable(Exception):
    """The schema is too large to be read, or malformed; says how."""


def build(schema: Any, *, is_object: bool = False) -> Shapes:
    """The shapes of a schema.

    Args:
        schema: an object or a bool.
        is_object: only objects are asked for, whatever the schema says.

    Raises:
        Unmanageable: it admits nothing at all, is too large, or is no schema.
    """
    if not isinstance(schema, Mapping | bool):
        raise Unmanageable(f"it is {type(schema).__name__}, expected an object or a bool")
    try:
        builder = _Builder(root=schema)
        root = builder.shape([{"$ref": "#", "type": "object"} if is_object else schema], "$")
        builder.compare_options()
        shapes = possible({number: shape for number, shape in builder.shapes.items() if shape is not None})
    except RecursionError:
        raise Unmanageable("it is nested too deep") from None
    if root not in shapes:
        raise Unmanageable("it admits no value")
    return Shapes(shapes, root, tuple(builder.unenforced))


@define(eq=False)
class _Builder:
    root: Any
    shapes: dict[int, Shape | None] = field(factory=dict)  # None while it is being built
    unenforced: dict[tuple[str, str], None] = field(factory=dict)  # in order of discovery
    _known: dict[str, int] = field(factory=dict)  # schemas that must hold at once, as text, to the number of their shape
    _exclusive: list[tuple[str, tuple[int, ...]]] = field(factory=list)  # options of a `oneOf` that may overlap
    _validator: Any = field(default=None)

    def __attrs_post_init__(self) -> None:
        import jsonschema

        self._validator = jsonschema.Draft202012Validator(self.root)

    def shape(self, schemas: Sequence[Any], path: str) -> int:
        """The number of the shape of values for which all of *schemas* hold."""
        return self._shape_of(self._flat(schemas, path, (), is_whole=True), path)

    def _shape_of(self, flat: list[dict[str, Any]], path: str) -> int:
        if any(one == {"not": {}} for one in flat):
            flat = [{"not": {}}]
        flat = [one for place, one in enumerate(flat) if one not in flat[:place]]
        key = json.dumps(sorted(json.dumps(one, sort_keys=True) for one in flat))
        if key in self._known:
            return self._known[key]
        number = len(self.shapes)
        if number >= MOST_SHAPES:
            raise Unmanageable(f"it has more than {MOST_SHAPES} parts")
        self._known[key] = number
        self.shapes[number] = None
        self.shapes[number] = self._merged(flat, path)
        return number

    def compare_options(self) -> None:
        """List each ``oneOf`` whose options may hold at once."""
        for path, options in self._exclusive:
            pairs = [(one, other) for place, one in enumerate(options) for other in options[:place]]
            if not all(self._are_apart(one, other, 0) for one, other in pairs):
                self._skip(path, "oneOf")

    def _skip(self, path: str, keyword: str) -> None:
        self.unenforced.setdefault((path, keyword))

    def _add(self, shape: Shape) -> int:
        number = len(self.shapes)
        self.shapes[number] = shape
        return number

    # what must hold at once

    def _flat(self, schemas: Sequence[Any], path: str, seen: tuple[str, ...], *, is_whole: bool) -> list[dict[str, Any]]:
        """The schemas without references and ``allOf``, each a dict of keywords that count; a false one is ``{"not": {}}``.

        With *is_whole* nothing beside the schemas is asked of a value: then ``unevaluatedProperties`` may wait for options
        that are still to be chosen; else it is settled with what its own schema declares.
        """
        out: list[dict[str, Any]] = []
        for schema in schemas:
            if schema is True:
                continue
            if schema is False:
                return [{"not": {}}]
            if not isinstance(schema, Mapping):
                raise Unmanageable(f"at {path} there is {type(schema).__name__} in a schema's place")
            own = {key: value for key, value in schema.items() if key not in ANNOTATIONS and key not in ("$ref", "allOf")}
            inner = list(schema["allOf"]) if isinstance(schema.get("allOf"), list) else []
            is_alone = is_whole and len(schemas) == 1 and own.keys() <= {"type"} and len(inner) + ("$ref" in schema) == 1
            found = [own] if own else []
            found += self._flat(inner, path, seen, is_whole=is_alone)
            if "$ref" in schema:
                reference = schema["$ref"]
                target = self._resolve(reference) if isinstance(reference, str) else None
                if target is None or reference in seen:
                    self._skip(path, "$ref")
                else:
                    found += self._flat([target], path, (*seen, reference), is_whole=is_alone)
            if "unevaluatedProperties" in own and not (is_whole and len(schemas) == 1):
                found = _settled(found)
            out += found
        return out

    def _resolve(self, reference: str) -> Any:
        base, _, fragment = reference.partition("#")
        if base and not (isinstance(self.root, Mapping) and self.root.get("$id") == base):
            return None
        fragment = unquote(fragment)
        if not fragment:
            return self.root
        node = self.root
        if not fragment.startswith("/"):
            return _anchored(node, fragment)
        for step in fragment[1:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isdigit() and int(step) < len(node):
                node = node[int(step)]
            else:
                return None
        return node

    def _merged(self, flat: list[dict[str, Any]], path: str) -> Shape:
        if flat == [{"not": {}}]:
            return Either(())
        for place, one in enumerate(flat):
            if "enum" in one or "const" in one:
                values = [one["const"]] if "const" in one else one["enum"]
                if not isinstance(values, list):
                    raise Unmanageable(f"at {path} 'enum' is no list")
                return self._listed(values, flat)
            for keyword in ("anyOf", "oneOf", "dependentRequired", "dependentSchemas"):
                if keyword in one:
                    rest = {key: value for key, value in one.items() if key != keyword}
                    others = [*flat[:place], *([rest] if rest else []), *flat[place + 1 :]]
                    return self._chosen(keyword, one[keyword], others, path)
        return self._typed(flat, path)

    def _listed(self, values: list[Any], flat: list[dict[str, Any]]) -> Shape:
        texts: dict[str, None] = {}
        for value in values:
            try:
                text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
                text.encode()
            except ValueError:  # not a number, or half a character
                continue
            if all(self._holds(one, value) for one in flat):
                texts.setdefault(text)
        return Listed(tuple(texts))

    def _holds(self, schema: Mapping[str, Any], value: Any) -> bool:
        try:
            return bool(self._validator.evolve(schema=schema).is_valid(value))
        except Exception:  # jsonschema fails in many ways on what is no schema; what cannot be judged is left out
            return False

    def _chosen(self, keyword: str, value: Any, others: list[dict[str, Any]], path: str) -> Shape:
        """One of several schemas holds beside *others*."""
        if keyword in ("anyOf", "oneOf"):
            if not isinstance(value, list):
                raise Unmanageable(f"at {path} '{keyword}' is no list")
            options = _one_required(value) if keyword == "oneOf" and _only_require(value) else value
        else:
            if not isinstance(value, Mapping):
                raise Unmanageable(f"at {path} '{keyword}' is no object")
            options, others = _dependent(value, others)
        both = [[*others, *self._flat([option], path, (), is_whole=False)] for option in options]
        numbers = tuple(dict.fromkeys(self._shape_of(flat, path) for flat in both))
        if keyword == "oneOf" and options is value and len(options) > 1:
            if len(numbers) < len(options):
                self._skip(path, "oneOf")
            self._exclusive.append((path, numbers))
        return Either(numbers)

    def _are_apart(self, one: int, other: int, depth: int) -> bool:
        """No value that the schema of the one admits is admitted by that of the other."""
        first, second = self.shapes[one], self.shapes[other]
        if depth > 8 or one == other or first is None or second is None:
            return False
        if isinstance(second, Either):
            first, second, one, other = second, first, other, one
        if isinstance(first, Either):
            return all(self._are_apart(option, other, depth + 1) for option in first.options)
        if isinstance(first, Listed) and isinstance(second, Listed):
            mine, theirs = map(json.loads, first.texts), [json.loads(text) for text in second.texts]
            return not any(same(value, their) for value in mine for their in theirs)
        if not kinds(first) & kinds(second):
            return True
        if not isinstance(first, Fields) or not isinstance(second, Fields):
            return False
        mine_of = {key: (number, needed) for key, number, needed in first.declared}
        theirs_of = {key: (number, needed) for key, number, needed in second.declared}
        for key in mine_of.keys() | theirs_of.keys():
            mine_, theirs_ = mine_of.get(key), theirs_of.get(key)
            if mine_ and theirs_ and mine_[1] and theirs_[1] and self._are_apart(mine_[0], theirs_[0], depth + 1):
                return True
            if mine_ and mine_[1] and (theirs_ is None or self.shapes[theirs_[0]] == Either(())) and second.is_closed:
                return True
            if theirs_ and theirs_[1] and (mine_ is None or self.shapes[mine_[0]] == Either(())) and first.is_closed:
                return True
        return False

    # by type

    def _typed(self, flat: list[dict[str, Any]], path: str) -> Shape:
        for one in flat:
            for keyword in IGNORED:
                if keyword in one and (keyword not in ("then", "else") or "if" in one):
                    self._skip(path, keyword)
        if not any(one.keys() - {*IGNORED, "if"} for one in flat):
            return Anything()
        types = _types(flat)
        makers: dict[str, Callable[[list[dict[str, Any]], str], Shape]] = {
            "null": lambda *_: Listed(("null",)),
            "boolean": lambda *_: Listed(("false", "true")),
            "integer": self._number,
            "number": self._number,
            "string": self._string,
            "array": self._array,
            "object": self._object,
        }
        if "number" in types:
            types -= {"integer"}
        made = [makers[name](flat, path) for name in sorted(types)]
        return made[0] if len(made) == 1 else Either(tuple(self._add(one) for one in made))

    def _number(self, flat: list[dict[str, Any]], path: str) -> Shape:
        is_integer = "number" not in _types(flat)
        interval = Interval()
        multiple, places = 1, None
        for one in flat:
            for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
                if keyword in one:
                    bound = _decimal(one[keyword])
                    if bound is None:
                        self._skip(path, keyword)
                    else:
                        interval = interval.within(keyword, bound)
            if "multipleOf" in one:
                of = _decimal(one["multipleOf"])
                if of is None or of <= 0:
                    self._skip(path, "multipleOf")
                elif of == int(of) and math.lcm(multiple, int(of)) < MOST_MULTIPLE:
                    multiple = math.lcm(multiple, int(of))
                else:
                    self._skip(path, "multipleOf")
                    exponent = of.normalize().as_tuple().exponent
                    places = min(places or 99, max(0, -exponent)) if isinstance(exponent, int) else places
        if multiple > 1:
            return _multiples(multiple, interval)
        text = integers(interval) if is_integer else decimals(interval, places)
        return Either(()) if text is None or is_empty(text) else Written("number", text)

    def _string(self, flat: list[dict[str, Any]], path: str) -> Shape:
        text = Text()
        for one in flat:
            if isinstance(one.get("format"), str):
                if one["format"] in FORMATS:
                    text = evolve(text, formats=tuple(dict.fromkeys((*text.formats, one["format"]))))
                else:
                    self._skip(path, "format")
            if "pattern" in one:
                try:
                    terminal(str(one["pattern"]))
                    text = evolve(text, patterns=(*text.patterns, str(one["pattern"])))
                except Untranslatable:
                    self._skip(path, "pattern")
            text = evolve(text, least=max(text.least, self._count(one, "minLength", path) or 0))
            text = evolve(text, most=least_of(text.most, self._count(one, "maxLength", path)))
        if text.least > MOST_LENGTH:
            self._skip(path, "minLength")
            text = evolve(text, least=MOST_LENGTH)
        if text.most is not None and text.most > MOST_LENGTH:
            self._skip(path, "maxLength")
            text = evolve(text, most=None)
        if text.most is not None and text.least > text.most:
            return Either(())
        for weaker, keywords in ((text, ()), (evolve(text, least=0, most=None), ("minLength", "maxLength")), (Text(), None)):
            written = weaker.terminal()
            try:
                found = Either(()) if written != FREE and is_empty(written) else Written("string", written)
            except K2Error:  # beyond llguidance's limits: hold to less
                continue
            lost = ("minLength", "maxLength", "pattern", "format") if keywords is None else keywords
            for keyword in lost:
                if any(keyword in one for one in flat):
                    self._skip(path, keyword)
            return found
        raise AssertionError("a free string has a terminal")

    def _array(self, flat: list[dict[str, Any]], path: str) -> Shape:
        least = max(self._count(one, "minItems", path) or 0 for one in flat)
        most: int | None = None
        for one in flat:
            most = least_of(most, self._count(one, "maxItems", path))
        firsts = [one["prefixItems"] if isinstance(one.get("prefixItems"), list) else [] for one in flat]
        rests: list[Any] = [one.get("items", one.get("unevaluatedItems", True)) for one in flat]
        if any(isinstance(rest, list) for rest in rests):
            self._skip(path, "items")
            rests = [True if isinstance(rest, list) else rest for rest in rests]
        first = tuple(
            self.shape([own[place] if place < len(own) else rest for own, rest in zip(firsts, rests, strict=True)], step)
            for place in range(max(map(len, firsts)))
            for step in [f"{path}[{place}]"]
        )
        rest = self.shape(rests, f"{path}[*]")
        is_set = any(one.get("uniqueItems") is True for one in flat) and (most is None or most > 1)
        listed = self.shapes[rest]
        if is_set and (first or not isinstance(listed, Listed) or len(listed.texts) > MOST_LISTED):
            self._skip(path, "uniqueItems")
            is_set = False
        return Either(()) if most is not None and least > most else Items(first, rest, least, most, is_set)

    def _object(self, flat: list[dict[str, Any]], path: str) -> Shape:
        least = max(self._count(one, "minProperties", path) or 0 for one in flat)
        most: int | None = None
        for one in flat:
            most = least_of(most, self._count(one, "maxProperties", path))
        needed = {key for one in flat for key in _names(one.get("required"))}
        declared = {key for one in flat for key in _mapping(one.get("properties"))} | needed
        patterns = {pattern for one in flat for pattern in _mapping(one.get("patternProperties"))}
        names = [one["propertyNames"] for one in flat if "propertyNames" in one]
        unevaluated = [one["unevaluatedProperties"] for one in flat if "unevaluatedProperties" in one]
        additional = [one["additionalProperties"] for one in flat if "additionalProperties" in one] or unevaluated
        if not additional and (patterns or any("properties" in one for one in flat)):
            additional = [False]
            is_closed = False
        else:
            is_closed = any(one is False for one in additional)
        key_terminal = FREE
        if names:
            keys = self.shapes[self.shape([*names, {"type": "string"}], f"{path}.*")]
            key_terminal = keys.terminal if isinstance(keys, Written) else ""
            if isinstance(keys, Listed) and not any(one is False for one in additional):
                declared |= {json.loads(text) for text in keys.texts}  # the keys are known: they may as well be declared
        fields = []
        for key in sorted(declared):
            schemas = _schemas_of(key, flat, unevaluated)
            if any(not self._holds({"propertyNames": one}, {key: None}) for one in names) or _key_text(key) is None:
                schemas = [False]
            fields.append((key, self.shape(schemas, f"{path}.{key}"), key in needed))
        others = self._others(key_terminal, sorted(declared), patterns, flat, additional, path)
        if others and least > len(needed):
            self._skip(path, "minProperties")  # a key that is not declared may be written twice
        if (len(fields) + 1) * (max(least, most or 0) + 1) > MOST_COUNTED:
            for keyword, bound in (("minProperties", least), ("maxProperties", most)):
                if bound:
                    self._skip(path, keyword)
            least, most = 0, None
        return Fields(tuple(fields), tuple(others), least, most, is_closed)

    def _others(
        self,
        keys: str,
        declared: list[str],
        patterns: Iterable[str],
        flat: list[dict[str, Any]],
        additional: list[Any],
        path: str,
    ) -> list[tuple[str, int]]:
        """Keys that are not declared, by the one pattern they match, and those that match none."""
        if not keys or (not patterns and any(one is False for one in additional)):
            return []
        taken = [text for key in declared if (text := _key_text(key)) is not None]
        narrow: dict[str, str] = {}
        wide: list[str] = []
        is_known = True
        for pattern in sorted(patterns):
            try:
                wide.append(terminal(pattern, wide=True))
                narrow[pattern] = terminal(pattern)
            except Untranslatable:
                is_known = False  # nobody can tell then which keys match it
        out = []
        if is_known:
            for place, pattern in enumerate(narrow):
                key = without(conjunction([keys, narrow[pattern]]), *taken, *wide[:place], *wide[place + 1 :])
                schemas = [
                    one["patternProperties"][pattern] for one in flat if pattern in _mapping(one.get("patternProperties"))
                ]
                schemas += [
                    one["additionalProperties"]
                    for one in flat
                    if "additionalProperties" in one and pattern not in _mapping(one.get("patternProperties"))
                ]
                if not is_empty(key):
                    out.append((key, self.shape(schemas, f"{path}.*")))
            key = without(keys, *taken, *wide)
            if not any(one is False for one in additional) and not is_empty(key):
                out.append((key, self.shape(additional, f"{path}.*")))
        return out

    def _count(self, schema: Mapping[str, Any], keyword: str, path: str) -> int | None:
        value = schema.get(keyword)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if value is not None:
            self._skip(path, keyword)
        return None


def _settled(flat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Flat schemas, the first with ``unevaluatedProperties``, with ``additionalProperties`` of the same meaning instead."""
    unevaluated = flat[0]["unevaluatedProperties"]
    first = {key: value for key, value in flat[0].items() if key != "unevaluatedProperties"}
    rest = [*([first] if first else []), *flat[1:]]
    if any("additionalProperties" in one for one in flat):
        return rest
    names = {key: True for one in flat for key in _mapping(one.get("properties"))}
    patterns = {pattern: True for one in flat for pattern in _mapping(one.get("patternProperties"))}
    return [*rest, {"properties": names, "patternProperties": patterns, "additionalProperties": unevaluated}]


def _anchored(node: Any, name: str) -> Any:
    if isinstance(node, Mapping):
        if node.get("$anchor") == name:
            return node
        node = list(node.values())
    if isinstance(node, list):
        return next((found for one in node if (found := _anchored(one, name)) is not None), None)
    return None


def _types(flat: list[dict[str, Any]]) -> set[str]:
    """Types that all schemas allow; ``number`` goes with ``integer``."""
    types = set(TYPES)
    for one in flat:
        if "type" in one:
            named = {one["type"]} if isinstance(one["type"], str) else set(_names(one["type"]))
            if "number" in named:
                named.add("integer")
            types &= named
    return types


def _only_require(options: list[Any]) -> bool:
    return all(isinstance(one, Mapping) and one.keys() - ANNOTATIONS == {"required"} for one in options)


def _one_required(options: list[Any]) -> list[Any]:
    """Options that only require keys, each in every way that forbids a key of each of the others."""
    out: list[Any] = []
    for option in options:
        own = set(_names(option["required"]))
        foreign = [sorted(set(_names(other["required"])) - own) for other in options if other is not option]
        for keys in islice(product(*foreign), MOST_WAYS):
            out.append({"required": sorted(own), "properties": dict.fromkeys(keys, False)})
    return out


def _dependent(value: Mapping[str, Any], others: list[dict[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Options for the first key that others depend on, and what holds beside: the same of the other keys."""
    (key, wanted), *rest = value.items() if value else [("", [])]
    if rest:
        keyword = "dependentRequired" if isinstance(rest[0][1], list) else "dependentSchemas"
        others = [*others, {keyword: dict(rest)}]
    if not value:
        return [True], others
    present: list[Any] = [{"required": [key, *wanted]}] if isinstance(wanted, list) else [{"required": [key]}, wanted]
    return [{"properties": {key: False}}, {"allOf": present}], others


def _schemas_of(key: str, flat: list[dict[str, Any]], unevaluated: list[Any]) -> list[Any]:
    """Every schema that the value of a key has to meet."""
    out: list[Any] = []
    is_declared = any(key in _mapping(one.get("properties")) for one in flat)
    for one in flat:
        own = [_mapping(one.get("properties"))[key]] if key in _mapping(one.get("properties")) else []
        for pattern, schema in _mapping(one.get("patternProperties")).items():
            try:
                own += [schema] if re.search(pattern, key) else []
            except re.error:
                own.append(False)
        if not own and "additionalProperties" in one:
            own = [one["additionalProperties"]]
        out += own
    if not out and not is_declared and unevaluated:
        out = list(unevaluated)
    return out


def _multiples(of: int, interval: Interval) -> Shape:
    whole = interval.whole()
    low = -LARGE if whole.low is None else max(-LARGE, int(whole.low))
    high = LARGE if whole.high is None else min(LARGE, int(whole.high))
    if -(-low // of) * of > high:
        return Either(())
    return Multiple(of, low, high)


def _decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return Decimal(repr(value))


def _names(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _key_text(key: str) -> str | None:
    """A key's JSON text as a literal of the grammar; None for half characters, which have no UTF-8."""
    text = json.dumps(key, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return literal(text)
