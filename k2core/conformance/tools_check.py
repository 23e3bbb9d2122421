"""Two tools that are said to do the same: arguments drawn from the schema that both have, both called, results compared."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from k2core.conformance.drawing import Comparison, Disagreement, compare, values_of
from k2core.errors import InputError
from k2core.interfaces import Tool, ToolResult
from k2core.messages import ToolCall
from k2core.tools import Registry

HARMLESS = ("pure", "read", "idempotent")
COMPARISONS = ("text", "lines", "exact")
_NUMBER = re.compile(r"^\[\d+\] ", re.MULTILINE)


def check_tools(
    first: Tool,
    second: Tool,
    *,
    count: int = 100,
    seed: int = 0,
    by: str = "text",
    words: Sequence[str] = (),
    effects: bool = False,
) -> Comparison[Mapping[str, Any]]:
    """Call both with the same arguments, again and again, each under its own deadline and outside any run.

    Args:
        first, second: of the same parameters.
        count: calls of each.
        seed: of the arguments.
        by: ``text`` compares results as they are, ``lines`` as sets of lines without the ``[1]`` in front of them; for both
            two errors agree, however they are worded. ``exact`` compares the words of errors too.
        words: where strings are drawn from, besides any text; of documents, say.
        effects: also tools that have effects, which then happen.

    Raises:
        InputError: Hypothesis is missing, the parameters differ, a tool has effects, or its schema has what nobody can draw.
    """
    if by not in COMPARISONS:
        raise InputError(f"cannot compare results by '{by}'. Known: {', '.join(COMPARISONS)}.")
    for one in (first, second):
        if one.control:
            raise InputError(f"cannot check tool '{one.name}': it is the agent's own")
        if one.effect not in HARMLESS and not effects:
            raise InputError(
                f"cannot check tool '{one.name}' unasked: its effect is {one.effect}, and it would be called {count} times. "
                "With --yes it is."
            )
    if first.parameters != second.parameters:
        raise InputError(
            f"cannot check '{first.name}' against '{second.name}': their parameters differ, "
            f"{_short(first.parameters)} and {_short(second.parameters)}"
        )
    registries = [Registry.of([one]) for one in (first, second)]

    def call(arguments: Mapping[str, Any]) -> tuple[Disagreement[Mapping[str, Any]] | None, bool]:
        results = [asyncio.run(_called(one, arguments)) for one in registries]
        failed = not results[0].ok and not results[1].ok
        if _compared(results[0], by) == _compared(results[1], by):
            return None, failed
        return Disagreement(given=arguments, first=results[0].text, second=results[1].text), failed

    return compare(partial(values_of, first.parameters, words), call, count=count, seed=seed)


async def _called(registry: Registry, arguments: Mapping[str, Any]) -> ToolResult:
    (name,) = registry.names()
    return await registry.call(ToolCall(id=f"functions.{name}:0", name=name, arguments=json.dumps(arguments)))


def _compared(result: ToolResult, by: str) -> object:
    if by != "exact" and not result.ok:
        return False
    return (result.ok, frozenset(_NUMBER.sub("", result.text).splitlines()) if by == "lines" else result.text)


def _short(parameters: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name}: {dict(one).get('type', 'any')}" for name, one in parameters.get("properties", {}).items())
    return f"({text[:100]})"
