"""What commands print: JSON objects, tables, error lines."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from k2core.cli.text import clean, one_line, to_json

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object with stable keys.")


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
    """Aligned columns on stdout, *empty* when there are no rows; on a terminal the last column is cut to fit."""
    if not rows:
        click.echo(empty)
        return
    cleaned = [[one_line(cell, 400) for cell in row] for row in rows]
    lines = [list(header), *cleaned]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    limit = _width()
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        text = text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
        click.secho(text, bold=number == 0 and limit is not None and "NO_COLOR" not in os.environ)


def _width() -> int | None:
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns
