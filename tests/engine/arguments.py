"""Values drawn from a JSON Schema itself, for what a mask must let through."""

import json
import math
import re
from decimal import Decimal

import jsonschema
from hypothesis import strategies as st

from k2core.engine.schemas.reader import ANNOTATIONS

TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from('\n\t\r\b\f"\\/\x7f'), max_size=12
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), TEXT)
LARGE = st.floats(-1e280, 1e280).filter(lambda one: one == 0 or abs(one) > 1e-280)
KNOWN = frozenset(
    [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "enum",
        "const",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "anyOf",
        "oneOf",
        "$ref",
        "minProperties",
        "maxProperties",
    ]
)


class NotDrawn(Exception):
    """The schema has a keyword that values are not drawn for."""


def arguments_of(schema):
    """A strategy for objects that a tool's schema admits.

    Raises:
        NotDrawn: names the keyword.
    """
    validator = jsonschema.Draft202012Validator(schema)
    return values_of(schema, dict(schema)).filter(lambda value: isinstance(value, dict) and validator.is_valid(value))


def canonical(value):
    """A value in the one spelling."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def values_of(schema, root):
    """A strategy for a part of a schema; what it draws may still miss some keyword."""
    if schema is True or schema == {}:
        return PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(TEXT, PLAIN, max_size=2)
    own = schema.keys() - ANNOTATIONS - {"$known"}
    if own - KNOWN:
        raise NotDrawn(str(own - KNOWN))
    if "$ref" in schema:
        return referred(schema["$ref"], root)
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            rest = {key: value for key, value in schema.items() if key != keyword}
            return st.one_of([values_of(merged(rest, option), root) for option in schema[keyword]])
    types = schema.get("type", "object" if "properties" in schema else None)
    if types is None:
        raise NotDrawn("no type")
    return st.one_of([typed(one, schema, root) for one in ([types] if isinstance(types, str) else types)])


def referred(reference, root):
    """Values of a part of the schema that is referred to; one strategy for each, which may contain itself."""
    known = root.setdefault("$known", {})
    if reference not in known:
        node = root
        if not reference.startswith("#/"):
            raise NotDrawn(reference)
        for step in reference.split("/")[1:]:
            node = node[step.replace("~1", "/").replace("~0", "~")]
        known[reference] = st.deferred(lambda: values_of(node, root))
    return known[reference]


def merged(rest, option):
    """A schema beside one of its options."""
    both = {**rest, **option}
    if "properties" in rest and "properties" in option:
        raise NotDrawn("properties at two places")
    both["required"] = [*rest.get("required", []), *option.get("required", [])]
    return both


def typed(kind, schema, root):
    """Values of one type."""
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "string":
            return texts(schema)
        case "integer" | "number":
            return numbers(kind, schema)
        case "array":
            return arrays(schema, root)
        case "object":
            return objects(schema, root)
    raise NotDrawn(kind)


def texts(schema):
    """Strings."""
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except re.error as error:
            raise NotDrawn(schema["pattern"]) from error
        drawn = st.from_regex(schema["pattern"], alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E))
        drawn = drawn.filter(lambda one: not one.endswith("\n"))  # the one thing beside the end that ``$`` stands for
    else:
        drawn = TEXT if schema.get("maxLength", 99) > 12 else st.text('aé🙂"\\\n', max_size=schema["maxLength"])
    return drawn.filter(lambda one: schema.get("minLength", 0) <= len(one) <= schema.get("maxLength", 99))


def numbers(kind, schema):
    """Numbers in plain decimals; without bounds others too."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    of = schema.get("multipleOf")
    whole = st.integers(None if low == -math.inf else math.ceil(low), None if high == math.inf else math.floor(high))
    if of is not None:
        if of != int(of):
            raise NotDrawn("multiples of a fraction")
        return whole.filter(lambda one: abs(one) < 10**15).map(lambda one: one // of * of)
    if kind == "integer":
        return whole
    bounds = Decimal(str(max(low, -(10**6)))), Decimal(str(min(high, 10**6)))
    decimals = st.decimals(*bounds, allow_nan=False, allow_infinity=False, places=3).map(
        lambda one: float(one) + 0.0
    )  # no -0.0
    if low == -math.inf and high == math.inf:
        return decimals | whole.filter(lambda one: abs(one) < 10**30) | LARGE.map(lambda one: one + 0.0)
    return decimals.filter(lambda one: one == 0 or abs(one) >= 1e-4)  # smaller ones are written with an exponent


def arrays(schema, root):
    """Arrays."""
    first = [values_of(one, root) for one in schema.get("prefixItems", [])]
    rest = schema.get("items", True)
    least, most = schema.get("minItems", 0), schema.get("maxItems", schema.get("minItems", 0) + 3)
    if not first:
        return st.lists(values_of(rest, root), min_size=least, max_size=most)
    rests = st.just([]) if rest is False else st.lists(values_of(rest, root), max_size=2)
    return st.builds(lambda start, end: [*start, *end], st.tuples(*first), rests)


def objects(schema, root):
    """Objects; keys that are not declared only where none is."""
    properties = {key: value for key, value in schema.get("properties", {}).items() if value is not False}
    required = set(schema.get("required", []))
    if required - properties.keys():
        raise NotDrawn("required but not declared")
    if properties or "properties" in schema:
        fixed = {key: values_of(value, root) for key, value in properties.items() if key in required}
        optional = {key: values_of(value, root) for key, value in properties.items() if key not in required}
        return st.fixed_dictionaries(fixed, optional=optional)
    extra = schema.get("additionalProperties", True)
    if extra is False:
        return st.just({})
    return st.dictionaries(TEXT, values_of(extra, root), min_size=schema.get("minProperties", 0), max_size=3)
