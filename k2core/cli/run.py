"""``k2 run``: one question, its answer on stdout, everything else on stderr."""

from typing import Any

import click

from k2core.cli.app import App
from k2core.cli.options import choice_of, read_stdin, session_options
from k2core.cli.output import emit, json_option, print_error


@click.command()
@click.argument("question", nargs=-1)
@session_options
@json_option
@click.pass_obj
@click.pass_context
def run(ctx: click.Context, app: App, /, question: tuple[str, ...], as_json: bool, run: str | None, **flags: Any) -> None:
    """Answer one QUESTION; with - it is read from standard input.

    The answer goes to stdout; thinking, calls, the verdict and the cost go to stderr. Exit codes: 0 answered, 2 usage,
    3 a budget ended it with a partial answer, 4 not verified, 5 no model or backend, 6 declined, 1 other failures,
    130 Ctrl-C.
    """
    text = question_text(question)
    settings = app.settings(**flags)
    plugins = app.plugins()
    choice, full = choice_of(settings, plugins, run)
    store = settings.values["store"]

    import asyncio

    from k2core.cli import asking
    from k2core.cli.display import Display
    from k2core.cli.screen import stderr_screen
    from k2core.errors import K2Error
    from k2core.interfaces import ChatModel

    display = None if as_json else Display(screen=stderr_screen(), reasoning=settings["reasoning"])
    with asking.open_session(choice, plugins, display) as session, asyncio.Runner() as runner:
        model: ChatModel = session.agent.model
        identity = dict(model.identity())
        if full is not None and display is not None:
            display.remember(session.agent.journal.events(full))
        try:
            asked = asking.ask(runner, session, text, full, display, app.caught)
        except K2Error as error:
            if display is not None and getattr(error, "run", None):
                display.screen.block("show", [(asking.show_command(error.run, store), "dim")], "dim")  # type: ignore[attr-defined]
            raise
    if asked.cancelled:
        if as_json:
            emit({"error": "interrupted", "kind": "Interrupted", "run": asked.run})
        print_error("interrupted" + ("" if asked.run is None else f"; see {asking.show_command(asked.run, store)}"))
        ctx.exit(130)
    result = asking.final_result(asked)
    if as_json:
        emit(asking.to_json(asked, result, identity))
    elif display is not None:
        asking.show_result(display, asked, result, identity)
        hint = f"{asking.show_command(result.run, store)}\n{asking.continue_command(result.run, store)}"
        display.screen.block("next", [(hint, "dim")], "dim")
    ctx.exit(asking.EXIT_CODES[result.status])


def question_text(words: tuple[str, ...]) -> str:
    """The question from the arguments or, for ``-``, from standard input.

    Raises:
        InputError: it is empty or not UTF-8.
    """
    from k2core.errors import InputError

    text = read_stdin("the question") if words == ("-",) else " ".join(words)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the question is not UTF-8. Check the terminal's encoding.") from None
    if not text.strip():
        raise InputError('the question is empty. Give one, e.g. k2 run "What is 23 times 47?"')
    return text.strip()
