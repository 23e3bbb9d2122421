"""What commands print: JSON objects, tables, error lines; and keeping tools off stdout."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

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


class _Guard:
    """A stdout that drops what tools print: their threads by name, async ones because an event loop runs."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def buffer(self) -> "_Guard":
        return _Guard(self._inner.buffer)

    def write(self, data: Any) -> int:
        return len(data) if _is_a_tool() else self._inner.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _is_a_tool() -> bool:
    import asyncio

    from k2core.deadline import THREAD_NAME

    if threading.current_thread().name == THREAD_NAME:
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def tools_kept_off_stdout() -> Iterator[None]:
    """Within, only the command itself reaches stdout; the command must not print there from inside its event loop.

    A tool that outlives its deadline may print later: the guard of a process's real stdout stays for good.
    """
    outer: TextIO = sys.stdout
    guard = outer if isinstance(outer, _Guard) else _Guard(outer)
    sys.stdout = guard
    try:
        yield
    finally:
        if outer is not sys.__stdout__:
            sys.stdout = outer
