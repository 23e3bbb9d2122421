"""``k2 replay``: a run's turns generated again, and compared token by token."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from k2core.cli.app import App
from k2core.cli.comparing import DIFFER
from k2core.cli.options import backend_option, choice_of, model_option, store_option, threads_option
from k2core.cli.output import emit, json_option
from k2core.cli.text import counted, one_line, to_json

if TYPE_CHECKING:
    from k2core.agent.replaying import Replayed
    from k2core.cli.screen import Screen
    from k2core.engine.following import Difference
    from k2core.interfaces import ChatModel


@click.command()
@click.argument("name", metavar="RUN", default="last")
@model_option
@backend_option
@click.option("--device", metavar="NAME", help="Where it runs it, e.g. cpu or cuda.")
@click.option("--moe", metavar="NAME[:DEVICE]", help="Another backend that holds the routed experts.")
@click.option("--expert-mb", type=int, metavar="N", help="Limit of the memory of prepared experts.")
@click.option("--numerics", metavar="NAME", help="exact, w4a16 or w4a8.")
@click.option("--drafts", type=int, metavar="N", help="Tokens guessed ahead per step; 0 is off.")
@click.option("--cache-mb", type=int, metavar="N", help="Limit of the model's cache memory.")
@threads_option
@store_option
@json_option
@click.pass_obj
@click.pass_context
def replay(ctx: click.Context, app: App, /, name: str, as_json: bool, **flags: Any) -> None:
    """Generate every turn of RUN again and compare its tokens with the journal's.

    RUN is its id, the beginning of one, or 'last'. No tool is called. Settings are those of RUN unless others are given. On a
    batch-invariant backend, with the same weights and numerics, every token is the same. Where one is not, the turn goes on
    with the journal's, and its margin says by how much the logit of the one that would be chosen now exceeds that of the one
    chosen then. Exit codes: 0 all the same, 4 some differ, 2 usage, 5 no model or backend, 1 other failures.
    """
    import asyncio

    from attrs import evolve

    from k2core.agent.asked import tools_of
    from k2core.agent.journal import Journal
    from k2core.agent.replaying import replay as replayed
    from k2core.agent.replaying import see_comparable
    from k2core.cli import asking
    from k2core.cli.display import Display
    from k2core.cli.run_settings import settings_of_run
    from k2core.cli.screen import LOG_LABEL, screen_on, stderr_screen
    from k2core.cli.streams import ours
    from k2core.events import RunStarted, TurnEnded
    from k2core.tools import CONTROL_NAMES

    settings = app.settings(**flags)
    with Journal.open(settings["store"]) as journal:
        events = journal.events(name)
    run = events[0].run
    see_comparable(events)
    choice, _ = choice_of(settings_of_run(settings, events), app.plugins(), run)
    declared = {tool for one in events if isinstance(one.event, TurnEnded) for tool in tools_of(one.event, events)}
    choice = evolve(choice, tools=tuple(sorted(declared.difference(CONTROL_NAMES))))
    began = next((dict(one.event.model) for one in events if isinstance(one.event, RunStarted)), {})
    found: list[Replayed] = []
    screen = screen_on(ours(sys.stdout), label_width=LOG_LABEL)
    with asking.open_session(choice, app.plugins(), None if as_json else Display(screen=stderr_screen())) as session:
        model = session.agent.model
        now = dict(model.identity())

        async def work() -> None:
            async for one in replayed(session, events):
                found.append(one)
                if not as_json:
                    tell(screen, one, found[-2] if len(found) > 1 else None, model)

        if not as_json:
            screen.block("     run", [(run, "bold"), (f"  {compared_models(began, now)}", "")], "bold")
        asyncio.run(work())
    differing = [one for one in found if one.differences]
    if as_json:
        emit({"run": run, **as_object(found), "recorded": identity(began), "model": identity(now)})
    else:
        screen.block("     end", [(summary(found), "yellow" if differing else "green")], "bold")
    ctx.exit(DIFFER if differing else 0)


def identity(model: Mapping[str, str]) -> dict[str, str]:
    """What decides what a model says."""
    from k2core.agent.swap_events import IDENTITY

    return {name: model.get(name, "") for name in (*IDENTITY, "batch_invariant")}


def compared_models(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """On what a run was recorded, and on what it is replayed."""
    named = [" · ".join(filter(None, map(model.get, ("model", "backend", "numerics")))) for model in (then, now)]
    told = f"{named[1]}, as recorded" if named[0] == named[1] else f"recorded on {named[0]}, replayed on {named[1]}"
    weights = [model.get("weights", "") for model in (then, now)]
    if weights[0] != weights[1]:
        shown = [f"{one[:19]}…" if one else "unknown ones" for one in weights]
        told += f"; with other weights: {shown[0]} then, {shown[1]} now"
    return told if now.get("batch_invariant") == "yes" else f"{told}; it is not batch-invariant, near ties may fall otherwise"


def tell(screen: "Screen", one: "Replayed", before: "Replayed | None", model: "ChatModel") -> None:
    """One turn as it comes."""
    if before is not None and one.others != before.others:
        told = ", ".join(f"{name} {then or 'unknown'} then, {now} now" for name, (then, now) in one.others.items())
        screen.block("     model", [(told or "from here on recorded with the same as here", "yellow")], "yellow")
    for note in one.notes:
        screen.block("     note", [(one_line(note, 400), "yellow")], "yellow")
    label = f"{one.event:>3}  turn"
    if one.skipped:
        screen.block(label, [(f"skipped: {one.skipped}", "dim")], "dim")
        return
    spans = [(f"{one.agreed:,} of {counted(one.tokens, 'token')}", "")]
    if one.differences:
        spans.append((f"; first {difference(one.differences[0], model)}", "yellow"))
    screen.block(label, spans, "yellow" if one.differences else "green")


def difference(one: "Difference", model: "ChatModel") -> str:
    """One place where another token is chosen."""
    then, now = (
        f"the turn's end {when}" if token is None else f"{token} {text_of(token, model)} {when}".replace("  ", " ")
        for token, when in ((one.given, "then"), (one.chosen, "now"))
    )
    return f"at token {one.position}: {then}, {now}" + ("" if one.margin is None else f", margin {one.margin:.3g}")


def text_of(token: int, model: "ChatModel") -> str:
    """What a token stands for, as JSON text; empty where that is not known."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or not 0 <= token < tokenizer.vocab_size:
        return ""
    return to_json(tokenizer.decode([token]))


