"""A session's tools and their calls: validated arguments, deadlines, bounded results.

Whatever a model or a tool does wrong ends as a `ToolResult` whose text starts with ``error: ``, never as an exception.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import define, evolve, field

from k2core.calls import during
from k2core.deadline import DeadlineExceeded, run_with_deadline
from k2core.errors import PluginError, ToolError, UnknownName
from k2core.interfaces import CallContext, Tool, ToolOutput, ToolResult
from k2core.messages import ToolCall

RESULT_LIMIT = 16_000  # characters of a result that the model sees
ERROR_LIMIT = 300  # characters of one error line
CONTROL_NAMES = ("answer", "note", "plan", "hypothesis", "recall")  # carried out by the agent loop; no plugin may register them


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

    def replace(self, one: Tool) -> None:
        """Put *one* in the place of the tool of its name, else `UnknownName`; calls that run are not touched."""
        self.get(one.name)
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

    async def call(self, call: ToolCall, *, most_s: float | None = None, context: CallContext | None = None) -> ToolResult:
        """Validate *call*, run it under its deadline, and bound what comes back.

        Args:
            call: as the model wrote it.
            most_s: seconds that are left at all; None leaves the tool's own deadline.
            context: what the tool may know of its call.
        """
        started = time.perf_counter()
        output, untrusted = ToolOutput(text=""), False
        try:
            arguments = self.arguments_of(call)
            wanted = self._tools[call.name]
            untrusted = wanted.untrusted
            timeout_s = wanted.timeout_s if most_s is None else min(wanted.timeout_s, most_s)
            with during(evolve(context or CallContext(), left_s=timeout_s)):
                returned = await run_with_deadline(wanted.function, timeout_s, **arguments)
            output = returned if isinstance(returned, ToolOutput) else ToolOutput(text=as_text(returned))
            text, ok = as_text(output.text), output.ok
        except DeadlineExceeded as error:
            text, ok = f"error: timed out after {error.timeout_s:g} s", False
        except ToolError as error:
            text, ok = f"error: {_one_line(str(error))}", False
        except Exception as error:  # a tool's own failure is an observation for the model
            text, ok = f"error: {type(error).__name__}: {_one_line(str(error))}".rstrip(": "), False
        duration_ms = (time.perf_counter() - started) * 1e3
        result = ToolResult(text=text, ok=ok, duration_ms=duration_ms, files=output.files, details=output.details)
        return bound(evolve(result, untrusted=untrusted), self.result_limit)


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


def _short(text: str) -> str:
    return text if len(text) <= ERROR_LIMIT else text[: ERROR_LIMIT - 1] + "…"


def _one_line(text: str) -> str:
    return _short(" ".join(text.split()))
