"""Settings of a run that goes on: what was recorded of it, where nobody asks for something else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from k2core.agent.window import WINDOW
from k2core.cli.limits import LIMITS
from k2core.cli.settings import Settings
from k2core.events import LimitsChanged, RunForked, RunResumed, RunStarted, Stored
from k2core.tools import CONTROL_NAMES

SAMPLING = ("temperature", "top_p", "min_p", "max_tokens", "masks")
FOLDERS = ("docs", "workspace")
PLACES = ("device", "moe", "sandbox", "trust")


def settings_of_run(settings: Settings, events: Sequence[Stored]) -> Settings:
    """*settings* with what the run recorded in the place of defaults.

    Args:
        settings: in force for anything new.
        events: of the run.
    """
    started = next((one.event for one in events if isinstance(one.event, RunStarted)), None)
    if started is None:
        return settings
    found: dict[str, Any] = {"seed": seed_of(events), "numerics": started.model.get("numerics") or None}
    found |= {name: started.options.get(name) for name in (*SAMPLING, *PLACES)}
    found |= {name: Path(str(started.options[name])) for name in FOLDERS if started.options.get(name)}
    found["memory"] = started.options.get("memory") or WINDOW  # runs that do not say had the framework's own rules
    found["approve"] = tuple(started.options.get("approve") or ()) or None
    found["tools"] = tuple(name for name in started.tools if name not in CONTROL_NAMES) or None
    if settings.values["effort"].is_default:
        limits = [one.event.limits for one in events if isinstance(one.event, RunStarted | RunResumed | LimitsChanged)][-1]
        for name, budget in LIMITS.items():
            value = limits.get(budget)
            found[name] = int(value) if value is not None and settings.values[name].key.kind == "whole number" else value
    origin = f"run {events[0].run}"
    values = {
        name: evolve(value, value=found[name], origin=origin) if value.is_default and found.get(name) is not None else value
        for name, value in settings.values.items()
    }
    return evolve(settings, values=values)


def seed_of(events: Sequence[Stored]) -> int | None:
    """The seed that a run began with, or the one that it was forked with; None where it has no beginning."""
    seeds = [one.event.seed for one in events if isinstance(one.event, RunStarted | RunForked) and one.event.seed is not None]
    return seeds[-1] if seeds else None
