"""How a turn was asked for, as its event keeps it, so that it can be asked for once more.

The conversation is a projection of the events before the turn, and the tools are those that the run began with. All else is
written down with the turn: what budgets leave, what the model may not call just then, and sampling, which may be another one
each time a run goes on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, fields

from k2core.events import RunStarted, Stored, TurnEnded
from k2core.interfaces import GenerateOptions

TOOLS = "tools"  # names of the declared ones, where they are not those that the run began with


def written(options: GenerateOptions, tools: Sequence[str], events: Sequence[Stored]) -> dict[str, Any]:
    """What a turn's event keeps: all options but those that are None or empty.

    Args:
        options: of the turn.
        tools: names of the declared tools.
        events: of the run so far.
    """
    kept = {name: value for name, value in asdict(options).items() if value is not None and value != []}
    return kept if tuple(tools) == began_with(events) else {**kept, TOOLS: list(tools)}


def options_of(turn: TurnEnded) -> GenerateOptions | None:
    """What a turn was held to; None where its event does not tell, as one does not that an earlier k2core wrote."""
    if not turn.options:
        return None
    known = {one.name for one in fields(GenerateOptions)}
    found: dict[str, Any] = {name: value for name, value in turn.options.items() if name in known}
    for name in ("forbidden_tools", "forbidden_calls"):
        found[name] = tuple(tuple(one) if isinstance(one, list) else one for one in found.get(name, ()))
    return GenerateOptions(**found)


def tools_of(turn: TurnEnded, events: Sequence[Stored]) -> tuple[str, ...]:
    """Names of the tools that a turn was told of, in order; *events* are the run's."""
    options: Mapping[str, Any] = turn.options
    return tuple(options.get(TOOLS, began_with(events)))


def began_with(events: Sequence[Stored]) -> tuple[str, ...]:
    """Names of the tools that a run began with."""
    return next((tuple(one.event.tools) for one in events if isinstance(one.event, RunStarted)), ())
