"""Make a tool: a JSON Schema from a function's hints and docstring, and the check that every tool goes through."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints, overload

from k2core.errors import PluginError, ToolError
from k2core.interfaces import Effect, Tool

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    effect: Effect = "external",
    timeout_s: float = 10.0,
    control: bool = False,
    undo: Callable[..., Any] | None = None,
    reconcile: Callable[..., Any] | None = None,
    untrusted: bool = False,
    confined: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect = "external",
    timeout_s: float = 10.0,
    control: bool = False,
    undo: Callable[..., Any] | None = None,
    reconcile: Callable[..., Any] | None = None,
    untrusted: bool = False,
    confined: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a `Tool` of a function with type hints and a docstring.

    The docstring's first paragraph becomes the description; entries of an ``Args:`` section become the parameters'
    descriptions. Parameters without a default are required; unknown arguments are refused.

    Args:
        function: when used without parentheses.
        name: what the model writes; the function's own name by default.
        effect: see `Tool.effect`; without it a tool counts as ``external`` and is never repeated unasked.
        timeout_s: deadline of one call in seconds.
        control: handled by the agent loop itself.
        undo: see `Tool.undo`; takes the function's parameters.
        reconcile: see `Tool.reconcile`; takes the function's parameters.
        untrusted: see `Tool.untrusted`.
        confined: see `Tool.confined`.

    Raises:
        PluginError: a parameter has no type hint, is positional-only or variadic, or has a type without a JSON Schema.
    """

    def make(fn: Callable[..., Any]) -> Tool:
        chosen = name or fn.__name__
        description, arguments = _docstring(fn)
        schema, convert = _schema(fn, chosen, arguments)

        def converting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(**raw: Any) -> Any:
                return function(**convert(raw))

            async def call_async(**raw: Any) -> Any:
                return await function(**convert(raw))

            return call_async if inspect.iscoroutinefunction(function) else call

        return check_tool(
            Tool(
                name=chosen,
                description=description,
                parameters=schema,
                function=converting(fn),
                effect=effect,
                timeout_s=timeout_s,
                control=control,
                undo=None if undo is None else converting(undo),
                reconcile=None if reconcile is None else converting(reconcile),
                untrusted=untrusted,
                confined=confined,
            )
        )

    return make if function is None else make(function)


def check_tool(candidate: object) -> Tool:
    """Return *candidate* if it is a well-formed `Tool`.

    Raises:
        PluginError: it is something else, has a name no model could write, an unknown effect, an undo without being reversible
            or the other way round, or a schema that is none.
    """
    import jsonschema

    if not isinstance(candidate, Tool):
        raise PluginError(
            f"cannot register {candidate!r} as a tool: it is {type(candidate).__name__}. Decorate a function with @tool."
        )
    if not NAME.fullmatch(candidate.name):
        raise PluginError(
            f"cannot register tool {candidate.name!r}: a name is a letter or _, then up to 63 letters, digits, _ or -"
        )
    if candidate.effect not in ("pure", "read", "idempotent", "reversible", "external"):
        raise PluginError(
            f"cannot register tool '{candidate.name}': effect {candidate.effect!r} is none of "
            "pure, read, idempotent, reversible, external"
        )
    if (candidate.effect == "reversible") != (candidate.undo is not None):
        raise PluginError(
            f"cannot register tool '{candidate.name}': its effect is {candidate.effect} and "
            + ("it has no undo; give undo=FUNCTION, or leave it external" if candidate.undo is None else "it has an undo")
        )
    try:
        kind = jsonschema.Draft202012Validator
        kind.check_schema(candidate.parameters, kind.FORMAT_CHECKER)  # which reads patterns, too
    except jsonschema.SchemaError as error:
        raise PluginError(
            f"cannot register tool '{candidate.name}': its parameters are no JSON Schema: {error.message}"
        ) from error
    return candidate


def _schema(
    fn: Callable[..., Any], name: str, descriptions: Mapping[str, str]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    import msgspec

    hints = get_type_hints(fn, include_extras=True)
    fields: list[Any] = []
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PluginError(f"cannot make a tool of '{name}': parameter '{parameter}' is positional-only or variadic")
        if parameter.name not in hints:
            raise PluginError(f"cannot make a tool of '{name}': parameter '{parameter.name}' has no type hint")
        kind = hints[parameter.name]
        fields.append(
            (parameter.name, kind) if parameter.default is parameter.empty else (parameter.name, kind, parameter.default)
        )
    try:
        arguments = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)
        _, components = msgspec.json.schema_components([arguments])
    except TypeError as error:
        raise PluginError(f"cannot make a tool of '{name}': {error}") from error
    schema = _inline(components["Arguments"], components)
    for parameter_name, description in descriptions.items():
        if parameter_name in schema.get("properties", {}):
            schema["properties"][parameter_name]["description"] = description
    schema.setdefault("required", [])

    def convert(raw: dict[str, Any]) -> dict[str, Any]:
        try:
            typed = msgspec.convert(raw, arguments)
        except msgspec.ValidationError as error:
            raise ToolError(f"invalid arguments: {error}") from error
        return {one: getattr(typed, one) for one in arguments.__struct_fields__}

    return schema, convert


def _inline(node: Any, components: Mapping[str, Any]) -> Any:
    """Replace references by what they name and drop titles: a declaration should be read without a second place."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            return _inline(components[str(node["$ref"]).rsplit("/", 1)[-1]], components)
        return {
            key: _inline(value, components)
            for key, value in sorted(node.items())
            if key != "title" or not isinstance(value, str)
        }
    return [_inline(one, components) for one in node] if isinstance(node, list) else node


def _docstring(fn: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    text = inspect.getdoc(fn) or ""
    description = " ".join(text.split("\n\n", 1)[0].split())
    arguments: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", text, re.M)
    current = ""
    for line in section[1].splitlines() if section else ():
        entry = re.match(r" {4}(\w+)(?: \([^)]*\))?: (.*)", line)
        if entry:
            current = entry[1]
            arguments[current] = entry[2].strip()
        elif current and line.strip():
            arguments[current] += " " + line.strip()
    return description, arguments
