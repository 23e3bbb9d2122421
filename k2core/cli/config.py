"""``k2 config``: every setting with its origin."""

import click

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table


@click.group(cls=Nouns, default="show")
def config() -> None:
    """Show every setting and where it comes from."""


@config.command()
@json_option
@click.pass_obj
def show(app: App, as_json: bool) -> None:
    """Each setting's value and its origin: flag, environment, file or default."""
    settings = app.settings()
    if as_json:
        emit(
            {
                "file": str(settings.file),
                "file_exists": settings.file.is_file(),
                "settings": [
                    {
                        "name": name,
                        "value": str(one.value) if one.key.kind == "path" and one.value is not None else one.value,
                        "origin": one.origin,
                        "help": one.key.help,
                    }
                    for name, one in settings.values.items()
                ],
            }
        )
        return
    rows = [[name, _text(one.value), one.origin, one.key.help] for name, one in settings.values.items()]
    print_table(("setting", "value", "origin", "what it is"), rows, "")
    state = "" if settings.file.is_file() else " (does not exist)"
    click.echo(f"\nfile: {settings.file}{state}\nenvironment: K2CORE_ and a setting's name in capitals")


def _text(value: object) -> str:
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
