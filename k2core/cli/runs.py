"""``k2 runs``: past runs, and everything that happened in one."""

import sys
from typing import Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.fork import fork
from k2core.cli.options import budget_options, store_option
from k2core.cli.output import emit, json_option, print_table
from k2core.cli.replay import replay
from k2core.cli.resume import resume

BETWEEN = ("model.switched", "swapped", "warning", "guard")  # what may follow upon a run's end: swaps, guards that failed


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
@click.option("--memory", is_flag=True, help="Only what was kept, hidden, left out, rolled back and recalled.")
@store_option
@json_option
@click.pass_obj
def show(app: App, run: str, no_reasoning: bool, memory: bool, store: str | None, as_json: bool) -> None:
    """Everything that happened in RUN: its id, the beginning of one, or 'last'.

    The numbers in front are those of the journal's events; its hash chain is checked on the way.
    """
    from k2core.agent.journal import Journal
    from k2core.cli.asking import remember_chosen
    from k2core.cli.display import Display
    from k2core.cli.screen import LOG_LABEL, screen_on

    settings = app.settings(store=store)
    with Journal.open(settings["store"]) as journal:
        events = journal.events(run)
    if memory:
        from k2core.cli.remembered import show_memory

        show_memory(events, as_json=as_json)
        return
    if as_json:
        emit({"run": events[0].run, "events": [stored.to_json() for stored in events]})
        return
    reasoning = settings["reasoning"] and not no_reasoning
    display = Display(screen=screen_on(sys.stdout, label_width=LOG_LABEL), reasoning=reasoning, whole=True)
    with Journal.open(settings["store"]) as journal:
        remember_chosen(display, journal, events)
    display.screen.block("     run", [(events[0].run, "bold"), (f"  began {events[0].time}", "dim")], "bold")
    for stored in events:
        display.show(stored)
    if next((one.event.kind for one in reversed(events) if one.event.kind not in BETWEEN), "") != "run.ended":
        display.screen.block("     end", [("unfinished: the run has no end in the journal", "yellow")], "yellow")


@runs.command()
@click.argument("run", default="last")
@click.option("--to", "folder", metavar="FOLDER", help="Write them into this folder, which must not exist yet.")
@store_option
@json_option
@click.pass_obj
def files(app: App, run: str, folder: str | None, store: str | None, as_json: bool) -> None:
    """The files that the calls of RUN brought out: plots, documents, whatever cells wrote.

    A file that several calls wrote is listed once for each; written out, the last one counts.
    """
    from pathlib import Path

    from k2core.agent.blobs import Blobs
    from k2core.agent.journal import Journal
    from k2core.errors import InputError
    from k2core.events import ToolReturned

    path = app.settings(store=store)["store"]
    with Journal.open(path) as journal:
        events, blobs = journal.events(run), Blobs.beside(journal.path)
    found = [
        (event.index, one)
        for event in (stored.event for stored in events)
        if isinstance(event, ToolReturned)
        for one in event.files
    ]
    if folder is not None:
        target = Path(folder).absolute()
        if target.exists():
            raise InputError(f"cannot write files into '{folder}': it exists already. Name a folder that does not.")
        for _, one in found:
            place = (target / one.name).resolve()
            if not place.is_relative_to(target):
                raise InputError(f"cannot write file '{one.name}': its name leads out of '{folder}'")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(blobs.read(one.sha256))
    if as_json:
        listed = [{"call": index, "name": one.name, "size": one.size, "sha256": one.sha256} for index, one in found]
        emit({"run": events[0].run, "files": listed, "folder": folder})
        return
    rows = [[str(index), one.name, f"{one.size:,}", str(blobs.path(one.sha256))] for index, one in found]
    print_table(("call", "file", "bytes", "content"), rows, "No call of this run brought a file out.")


@runs.command()
@click.argument("run", default="last")
@store_option
@json_option
@click.pass_obj
def graph(app: App, run: str, store: str | None, as_json: bool) -> None:
    """How RUN's questions, plan, hypotheses, calls, evidence and claims hang together: a Mermaid flowchart, or JSON."""
    from k2core.agent.graph import graph_of
    from k2core.agent.journal import Journal

    with Journal.open(app.settings(store=store)["store"]) as journal:
        events = journal.events(run)
    found = graph_of(events)
    if as_json:
        emit({"run": events[0].run, **found.to_json()})
        return
    click.echo(found.mermaid(), nl=False)


def _budgets(command: Any) -> Any:
    for option in reversed(budget_options()):
        command = option(command)
    return command


@runs.command("raise")
@click.argument("run", default="last")
@_budgets
@store_option
@json_option
@click.pass_obj
def raise_budgets(app: App, /, run: str, store: str | None, as_json: bool, **budgets: float | None) -> None:
    """Give RUN other budgets while it works; they count from its next step on."""
    import asyncio

    from k2core.agent.budget import Limits
    from k2core.agent.journal import Journal
    from k2core.cli.limits import LIMITS
    from k2core.cli.output import print_text
    from k2core.errors import InputError

    wanted = {LIMITS[name]: value for name, value in budgets.items() if value is not None}
    if not wanted:
        raise InputError(f"give a budget, e.g. k2 runs raise {run} --calls 100")
    Limits().changed(wanted)
    with Journal.open(app.settings(store=store)["store"]) as journal:
        full = journal.find_run(run)
        number = asyncio.run(journal.ask_for(full, wanted))
    if as_json:
        emit({"run": full, "wish": number, "limits": wanted})
        return
    print_text(f"run {full} was told; see it with k2 runs show {full}")


@runs.command()
@click.argument("run")
@click.argument("call", type=click.IntRange(min=0))
@click.argument("decision", type=click.Choice(["approve", "deny", "happened", "redo", "abandon"]))
@click.option("--reason", metavar="TEXT", default="", help="Why, for 'approve' and 'deny'; the model is told why not.")
@click.option("--result", metavar="TEXT", default="", help="What came back from the call, for 'happened'.")
@store_option
@json_option
@click.pass_obj
def decide(app: App, run: str, call: int, decision: str, reason: str, result: str, store: str | None, as_json: bool) -> None:
    """Say what becomes of CALL of RUN, which waits for your approval, or has no result and may have taken effect.

    \b
    approve    it is made, once, with the arguments that were shown
    deny       it is not made, and the model is told so, with the --reason
    happened   it took effect: it is not made again, and the model is told the --result
    redo       it took no effect: it is made again
    abandon    it is not made again, and the model is told so

    CALL is its number, as 12 of functions.send:12. Then go on with k2 resume.
    """
    import asyncio

    from k2core.agent.deciding import decide as decided
    from k2core.agent.journal import Journal
    from k2core.cli.asking import resume_command
    from k2core.cli.output import print_text
    from k2core.errors import InputError

    approval = decision in ("approve", "deny")
    if reason and not approval:
        raise InputError(f"cannot decide '{decision}' with a reason: only approve and deny have one")
    if result and approval:
        raise InputError(f"cannot decide '{decision}' with a result: only a call that happened has one")
    value = app.settings(store=store).values["store"]
    with Journal.open(value.value) as journal:
        stored = asyncio.run(decided(journal, run, call, decision, text=reason or result))  # type: ignore[arg-type]  # a choice of click's
    if as_json:
        emit(stored.to_json())
        return
    print_text(f"decided: call {call} {decision}. Go on: {resume_command(stored.run, value)}")


runs.add_command(resume)
runs.add_command(fork)
runs.add_command(replay)
