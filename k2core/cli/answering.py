"""Work on a question as a command does: show everything as it happens, then the answer; the exit code says how it ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from k2core.agent.choice import Choice
from k2core.agent.loop import Agent
from k2core.agent.result import RunResult
from k2core.cli import asking
from k2core.cli.app import App
from k2core.cli.display import Display
from k2core.cli.output import emit, print_error
from k2core.cli.screen import stderr_screen
from k2core.cli.settings import Settings
from k2core.errors import K2Error
from k2core.events import Live, Stored
from k2core.interfaces import ChatModel

INTERRUPTED = 130


def work_on(
    app: App,
    settings: Settings,
    choice: Choice,
    stream: Callable[[Agent], AsyncIterator[Stored | Live]],
    *,
    known: str | None,
    before: Sequence[Stored] = (),
    earlier: Sequence[Stored] = (),
    as_json: bool,
) -> int:
    """Open a session and let its agent work; the exit code.

    Args:
        app: the command line.
        settings: all in force.
        choice: what the session is made of.
        stream: what the agent is to do.
        known: a run that goes on; its earlier calls can be named as evidence.
        before: what the question's result counts already, where it goes on.
        earlier: events of a run that is still to be written, whose calls can be named too.
        as_json: one object on stdout and nothing on stderr.
    """
    store = settings.values["store"]
    display = None if as_json else Display(screen=stderr_screen(), reasoning=settings["reasoning"])
    with asking.open_session(choice, app.plugins(), display) as session, asyncio.Runner() as runner:
        model: ChatModel = session.agent.model
        identity = dict(model.identity())
        if display is not None:
            display.remember(earlier if known is None else session.agent.journal.events(known))
        asked = asking.Asked(run=known, events=list(before))
        try:
            asking.ask(runner, session, stream(session.agent), asked, display, app.caught)
        except K2Error as error:
            if display is not None and getattr(error, "run", None):
                display.screen.block("show", [(asking.show_command(error.run, store), "dim")], "dim")  # type: ignore[attr-defined]
            raise
        if display is not None:
            asking.remember_chosen(display, session.agent.journal, asked.events)
    if asked.cancelled:
        if as_json:
            emit({"error": "interrupted", "kind": "Interrupted", "run": asked.run})
        told = "" if asked.run is None else f"; go on with {asking.resume_command(asked.run, store)}"
        print_error(f"interrupted{told}")
        return INTERRUPTED
    result = asking.final_result(asked)
    if as_json:
        emit(asking.to_json(asked, result, identity))
    elif display is not None:
        asking.show_result(display, asked, result, identity)
        display.screen.block("next", [("\n".join(_next(result, asked, settings)), "dim")], "dim")
    return asking.EXIT_CODES[result.status]


def _next(result: RunResult, asked: asking.Asked, settings: Settings) -> list[str]:
    """Commands that make sense now."""
    store = settings.values["store"]
    if result.status == "waiting":
        return [*asking.decide_commands(asked, store), asking.resume_command(result.run, store)]
    more = [f"{asking.resume_command(result.run, store)} {flag}" for flag in asking.larger_budget(asked)]
    return [asking.show_command(result.run, store), *more, asking.continue_command(result.run, store)]
