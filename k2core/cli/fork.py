"""``k2 runs fork``: a new run that begins as another one did and goes on from there."""

from typing import Any

import click

from k2core.cli.app import App
from k2core.cli.options import choice_of, session_options
from k2core.cli.output import json_option


@click.command()
@click.argument("place", metavar="RUN@STEP")
@click.option("--with", "given", metavar="TOOL=RESULT", help="What a call gives instead; STEP is the call or its result.")
@session_options(goes_on=False)
@json_option
@click.pass_obj
@click.pass_context
def fork(ctx: click.Context, app: App, /, place: str, given: str | None, as_json: bool, **flags: Any) -> None:
    """Begin a new run with RUN's first events, up to number STEP as k2 runs show prints it, and go on from there.

    \b
    k2 runs fork last@9                          from event 9 on once more
    k2 runs fork last@6 --with "calculator=42"   as if the calculator had said 42
    k2 runs fork last@3 --seed 2 --temperature 0.7

    RUN stays as it is. Settings are those of RUN unless others are given. Calls behind STEP are made by the new run, whatever
    RUN did there. A damaged run can be forked before its damage. Exit codes are those of k2 run.
    """
    from k2core.agent.forking import Given, cut_at, place_of, work_on
    from k2core.agent.journal import Journal
    from k2core.agent.loop import Agent
    from k2core.agent.paths import Paths, paths_of
    from k2core.agent.resuming import of_question
    from k2core.cli import answering
    from k2core.cli.run_settings import seed_of, settings_of_run

    settings = app.settings(**flags)
    run, step = place_of(place)
    with Journal.open(settings["store"]) as journal:
        cut = cut_at(journal, run, step, None if given is None else Given.of(given))
    settings = settings_of_run(settings, cut.events)
    choice, _ = choice_of(settings, app.plugins(), events=cut.events)
    wanted, paths = settings.values["seed"], paths_of(cut.events)
    seed = None if wanted.is_default or wanted.value == seed_of(cut.events) else wanted.value

    def stream(agent: Agent) -> Any:
        if not paths:
            return work_on(agent, cut, agent.resume, seed=seed)
        several = Paths(agent=agent, count=paths, temperature=settings["paths_temperature"])
        return work_on(agent, cut, several.resume, seed=seed)

    before = of_question(cut.events)
    ctx.exit(answering.work_on(app, settings, choice, stream, known=None, before=before, earlier=cut.events, as_json=as_json))
