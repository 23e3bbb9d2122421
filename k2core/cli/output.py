"""What commands print: JSON objects, tables, error lines."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from k2core.cli.text import clean, one_line, to_json

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """``--json``, and behind every command what `general_options` puts in front of it."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object with stable keys.")(command)
    return general_options(command, hidden=True)


def general_options(command: F, *, hidden: bool = False) -> F:
    """Options of every command; they are kept in the context's root, whichever place they were given at."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value and parameter.name is not None:
            ctx.find_root().meta[parameter.name] = value

    options: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("-v", "--verbose"), {"count": True, "help": "More log lines: -v info, -vv debug."}),
        (("--log-level",), {"metavar": "LEVEL", "help": "debug, info, warning (the default) or error."}),
        (("--config", "settings_file"), {"metavar": "FILE", "help": "A settings file instead of your own."}),
    )
    for names, keywords in reversed(options):
        command = click.option(*names, expose_value=False, callback=keep, hidden=hidden, **keywords)(command)
    return command


def emit(value: Any) -> None:
    """Print one JSON value: indented on a terminal, else on one line."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    is_unicode = encoding.startswith("utf")
    click.echo(to_json(value, indent=2 if sys.stdout.isatty() else None, ascii_only=not is_unicode))


def print_error(line: str) -> None:
    """One line on stderr."""
    click.echo(f"k2: {one_line(line, 2000)}", err=True)


def print_text(text: str, *, bold: bool = False) -> None:
    """Cleaned text on stdout, *bold* only on a terminal."""
    click.secho(clean(text), bold=bold and sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Aligned columns on stdout, *empty* when there are no rows; on a terminal the last column is wrapped.

    Where there is no room for it beside the others, it gets lines of its own below.
    """
    if not rows:
        click.echo(empty)
        return
    cleaned = [[one_line(cell, 400) for cell in row] for row in rows]
    lines = [list(header), *cleaned]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    limit = _width()
    for number, line in enumerate(lines):
        text = _laid_out(line, widths, limit)
        click.secho(text, bold=number == 0 and limit is not None and "NO_COLOR" not in os.environ)


def _laid_out(line: Sequence[str], widths: Sequence[int], limit: int | None) -> str:
    import textwrap

    *cells, last = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    beside = sum(widths[:-1]) + 2 * len(cells)
    if limit is None or beside + widths[-1] <= limit:
        return "  ".join([*cells, last]).rstrip()
    if limit - beside >= 24:
        wrapped = textwrap.wrap(last, limit - beside)
        return "  ".join([*cells, f"\n{' ' * beside}".join(wrapped)]).rstrip()
    return "\n".join(["  ".join(cells).rstrip(), *(f"    {part}" for part in textwrap.wrap(last, max(20, limit - 4)))])


def _width() -> int | None:
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns
