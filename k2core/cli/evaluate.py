"""``k2 eval``: evaluations that plugins bring."""

from pathlib import Path

import click

from k2core.cli.app import App
from k2core.cli.options import apply_threads, backend_option, model_option, threads_option
from k2core.cli.output import emit, json_option, print_table, print_text
from k2core.cli.streams import strangers_code


@click.command("eval")
@click.argument("name", required=False)
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", default=20, show_default=True, help="Questions per row."
)
@click.option("--seed", type=int, metavar="N", help="Seed of the questions.")
@model_option
@backend_option
@click.option("--family", "families", multiple=True, metavar="NAME", help="Only this family, as its table names it; repeat it.")
@click.option(
    "--masks",
    type=click.Choice(("both", "on", "off")),
    default="both",
    show_default=True,
    help="With calls valid by construction, without, or first the one and then the other.",
)
@click.option("--store", metavar="PATH", help="Keep the runs in this file; without it they are forgotten.")
@threads_option
@json_option
@click.pass_obj
def evaluate(
    app: App,
    name: str | None,
    count: int,
    seed: int | None,
    model: str | None,
    backend: str | None,
    families: tuple[str, ...],
    masks: str,
    store: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run the evaluation NAME; without a NAME list what there is."""
    settings = app.settings(seed=seed, model=model, backend=backend, threads=threads)
    plugins = app.plugins()
    if name is None:
        found = plugins.entries("evaluation")
        if as_json:
            emit({"evaluations": [{"name": one.name, "plugin": one.plugin, "summary": one.summary} for one in found]})
        else:
            rows = [[one.name, one.plugin, one.summary] for one in found]
            print_table(("name", "plugin", "what it measures"), rows, "No evaluations are registered. See k2 plugins.")
        return
    entry = plugins.get("evaluation", name)
    apply_threads(settings)

    from k2core.cli.screen import stderr_screen
    from k2core.events import StatusLine
    from k2core.testing.evaluation import EvaluationRequest

    screen = stderr_screen()
    request = EvaluationRequest(
        count=count,
        seed=settings["seed"],
        model=settings["model"],
        backend=settings["backend"],
        families=families,
        masks={"both": (True, False), "on": (True,), "off": (False,)}[masks],
        store=None if store is None else Path(store).expanduser(),
        progress=lambda what, done, total: screen.status(StatusLine(text=what, done=done, total=total)),
    )
    try:
        with strangers_code():
            report = entry.load()(plugins, request)
    finally:
        screen.status(None)
        app.caught.log()
    if as_json:
        emit(dict(report.json))
    else:
        print_text(report.text)
