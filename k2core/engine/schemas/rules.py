"""A JSON Schema as rules of a grammar: what the mask can enforce of it, and the list of what it cannot."""

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen

OPTIONS = {"whitespace_flexible": False}


@frozen
class Rules:
    """Rules of a grammar for the JSON texts of one schema.

    Attributes:
        text: the rules, one a line; the first has the name that was asked for.
        unenforced: (path, keyword) of what the rules do not hold to.
    """

    text: str
    unenforced: tuple[tuple[str, str], ...] = ()


def rules(schema: Mapping[str, Any] | bool, name: str) -> Rules:
    """Rules for *schema*; a text that follows them is in its one spelling: compact, keys in sorted order.

    Args:
        schema: draft 2020-12.
        name: of the first rule; lower case.
    """
    body = _sorted(dict(schema) if isinstance(schema, Mapping) else {}) | {"x-guidance": OPTIONS}
    return Rules(f"{name}: %json {json.dumps(body)}\n")


def _sorted(node: Any) -> Any:
    if isinstance(node, Mapping):
        out = {key: _sorted(value) for key, value in sorted(node.items())}
        if "properties" in out:
            out.setdefault("additionalProperties", False)
        return out
    return [_sorted(one) for one in node] if isinstance(node, list | tuple) else node
