"""``k2 runs``: past runs, and everything that happened in one."""

import sys

import click

from k2core.cli.app import App, Nouns
from k2core.cli.options import store_option
from k2core.cli.output import emit, json_option, print_table


@click.group(cls=Nouns)
def runs() -> None:
    """List past runs and show what happened in them."""


@runs.command("list")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), metavar="N", default=20, show_default=True, help="The newest so many."
)
@store_option
@json_option
@click.pass_obj
def list_runs(app: App, limit: int, store: str | None, as_json: bool) -> None:
    """The newest runs, newest first."""
    import attrs

    from k2core.agent.journal import Journal

    with Journal.open(app.settings(store=store)["store"]) as journal:
        found = journal.runs(limit)
    if as_json:
        emit({"runs": [attrs.asdict(one) for one in found]})
        return
    rows = [
        [one.run, one.started[:16].replace("T", " "), one.status, one.model, str(one.calls), str(one.tokens), one.question]
        for one in found
    ]
    header = ("run", "began (UTC)", "status", "model", "calls", "tokens", "question")
    print_table(header, rows, 'There are no runs yet. Begin with: k2 run "What is 23 times 47?"')


@runs.command()
@click.argument("run", default="last")
@click.option("-R", "--no-reasoning", "no_reasoning", is_flag=True, help="Hide thinking.")
@store_option
@json_option
@click.pass_obj
def show(app: App, run: str, no_reasoning: bool, store: str | None, as_json: bool) -> None:
    """Everything that happened in RUN: its id, the beginning of one, or 'last'.

    The numbers in front are those of the journal's events; its hash chain is checked on the way.
    """
    from k2core.agent.journal import Journal
    from k2core.cli.display import Display
    from k2core.cli.screen import LOG_LABEL, screen_on

    settings = app.settings(store=store)
    with Journal.open(settings["store"]) as journal:
        events = journal.events(run)
    if as_json:
        emit({"run": events[0].run, "events": [stored.to_json() for stored in events]})
        return
    reasoning = settings["reasoning"] and not no_reasoning
    display = Display(screen=screen_on(sys.stdout, label_width=LOG_LABEL), reasoning=reasoning, whole=True)
    display.screen.block("     run", [(events[0].run, "bold"), (f"  began {events[0].time}", "dim")], "bold")
    for stored in events:
        display.show(stored)
    if events[-1].event.kind != "run.ended":
        display.screen.block("     end", [("unfinished: the run has no end in the journal", "yellow")], "yellow")
