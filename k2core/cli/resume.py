"""``k2 resume``: go on with a run that was cut off, interrupted, or waited for a decision."""

from typing import Any

import click

from k2core.cli.app import App
from k2core.cli.options import choice_of, session_options
from k2core.cli.output import json_option


@click.command()
@click.argument("name", metavar="RUN", default="last")
@session_options(goes_on=False)
@json_option
@click.pass_obj
@click.pass_context
def resume(ctx: click.Context, app: App, /, name: str, as_json: bool, **flags: Any) -> None:
    """Go on with RUN's last question where it stopped: its id, the beginning of one, or 'last'.

    Model, tools, folders, budgets and sampling are those of the run unless others are given. What a budget had used counts.
    Calls that were begun and have no result are made again where that is safe; where only you can say whether one took effect,
    the run waits for k2 runs decide. Exit codes are those of k2 run.
    """
    from k2core.agent.journal import Journal
    from k2core.agent.loop import Agent
    from k2core.agent.paths import Paths, paths_of
    from k2core.agent.resuming import of_question, see_unfinished
    from k2core.cli import answering
    from k2core.cli.run_settings import settings_of_run

    settings = app.settings(**flags)
    with Journal.open(settings["store"]) as journal:
        events = journal.events(name)
    run = events[0].run
    see_unfinished(run, events)
    settings = settings_of_run(settings, events)
    choice, _ = choice_of(settings, app.plugins(), run)
    before = of_question(events)
    paths = paths_of(events)

    def stream(agent: Agent) -> Any:
        if paths:
            return Paths(agent=agent, count=paths, temperature=settings["paths_temperature"]).resume(run)
        return agent.resume(run)

    ctx.exit(answering.work_on(app, settings, choice, stream, known=run, before=before, as_json=as_json))
