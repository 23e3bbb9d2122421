"""Tools: a JSON Schema from a function's hints and docstring, validated arguments, deadlines, bounded results.

`tool` turns a typed function into a `Tool`; `Registry` holds a session's tools and runs calls. Whatever a model or a tool
does wrong ends as a `ToolResult` whose text starts with ``error: ``, never as an exception.
"""

import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints, overload

from attrs import define, evolve, field

from k2core.deadline import DeadlineExceeded, run_with_deadline
from k2core.errors import PluginError, ToolError, UnknownName
from k2core.interfaces import Effect, Tool, ToolResult
from k2core.messages import ToolCall

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
RESULT_LIMIT = 16_000  # characters of a result that the model sees
ERROR_LIMIT = 300  # characters of one error line
CONTROL_NAMES = ("answer", "note")  # carried out by the agent loop; no plugin may register them


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, effect: Effect = "external", timeout_s: float = 10.0, control: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect = "external",
    timeout_s: float = 10.0,
    control: bool = False,
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

    Raises:
        PluginError: a parameter has no type hint, is positional-only or variadic, or has a type without a JSON Schema.
    """

    def make(fn: Callable[..., Any]) -> Tool:
        chosen = name or fn.__name__
        description, arguments = _docstring(fn)
        schema, convert = _schema(fn, chosen, arguments)

        def call(**raw: Any) -> Any:
            return fn(**convert(raw))

        async def call_async(**raw: Any) -> Any:
            return await fn(**convert(raw))

        return check_tool(
            Tool(
                name=chosen,
                description=description,
                parameters=schema,
                function=call_async if inspect.iscoroutinefunction(fn) else call,
                effect=effect,
                timeout_s=timeout_s,
                control=control,
            )
        )

    return make if function is None else make(function)


def check_tool(candidate: object) -> Tool:
    """Return *candidate* if it is a well-formed `Tool`.

    Raises:
        PluginError: it is something else, has a name no model could write, an unknown effect, or a schema that is none.
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
    try:
        jsonschema.Draft202012Validator.check_schema(candidate.parameters)
    except jsonschema.SchemaError as error:
        raise PluginError(
            f"cannot register tool '{candidate.name}': its parameters are no JSON Schema: {error.message}"
        ) from error
    return candidate


@define
class Registry:
    """The tools of one session; implements `k2core.interfaces.ToolRegistry`.

    Attributes:
        result_limit: characters of a result that the model sees; longer ones are cut and say so.
    """

    _tools: dict[str, Tool] = field(factory=dict)
    result_limit: int = RESULT_LIMIT

    @classmethod
    def of(cls, tools: Iterable[Tool], *, result_limit: int = RESULT_LIMIT) -> "Registry":
        """A registry of *tools*.

        Raises:
            PluginError: two share a name.
        """
        registry = cls(result_limit=result_limit)
        for one in tools:
            registry.add(one)
        return registry

    def add(self, one: Tool) -> None:
        """Add a tool.

        Raises:
            PluginError: the name is taken.
        """
        if one.name in self._tools:
            raise PluginError(f"cannot add tool '{one.name}': there is one of that name already")
        self._tools[one.name] = one

    def names(self) -> tuple[str, ...]:
        """Sorted names."""
        return tuple(sorted(self._tools))

    def get(self, name: str) -> Tool:
        """The tool of that name, else `UnknownName` with the nearest."""
        try:
            return self._tools[name]
        except KeyError:
            raise UnknownName("tool", name, self._tools) from None

    def declarations(self) -> list[dict[str, Any]]:
        """All tools in OpenAI's form, in name order."""
        return [self._tools[name].declaration() for name in self.names()]

    def arguments_of(self, call: ToolCall) -> dict[str, Any]:
        """The call's arguments, parsed and valid.

        Raises:
            ToolError: unknown tool, not JSON, or not what the schema says; the line lists every error with its path.
        """
        try:
            wanted = self.get(call.name)
        except UnknownName as error:
            raise ToolError(str(error)) from error
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ToolError(f"invalid arguments: not JSON: {_short(str(error))}") from error
        problems = schema_errors(wanted.parameters, arguments)
        if problems:
            raise ToolError("invalid arguments: " + "; ".join(problems))
        assert isinstance(arguments, dict)  # the schema's type is object
        return arguments

    async def call(self, call: ToolCall, *, most_s: float | None = None) -> ToolResult:
        """Validate *call*, run it under its deadline, and bound what comes back.

        Args:
            call: as the model wrote it.
            most_s: seconds that are left at all; None leaves the tool's own deadline.
        """
        started = time.perf_counter()
        try:
            arguments = self.arguments_of(call)
            wanted = self._tools[call.name]
            timeout_s = wanted.timeout_s if most_s is None else min(wanted.timeout_s, most_s)
            text = as_text(await run_with_deadline(wanted.function, timeout_s, **arguments))
            ok = True
        except DeadlineExceeded as error:
            text, ok = f"error: timed out after {error.timeout_s:g} s", False
        except ToolError as error:
            text, ok = f"error: {_one_line(str(error))}", False
        except Exception as error:  # a tool's own failure is an observation for the model
            text, ok = f"error: {type(error).__name__}: {_one_line(str(error))}".rstrip(": "), False
        result = ToolResult(text=text, ok=ok, duration_ms=(time.perf_counter() - started) * 1e3)
        return bound(result, self.result_limit)


def bound(result: ToolResult, limit: int) -> ToolResult:
    """*result* with its text cut to *limit* characters, the cut marked, and `full_bytes` set."""
    size = len(result.text.encode("utf-8", "surrogatepass"))
    if len(result.text) <= limit:
        return evolve(result, full_bytes=size)
    text = f"{result.text[:limit]}\n[cut: {limit} of {len(result.text)} characters shown]"
    return evolve(result, text=text, full_bytes=size, truncated=True)


def as_text(value: object) -> str:
    """What a tool returned, as the model sees it: text as it is, UTF-8 bytes decoded, anything else as compact JSON.

    Raises:
        ToolError: bytes that are not UTF-8, or a value that JSON cannot hold.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate could not be stored
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ToolError(f"the tool returned {len(value)} bytes that are not UTF-8 text") from error
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"the tool returned {type(value).__name__}, which is neither text nor JSON") from error


def schema_errors(schema: Mapping[str, Any], value: object) -> list[str]:
    """Every way in which *value* misses *schema*, each as ``$.path: message``, in path order."""
    import jsonschema

    errors = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(value),
        key=lambda error: [str(step) for step in error.absolute_path],
    )
    return [f"{error.json_path}: {_short(error.message)}" for error in errors]


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


def _short(text: str) -> str:
    return text if len(text) <= ERROR_LIMIT else text[: ERROR_LIMIT - 1] + "…"


def _one_line(text: str) -> str:
    return _short(" ".join(text.split()))
