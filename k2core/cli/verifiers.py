"""``k2 verifiers``: what checks answers, and whether two of them judge alike."""

from typing import Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table
from k2core.cli.streams import strangers_code


@click.group(cls=Nouns)
def verifiers() -> None:
    """List what checks answers, compare two."""


@verifiers.command("list")
@json_option
@click.pass_obj
def list_verifiers(app: App, as_json: bool) -> None:
    """Every verifier, without loading it; VERIFIER/IMPLEMENTATION is another implementation of one."""
    from k2core.registration import IMPLEMENTATION

    plugins = app.plugins()
    entries = [*plugins.entries("verifier"), *plugins.entries("verifier" + IMPLEMENTATION)]
    found = [
        {"name": one.name, "plugin": one.plugin, "summary": one.summary} for one in sorted(entries, key=lambda one: one.name)
    ]
    if as_json:
        emit({"verifiers": found})
        return
    rows = [[one["name"], one["plugin"], one["summary"]] for one in found]
    print_table(("name", "plugin", "what it does"), rows, "No verifiers are registered. See k2 plugins.")


@verifiers.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("-n", "--count", type=click.IntRange(min=1), default=200, show_default=True, metavar="N", help="Answers.")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of what is drawn.")
@click.option("--findings", is_flag=True, help="Compare every finding, not only whether the answer is accepted.")
@json_option
@click.pass_obj
@click.pass_context
def check(ctx: click.Context, app: App, first: str, second: str, count: int, seed: int, findings: bool, as_json: bool) -> None:
    """Whether two verifiers judge alike, e.g. k2 verifiers check grounding grounding/mine.

    Answers are drawn, and what was observed before them; the first that the two judge differently is shown, made as simple
    as possible, and the exit code is 4. VERIFIER/IMPLEMENTATION is another implementation of a verifier.
    """
    from k2core.agent.swapping import verifier_of
    from k2core.cli.comparing import tell
    from k2core.conformance.verifiers_check import check_verifiers

    plugins = app.plugins()
    with strangers_code():
        pair = [verifier_of(plugins, name) for name in (first, second)]
        found = check_verifiers(pair[0], pair[1], count=count, seed=seed, findings=findings)
    app.caught.log()
    given: Any = None
    shown = ""
    if found.disagreement is not None:
        from attrs import asdict

        episode = found.disagreement.given
        given = asdict(episode)
        shown = _in_words(given)
    ctx.exit(tell((first, second), "answer", found, given, shown, as_json=as_json))


def _in_words(episode: dict[str, Any]) -> str:
    """An answer and what was observed before it, a line each."""
    from k2core.cli.text import to_json

    answer, trajectory = episode["answer"], episode["trajectory"]
    calls = [f"call {one['index']}  {one['tool']} {one['arguments']} → {one['text']}" for one in trajectory["observations"]]
    claims = [f"claim {number}  {to_json(one['text'])} by {one['evidence']}" for number, one in enumerate(answer["claims"])]
    lines = [f"question  {to_json(trajectory['question'])}", *calls, f"answer  {to_json(answer['text'])}", *claims]
    return "\n  ".join(["this answer:", *lines])
