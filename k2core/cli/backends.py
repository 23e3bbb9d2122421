"""``k2 backends``: what can run models here, or why not, and whether it does what the contracts say."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table
from k2core.cli.plugins import fault
from k2core.cli.streams import strangers_code

if TYPE_CHECKING:
    from k2core.conformance.kit import Subject
    from k2core.conformance.report import Outcome

DIFFERS = 4  # exit code: something was checked and found wrong


@click.group(cls=Nouns)
def backends() -> None:
    """List and check what can run models here."""


@backends.command("list")
@json_option
@click.pass_obj
def list_backends(app: App, as_json: bool) -> None:
    """Every backend: available with its devices, or why not; one whose own code fails is shown as failed."""
    found: list[dict[str, Any]] = []
    for entry in app.plugins().entries("backend"):
        row: dict[str, Any] = {
            "name": entry.name, "available": False, "device": "", "devices": [], "missing": {}, "numerics": [], "detail": "",
            "plugin": entry.plugin,
        }  # fmt: skip
        reason = fault(partial(_probe, entry, row))
        found.append(row | {"detail": f"failed: {reason}"} if reason else row)
    if as_json:
        emit({"backends": found})
        return
    rows = [
        [
            one["name"],
            f"yes ({', '.join(one['devices'])})" if one["available"] else "no",
            ", ".join(one["numerics"]),
            one["plugin"],
            "; ".join([one["detail"], *(f"no {device}: {why}" for device, why in one["missing"].items())]),
        ]
        for one in found
    ]
    print_table(("name", "available", "numerics", "plugin", "detail"), rows, "No backends are registered. See k2 plugins.")


@backends.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option("-n", "--count", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Cases per op.")
@click.option("--profile", type=click.Choice(("k2",)), help="One layer of the family's own sizes instead of small ones.")
@json_option
@click.pass_obj
@click.pass_context
def check(ctx: click.Context, app: App, names: tuple[str, ...], count: int, profile: str | None, as_json: bool) -> None:
    """Hold backends to their contracts on this machine; all that are available, or NAME….

    Every op with every property, whole models (logits, greedy tokens, caches, batches), and what a backend promises beside
    its numbers. A cell says how many hold and the greatest difference from the oracle over what is allowed; what does not
    hold is shown below the table, and the exit code is 4.
    """
    from k2core.conformance.kit import check_ops
    from k2core.conformance.promises import check_promises
    from k2core.conformance.subjects import Missing, discovered
    from k2core.conformance.whole_model import check_models
    from k2core.errors import Unavailable

    plugins = app.plugins()
    for name in names:
        plugins.get("backend", name)
    with strangers_code():
        everything = [one for one in discovered(plugins) if not names or one.name.partition(" on ")[0] in names]
    subjects: list[Subject] = [one for one in everything if not isinstance(one, Missing)]
    missing = [one for one in everything if isinstance(one, Missing)]
    if not subjects:
        raise Unavailable("; ".join(f"{one.name}: {one.reason}" for one in missing) or "there are no backends to check")

    from k2core.cli.screen import stderr_screen
    from k2core.events import StatusLine

    screen = stderr_screen()
    outcomes: list[tuple[Subject, Outcome]] = []
    try:
        for number, subject in enumerate(subjects):
            screen.status(StatusLine(text=f"checking {label(subject)}", done=number, total=len(subjects)))
            with strangers_code():
                found = list(check_ops(subject, count=count, profile=profile))
                found += () if profile else chain(check_models(subject), check_promises(subject))
            outcomes += ((subject, outcome) for outcome in found)
    finally:
        screen.status(None)
    wrong = [one for _, one in outcomes if not one.holds]
    if as_json:
        checks = [{"device": subject.device, **one.as_json()} for subject, one in outcomes]
        emit({"checks": checks, "missing": [{"name": one.name, "reason": one.reason} for one in missing], "wrong": len(wrong)})
    else:
        ops = dict.fromkeys(one.op for _, one in outcomes)
        rows = [[op, *(_cell([one for other, one in outcomes if other is subject and one.op == op]) for subject in subjects)]
                for op in ops]  # fmt: skip
        print_table(("", *map(label, subjects)), rows, "")
        for one in missing:
            click.echo(f"not checked  {one.name}: {one.reason}")
        for line in _told(outcomes):
            click.echo(line)
        click.echo(f"{len(outcomes)} properties checked, {len(wrong)} do not hold")
    ctx.exit(DIFFERS if wrong else 0)


def _told(outcomes: list[tuple["Subject", "Outcome"]]) -> Iterator[str]:
    """A line for each that does not hold; errors of one backend in the same words are one line with their number."""
    alike: dict[tuple[str, str], list[Outcome]] = {}
    for subject, one in outcomes:
        if one.difference is not None:
            yield f"wrong  {one.difference}"
        elif not one.holds:
            alike.setdefault((label(subject), one.error.partition(" Case: ")[0]), []).append(one)
    for (_, error), (first, *more) in alike.items():
        also, told = (f" (so do {len(more)} more)", error) if more else ("", first.error)
        yield f"wrong  {first.op} on {first.backend} ({first.numerics}), {first.property}{also}: {told}"


def label(subject: "Subject") -> str:
    """A column's heading."""
    return " ".join([subject.name, *([subject.device] if subject.device != "cpu" else []), subject.numerics])


def _cell(outcomes: list["Outcome"]) -> str:
    if not outcomes:
        return ""
    held = sum(one.holds for one in outcomes)
    worst = max(one.worst for one in outcomes)
    return f"{held} of {len(outcomes)}" + (f", {worst:.2g}" if worst else "")


def _probe(entry: Any, into: dict[str, Any]) -> None:
    from k2core.interfaces import Available

    backend = entry.make()
    probed = backend.probe()
    if isinstance(probed, Available):
        devices = list(dict.fromkeys((probed.device, *probed.devices)))
        into.update(available=True, device=probed.device, devices=devices, detail=probed.detail, missing=dict(probed.missing))
    else:
        into.update(detail=probed.reason)
    into.update(numerics=list(getattr(backend, "numerics", ())))
