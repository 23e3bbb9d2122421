"""``k2 plugins``: what is installed, what it provides, what is wrong with it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table
from k2core.cli.streams import strangers_code
from k2core.cli.text import fault_of


@click.group(cls=Nouns)
def plugins() -> None:
    """List plugins and find out what is wrong with them."""


@plugins.command("list")
@json_option
@click.pass_obj
def list_plugins(app: App, as_json: bool) -> None:
    """Every plugin and every command of a plugin, with what it provides or why it failed."""
    found: list[dict[str, Any]] = [
        {
            "name": report.name,
            "origin": report.origin,
            "status": report.status,
            "reason": report.reason,
            "provides": [{"kind": kind, "name": name} for kind, name in report.provides],
        }
        for report in app.plugins().reports
    ]
    commands = _commands()
    if as_json:
        emit({"plugins": found, "commands": commands})
        return
    rows = [[one["name"], one["status"], one["origin"], one["reason"] or _provided(one["provides"])] for one in found] + [
        [f"k2 {one['name']}", one["status"], one["origin"], one["reason"] or "a command"] for one in commands
    ]
    print_table(("name", "status", "origin", "provides"), rows, "No plugins are installed.")


@plugins.command()
@json_option
@click.pass_obj
@click.pass_context
def doctor(ctx: click.Context, app: App, as_json: bool) -> None:
    """Load everything that is registered and probe every backend; leave with 1 when something is wrong.

    A backend that is not available on this machine is named, but is nothing wrong.
    """
    from k2core.interfaces import NotAvailable, ToolContext
    from k2core.plugins import guard_of

    found = app.plugins()
    checks = [_check("plugin", one.name, one.name, one.reason) for one in found.reports if one.status == "failed"] + [
        _check("command", one["name"], one["origin"], one["reason"]) for one in _commands()
    ]
    others = ("tool implementation", "verifier implementation")
    for kind in ("backend", "chat format", "evaluation", "guard", "memory", "model", "tokenizer", "tool", "verifier", *others):
        for entry in found.entries(kind):
            note = ""
            reason = fault(entry.load) if entry.target is not None else ""
            if not reason and kind == "tool" and not entry.needs:
                reason = fault(partial(found.tools, ToolContext(), [entry.name]))
            if not reason and kind == "memory":
                reason = fault(partial(found.memory, entry.name))
            if not reason and kind == "guard":
                reason = fault(partial(guard_of, entry))
            if not reason and kind == "model" and entry.target is None:
                checkpoint = Path(entry.options["checkpoint"])
                reason = "" if checkpoint.is_dir() else f"there is no folder {checkpoint}"
            if not reason and kind == "backend":
                probed: list[Any] = []
                reason = fault(partial(_probe, entry, probed))
                if probed and isinstance(probed[0], NotAvailable):
                    note = f"not available: {probed[0].reason}"
            checks.append(_check(kind, entry.name, entry.plugin, reason, note))
    wrong = sum(not one["ok"] for one in checks)
    if as_json:
        emit({"checks": checks, "problems": wrong})
    else:
        rows = [
            ["ok" if one["ok"] else "wrong", one["kind"], one["name"], one["plugin"], one["reason"] or one["note"]]
            for one in sorted(checks, key=lambda one: one["ok"])
        ]
        print_table(("", "kind", "name", "plugin", "reason"), rows, "No plugins are installed.")
        click.echo(f"{len(checks)} checked, {wrong} wrong")
    ctx.exit(1 if wrong else 0)


def _probe(entry: Any, into: list[Any]) -> None:
    into.append(entry.make().probe())


def _check(kind: str, name: str, plugin: str, reason: str, note: str = "") -> dict[str, Any]:
    return {"ok": not reason, "kind": kind, "name": name, "plugin": plugin, "reason": reason, "note": note}


@strangers_code()
def fault(action: Callable[[], Any]) -> str:
    """Why *action* fails, empty when it does not."""
    from k2core.errors import K2Error

    try:
        action()
    except K2Error as error:
        return str(error)
    except (Exception, SystemExit) as error:  # plugin loading is a border: a stranger's fault becomes a line of the report
        return fault_of(error)
    return ""


def _provided(provides: list[dict[str, str]]) -> str:
    by_kind: dict[str, list[str]] = {}
    for one in provides:
        by_kind.setdefault(one["kind"], []).append(one["name"])
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in by_kind.items()) or "nothing"


def _commands() -> list[dict[str, str]]:
    from importlib.metadata import entry_points

    from k2core.cli.root import COMMAND_GROUP, COMMANDS, load_command
    from k2core.errors import PluginError

    found, seen = [], dict.fromkeys(COMMANDS, "k2core")
    for point in sorted(entry_points(group=COMMAND_GROUP), key=lambda point: (point.name, point.value)):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
        reason = ""
        if point.name in seen:
            reason = f"there is a command '{point.name}' already (from {seen[point.name]})"
        else:
            seen[point.name] = origin
            try:
                load_command(point)
            except PluginError as error:
                reason = str(error)
        found.append({"name": point.name, "origin": origin, "status": "failed" if reason else "loaded", "reason": reason})
    return found
