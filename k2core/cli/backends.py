"""``k2 backends``: what can run models here, or why not."""

from typing import Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table
from k2core.cli.plugins import load_backend


@click.group(cls=Nouns)
def backends() -> None:
    """List what can run models here."""


@backends.command("list")
@json_option
@click.pass_obj
def list_backends(app: App, as_json: bool) -> None:
    """Every backend: available with its device, or why not."""
    from k2core.errors import PluginError
    from k2core.interfaces import Available

    found: list[dict[str, Any]] = []
    for entry in app.plugins().entries("backend"):
        device, detail = "", ""
        try:
            probed = load_backend(entry).probe()
        except PluginError as error:
            available, detail = False, str(error)
        else:
            available = isinstance(probed, Available)
            device, detail = (probed.device, probed.detail) if isinstance(probed, Available) else ("", probed.reason)
        found.append({"name": entry.name, "available": available, "device": device, "detail": detail, "plugin": entry.plugin})
    if as_json:
        emit({"backends": found})
        return
    rows = [
        [one["name"], f"yes ({one['device']})" if one["available"] else "no", one["plugin"], one["detail"]] for one in found
    ]
    print_table(("name", "available", "plugin", "detail"), rows, "No backends are registered. See k2 plugins.")
