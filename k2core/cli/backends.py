"""``k2 backends``: what can run models here, or why not."""

from functools import partial
from typing import Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table
from k2core.cli.plugins import fault


@click.group(cls=Nouns)
def backends() -> None:
    """List what can run models here."""


@backends.command("list")
@json_option
@click.pass_obj
def list_backends(app: App, as_json: bool) -> None:
    """Every backend: available with its device, or why not; one whose own code fails is shown as failed."""
    found: list[dict[str, Any]] = []
    for entry in app.plugins().entries("backend"):
        row: dict[str, Any] = {"name": entry.name, "available": False, "device": "", "detail": "", "plugin": entry.plugin}
        reason = fault(partial(_probe, entry, row))
        found.append(row | {"detail": f"failed: {reason}"} if reason else row)
    if as_json:
        emit({"backends": found})
        return
    rows = [
        [one["name"], f"yes ({one['device']})" if one["available"] else "no", one["plugin"], one["detail"]] for one in found
    ]
    print_table(("name", "available", "plugin", "detail"), rows, "No backends are registered. See k2 plugins.")


def _probe(entry: Any, into: dict[str, Any]) -> None:
    from k2core.interfaces import Available

    probed = entry.make().probe()
    if isinstance(probed, Available):
        into.update(available=True, device=probed.device, detail=probed.detail)
    else:
        into.update(detail=probed.reason)
