"""``k2 version``."""

import platform

import click

import k2core
from k2core.cli.output import emit, json_option


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Show versions."""
    if as_json:
        emit({"k2core": k2core.__version__, "python": platform.python_version(), "platform": platform.platform()})
    else:
        click.echo(f"k2core {k2core.__version__} (Python {platform.python_version()}, {platform.platform()})")
