"""What goes wrong, as one line on stderr, an object on stdout with ``--json``, and an exit code."""

import os
import sys

import click

from k2core.cli.output import emit, print_error
from k2core.cli.root import INTERRUPTED
from k2core.cli.text import fault_of
from k2core.errors import K2Error, UnknownName


def report(error: BaseException, *, as_json: bool) -> int:
    """Show *error* and return the exit code.

    Args:
        error: what ended the command.
        as_json: whether stdout should get ``{"error": …, "kind": …}`` too.
    """
    if isinstance(error, BrokenPipeError):
        # whoever read our output has left; the interpreter must not fail once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        click.echo(error.format_message(), err=True)  # the help, as it is laid out
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort) or _began_with_an_interrupt(error):
        line, kind, code = "interrupted", "Interrupted", INTERRUPTED
    elif isinstance(error, click.ClickException):
        line, kind, code = _click_line(error), "UsageError", error.exit_code
    elif isinstance(error, K2Error):
        line, kind, code = str(error), type(error).__name__, exit_code(error)
    else:
        line, kind, code = _unexpected(error), type(error).__name__, 1
    if as_json:
        run = getattr(error, "run", None)
        emit({"error": line, "kind": kind, **({"run": run} if run else {})})
    print_error(line)
    return code


def exit_code(error: K2Error) -> int:
    """The error's own, but 5 where there is no model or backend at all to choose from."""
    if isinstance(error, UnknownName) and error.kind in ("model", "backend") and not error.known:
        return 5
    return error.exit_code


def _began_with_an_interrupt(error: BaseException) -> bool:
    """Whether it is what a library made of Ctrl-C: one that is interrupted in its import says that the import failed."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _click_line(error: click.ClickException) -> str:
    line = " ".join(error.format_message().split())
    line += "" if line.endswith((".", "?")) else "."
    context = getattr(error, "ctx", None)
    return line + (f" See {context.command_path} --help." if context is not None else "")


def _unexpected(error: BaseException) -> str:
    import logging

    if logging.getLogger("k2core").isEnabledFor(logging.DEBUG):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    return f"unexpected {fault_of(error)}. This is a fault of k2core or a plugin: -vv shows where."
