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
    from k2core.agent.swapping import SessionTokenizers, SessionTools, SessionVerifiers

HELP = """\
/help     this
/tools    the tools that the model may call
/tool     what carries out each tool; /tool search tantivy swaps, with the next call where the model is told the same
/verifier, /tokenizer  the same of what checks answers, and of what makes token ids of texts
/backend  go on with another, e.g. /backend onnx, /backend torch cuda 64 limit=0.5: the last tokens are scored on both first
/exit     leave (Ctrl-D does too)
Everything else is a question. Ctrl-C stops the answer that is being worked on."""

COMMANDS = ("/backend", "/exit", "/help", "/tokenizer", "/tool", "/tools", "/verifier")


@click.command()
@session_options()
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
        session.agent.last_run = full
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
            elif line.split()[:1] == ["/backend"]:
                code = _backend(session, line, as_json)
                identity = dict(session.agent.model.identity())
            elif line.split()[:1] in (["/tool"], ["/verifier"], ["/tokenizer"]):
                code = _swap(session, line, as_json)
            elif line.startswith("/"):
                print_error(str(UnknownName("command", line.split()[0], COMMANDS)))
            elif line:
                try:
                    asked = asking.Asked(run=full)
                    asking.ask(runner, session, session.agent.stream(line, run=full), asked, display, app.caught)
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


def _backend(session: "Session", line: str, as_json: bool) -> int:
    """``/backend NAME [DEVICE] [TOKENS] [numerics=NAME] [limit=X]``; returns the exit code."""
    from attrs import asdict

    from k2core.errors import K2Error

    shadow = session.choice.shadow
    try:
        backend, options = _switch_options(line)
        report = session.use(backend, **options)
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
        emit({"backend": backend, "switch": asdict(report)})
    else:
        click.echo(f"now on {backend}; {report}", err=True)
        if shadow is not None:
            click.echo(f"{shadow} does not compute beside it any longer", err=True)
    return 0


def _switch_options(line: str) -> tuple[str, dict[str, Any]]:
    """A backend, and what else `Session.use` takes of the line.

    Raises:
        InputError: it cannot be read.
    """
    from typing import get_args

    from k2core.errors import InputError, UnknownName
    from k2core.interfaces import Numerics

    words = line.split()[1:]
    named = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]
    counts = [int(word) for word in plain[1:] if word.isdecimal()]
    devices = [word for word in plain[1:] if not word.isdecimal()]
    if not plain or len(counts) > 1 or len(devices) > 1 or len(plain) + len(named) < len(words):
        raise InputError(
            "give a backend, and if you like its device, how many tokens to compare, other numerics and the largest difference "
            "of two logits to accept: /backend torch cpu 64 numerics=w4a16 limit=0.5"
        )
    for name in named:
        if name not in ("limit", "numerics"):
            raise UnknownName("option of /backend named", name, ("limit", "numerics"))
    options: dict[str, Any] = {"check": counts[0] if counts else 64, "device": devices[0] if devices else None}
    if "numerics" in named:
        if named["numerics"] not in get_args(Numerics):
            raise UnknownName("numerics", named["numerics"], get_args(Numerics))
        options["numerics"] = named["numerics"]
    if "limit" in named:
        try:
            options["limit"] = float(named["limit"])
        except ValueError:
            options["limit"] = named["limit"]  # it is told what it must be
    return plain[0], options


def _swap(session: "Session", line: str, as_json: bool) -> int:
    """``/tool`` lists implementations, ``/tool NAME IMPLEMENTATION`` swaps one; so do the others. Returns the exit code."""
    from attrs import asdict

    from k2core.errors import InputError, K2Error

    command, *words = line.split()
    what = command.removeprefix("/")
    parts: dict[str, SessionTools | SessionVerifiers | SessionTokenizers] = {
        "tool": session.tools,
        "verifier": session.verifiers,
        "tokenizer": session.tokenizers,
    }
    try:
        if not words:
            found = parts[what].implementations()
            if as_json:
                every = [{"name": name, "used": used, "known": list(known)} for name, (used, known) in found.items()]
                emit({f"{what}s": every})
            for name, (used, known) in () if as_json else found.items():
                click.echo(f"{name:12} {', '.join(f'[{one}]' if one == used else one for one in known)}", err=True)
            if not found and not as_json:
                click.echo(f"this session has no {what} that can be swapped", err=True)
            return 0
        if what == "tokenizer" and len(words) == 1:
            swap = session.tokenizers.use(words[0])
        elif what != "tokenizer" and len(words) == 2:
            swap = (session.tools if what == "tool" else session.verifiers).use(words[0], words[1])
        else:
            example = {"tool": "search tantivy", "verifier": "grounding default", "tokenizer": "kimi"}[what]
            asked = "a tokenizer" if what == "tokenizer" else f"a {what} and an implementation of it"
            raise InputError(f"give {asked}, e.g. /{what} {example}")
    except K2Error as error:
        if as_json:
            emit({"error": str(error), "kind": type(error).__name__, "run": None})
        print_error(str(error))
        return error.exit_code
    if as_json:
        emit({"swap": {**asdict(swap), "text": str(swap)}})
    else:
        click.echo(str(swap), err=True)
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
