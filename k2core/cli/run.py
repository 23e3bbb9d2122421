"""``k2 run``: one question, its answer on stdout, everything else on stderr."""

from typing import Any

import click

from k2core.cli.app import App
from k2core.cli.options import choice_of, read_stdin, session_options
from k2core.cli.output import json_option


@click.command()
@click.argument("question", nargs=-1)
@session_options()
@json_option
@click.pass_obj
@click.pass_context
def run(ctx: click.Context, app: App, /, question: tuple[str, ...], as_json: bool, run: str | None, **flags: Any) -> None:
    """Answer one QUESTION; with - it is read from standard input.

    The answer goes to stdout; thinking, calls, the verdict and the cost go to stderr. Exit codes: 0 answered, 2 usage,
    3 a budget ended it with a partial answer, 4 not verified, 5 no model or backend, 6 declined, 7 a call waits for
    your decision, 1 other failures, 130 Ctrl-C.
    """
    text = question_text(question)
    settings = app.settings(**flags)
    choice, full = choice_of(settings, app.plugins(), run)

    from k2core.agent.loop import Agent
    from k2core.agent.paths import Paths
    from k2core.cli import answering
    from k2core.errors import InputError

    paths = settings["paths"]
    if paths > 1 and full is not None:
        raise InputError("cannot go on with a run on several paths: leave --continue out, or --paths")

    def stream(agent: Agent) -> Any:
        if paths > 1:
            return Paths(agent=agent, count=paths, temperature=settings["paths_temperature"]).stream(text)
        return agent.stream(text, run=full)

    ctx.exit(answering.work_on(app, settings, choice, stream, known=full, as_json=as_json))


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