def summary(found: "Sequence[Replayed]") -> str:
    """All turns in one line."""
    compared = [one for one in found if not one.skipped]
    tokens, agreed = sum(one.tokens for one in compared), sum(one.agreed for one in compared)
    differing = [one for one in compared if one.differences]
    many = "" if agreed == tokens else f"{agreed:,} of "
    line = f"{many}{counted(tokens, 'token')} of {counted(len(compared), 'turn')} {'is' if tokens == 1 else 'are'} chosen again"
    if differing:
        count, first = sum(len(one.differences) for one in differing), differing[0]
        line += f"; {counted(count, 'difference')} in {counted(len(differing), 'turn')}, the first in event {first.event} "
        line += f"at token {first.differences[0].position}"
    skipped = [one.skipped for one in found if one.skipped]
    if skipped:
        line += f"; skipped: {', '.join(f'{skipped.count(why)} {why}' for why in dict.fromkeys(skipped))}"
    return line


def as_object(found: "Sequence[Replayed]") -> dict[str, Any]:
    """All turns as JSON values."""
    from attrs import asdict

    compared = [one for one in found if not one.skipped]
    return {
        "same": not any(one.differences for one in found),
        "tokens": sum(one.tokens for one in compared),
        "agreed": sum(one.agreed for one in compared),
        "differences": sum(len(one.differences) for one in compared),
        "compared": len(compared),
        "skipped": len(found) - len(compared),
        "turns": [asdict(one) for one in found],
    }
