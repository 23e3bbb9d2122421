"""``k2 chat``: questions and answers in one run."""

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from k2core.cli.app import App
from k2core.cli.options import choice_of, session_options
from k2core.cli.output import emit, json_option, print_error
from k2core.cli.streams import typing

if TYPE_CHECKING:
    from k2core.agent.session import Session

HELP = """\
/help   this
/tools  the tools that the model may call
/use    go on with another backend, e.g. /use numba: the last tokens are scored on both first
/exit   leave (Ctrl-D does too)
Everything else is a question. Ctrl-C stops the answer that is being worked on."""


@click.command()
@session_options
@json_option
@click.pass_obj
@click.pass_context
def chat(ctx: click.Context, app: App, /, as_json: bool, run: str | None, **flags: Any) -> None:
    """Ask several questions in one run; each line is one question.

    With --json every question gives one JSON object on a line of its own, as k2 run --json does.
    """
    settings = app.settings(**flags)
    plugins = app.plugins()
    choice, full = choice_of(settings, plugins, run)
    store = settings.values["store"]

    from k2core.cli import asking
    from k2core.cli.display import Display
    from k2core.cli.screen import stderr_screen
    from k2core.errors import InputError, K2Error, UnknownName

    display = None if as_json else Display(screen=stderr_screen(), reasoning=settings["reasoning"])
    interactive = sys.stdin.isatty() and not as_json
    code = 0
    with asking.open_session(choice, plugins, display) as session, asyncio.Runner() as runner:
        identity = dict(session.agent.model.identity())
        if full is not None and display is not None:
            display.remember(session.agent.journal.events(full))
        if interactive:
            click.echo(f"k2core chat with {identity.get('model', choice.model)}. /help lists commands.", err=True)
        while True:
            try:
                line = _read_line(interactive)
            except InputError as error:
                code = error.exit_code
                if as_json:
                    emit({"error": str(error), "kind": type(error).__name__, "run": full})
                print_error(str(error))
                continue
            except KeyboardInterrupt:
                if not interactive:
                    raise
                click.echo("\nCtrl-D or /exit leaves.", err=True)
                continue
            if line is None:
                break
            if line in ("/exit", "/quit"):
                break
            if line == "/help":
                click.echo(HELP, err=True)
            elif line == "/tools":
                for name in session.agent.tools.names():
                    click.echo(f"{name:12} {session.agent.tools.get(name).description}", err=True)
            elif line.split()[:1] == ["/use"]:
                code = _use(session, line, as_json)
                identity = dict(session.agent.model.identity())
            elif line.startswith("/"):
                print_error(str(UnknownName("command", line.split()[0], ("/exit", "/help", "/tools", "/use"))))
            elif line:
                try:
                    asked = asking.ask(runner, session, line, full, display, app.caught)
                except K2Error as error:
                    full, code = getattr(error, "run", full), 1
                    if as_json:
                        emit({"error": str(error), "kind": type(error).__name__, "run": full})
                    print_error(str(error))
                    continue
                full = asked.run
                if asked.cancelled:
                    code = 130
                    if as_json:
                        emit({"error": "interrupted", "kind": "Interrupted", "run": full})
                    print_error("interrupted")
                    if not interactive:
                        break
                    continue
                result = asking.final_result(asked)
                code = asking.EXIT_CODES[result.status]
                if as_json:
                    emit(asking.to_json(asked, result, identity))
                elif display is not None:
                    asking.show_result(display, asked, result, identity)
    if full is not None and not as_json:
        click.echo(f"next      {asking.show_command(full, store)}\n          {asking.continue_command(full, store)}", err=True)
    ctx.exit(0 if interactive else code)


def _use(session: "Session", line: str, as_json: bool) -> int:
    """``/use BACKEND [TOKENS]``; returns the exit code."""
    from attrs import asdict

    from k2core.errors import InputError, K2Error

    words = line.split()[1:]
    try:
        if len(words) not in (1, 2) or not all(word.isdecimal() for word in words[1:]):
            raise InputError("give a backend, and if you like how many tokens to compare: /use numba 64")
        report = session.use(words[0], check=int(words[1]) if words[1:] else 64)
    except KeyboardInterrupt:
        if as_json:
            emit({"error": "interrupted", "kind": "Interrupted", "run": None})
        print_error("interrupted")
        return 130
    except K2Error as error:
        if as_json:
            emit({"error": str(error), "kind": type(error).__name__, "run": None})
        print_error(str(error))
        return error.exit_code
    if as_json:
        emit({"backend": words[0], "switch": asdict(report)})
    else:
        click.echo(f"now on {words[0]}; {report}", err=True)
    return 0


def _read_line(interactive: bool) -> str | None:
    """The next line without its ends, None at the end of input.

    Raises:
        InputError: it is not UTF-8.
    """
    from k2core.errors import InputError

    if interactive:
        import readline  # noqa: F401  # importing it gives input() its editing and its history

        click.echo(err=True)
        try:
            with typing():
                return input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return None
    data = sys.stdin.buffer.readline()
    try:
        return data.decode("utf-8").strip() if data else None
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read a question from standard input: byte {error.start + 1} of the line is not UTF-8"
        ) from error
