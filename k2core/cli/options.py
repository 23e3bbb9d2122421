"""Options that several commands share, and the session they lead to."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from k2core.agent.session import Choice
    from k2core.cli.settings import Settings
    from k2core.events import Stored
    from k2core.plugins import Plugins

F = TypeVar("F", bound=Callable[..., Any])

model_option = click.option("-m", "--model", metavar="MODEL", help="A registered model or a checkpoint folder.")
backend_option = click.option("-b", "--backend", metavar="NAME", help="What runs the model.")
store_option = click.option("--store", metavar="PATH", help="File that keeps the runs.")
threads_option = click.option("--threads", type=int, metavar="N", help="Threads of the backend.")


def budget_options() -> tuple[Callable[[Any], Any], ...]:
    """One for each budget of a question."""
    return (
        click.option("--calls", type=int, metavar="N", help="Budget of tool calls."),
        click.option("--tokens", type=int, metavar="N", help="Budget of generated tokens."),
        click.option("--thinking-tokens", type=int, metavar="N", help="Budget of thinking."),
        click.option("--seconds", type=float, metavar="X", help="Budget of wall time."),
        click.option("--cost", type=float, metavar="X", help="Budget of cost, in the currency of the prices."),
    )


def session_options(*, goes_on: bool = True) -> Callable[[F], F]:
    """Everything that says what a session is made of.

    Args:
        goes_on: with ``--continue``.
    """
    options = [
        model_option,
        backend_option,
        click.option("--device", metavar="NAME", help="Where it runs it, e.g. cpu or cuda."),
        click.option("--moe", metavar="NAME[:DEVICE]", help="Another backend that holds the routed experts."),
        click.option("--expert-mb", type=int, metavar="N", help="Limit of the memory of prepared experts."),
        click.option("--shadow", metavar="NAME[:DEVICE]", help="A backend that computes everything again, to be compared."),
        click.option(
            "--shadow-limit", type=float, metavar="X", help="How far its logits may be off; the contract's unless given."
        ),
        click.option("--numerics", metavar="NAME", help="exact (the default), w4a16 or w4a8."),
        click.option("-T", "--tool", "tools", multiple=True, metavar="NAME", help="Exactly these tools; repeat it."),
        click.option("--docs", metavar="FOLDER", help="Folder for the tools that search and read."),
        click.option("--workspace", metavar="FOLDER", help="Folder for the tools that run code and write files."),
        click.option("--sandbox", metavar="LEVEL", help="Isolation of code: strong (the default), wasm, reduced."),
        click.option(
            "--approve",
            multiple=True,
            metavar="CLASS",
            help="Ask before calls with this effect: pure, read, idempotent, reversible, external; all; none; repeat it.",
        ),
        click.option(
            "--trust", flag_value=True, default=None, type=bool, help="Do not ask before calls because of untrusted content."
        ),
        click.option("--seed", type=int, metavar="N", help="Seed of the sampler."),
        click.option("--temperature", type=float, metavar="X", help="0 is greedy."),
        click.option("--top-p", type=float, metavar="X", help="Nucleus sampling; 1 is off."),
        click.option("--min-p", type=float, metavar="X", help="Least relative probability; 0 is off."),
        click.option("--max-tokens", type=int, metavar="N", help="Most tokens of one turn."),
        click.option("--no-masks", "masks", flag_value=False, default=None, type=bool, help="Let the model write any token."),
        click.option("--drafts", type=int, metavar="N", help="Tokens guessed ahead per step; 0 is off."),
        click.option("--memory", metavar="NAME", help="What makes room in its context: rules, model, window."),
        click.option("--cache-mb", type=int, metavar="N", help="Limit of the model's cache memory."),
        click.option("--effort", metavar="LEVEL", help="Budgets: low, medium (the default), high, max."),
        *budget_options(),
        click.option("--paths", type=int, metavar="N", help="Several trajectories, their answers merged."),
        click.option("--paths-temperature", type=float, metavar="X", help="Of all paths but the first."),
        click.option("--price-prompt", type=float, metavar="X", help="Price of a million prompt tokens."),
        click.option("--price-cached", type=float, metavar="X", help="Price of a million prompt tokens that were cached."),
        click.option("--price-generated", type=float, metavar="X", help="Price of a million generated tokens."),
        threads_option,
        store_option,
        click.option("-R", "--no-reasoning", "reasoning", flag_value=False, default=None, type=bool, help="Hide thinking."),
    ]
    if goes_on:
        options.append(click.option("-c", "--continue", "run", metavar="RUN", help="Go on with a run; 'last' is the newest."))

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def choice_of(
    settings: "Settings", plugins: "Plugins", run: str | None = None, *, events: "Sequence[Stored]" = ()
) -> tuple["Choice", str | None]:
    """What a session is made of, and the full id of the run to continue.

    A continued run keeps its model and backend unless others were asked for, and so does one that goes on from *events*.
    """
    from k2core.agent.journal import Journal
    from k2core.agent.session import Choice
    from k2core.cli.limits import limits_of, prices_of
    from k2core.events import RunStarted

    model, backend = settings["model"], settings["backend"]
    full = None
    if run is not None:
        with Journal.open(settings["store"]) as journal:
            events = journal.events(run)
    if events:
        full = events[0].run
        started = next((one.event for one in events if isinstance(one.event, RunStarted)), None)
        recorded = dict(started.model) if started is not None else {}
        before = recorded.get("model", "")
        if settings.values["model"].is_default and (before in plugins.names("model") or Path(before or "-").is_dir()):
            model = before
        if settings.values["backend"].is_default and recorded.get("backend") in plugins.names("backend"):
            backend = recorded["backend"]
    apply_threads(settings)
    choice = Choice(
        model=model,
        backend=backend,
        device=settings["device"],
        numerics=settings["numerics"],
        moe=settings["moe"],
        expert_bytes=None if settings["expert_mb"] is None else settings["expert_mb"] * 10**6,
        shadow=settings["shadow"],
        shadow_limit=settings["shadow_limit"],
        tools=settings["tools"],
        documents=settings["docs"],
        workspace=settings["workspace"],
        sandbox=settings["sandbox"],
        store=settings["store"],
        limits=limits_of(settings),
        prices=prices_of(settings),
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        min_p=settings["min_p"],
        max_tokens=settings["max_tokens"],
        seed=settings["seed"],
        masks=settings["masks"],
        drafts=settings["drafts"],
        memory=settings["memory"],
        cache_bytes=None if settings["cache_mb"] is None else settings["cache_mb"] * 10**6,
        approve=settings["approve"],
        trust=settings["trust"],
    )
    return choice, full


def apply_threads(settings: "Settings") -> None:
    """Backends read the number of threads from the environment."""
    if settings["threads"] is not None:
        os.environ[settings.values["threads"].key.variable] = str(settings["threads"])


def read_stdin(what: str) -> str:
    """All of standard input.

    Raises:
        InputError: it is not UTF-8; says where.
    """
    import sys

    from k2core.errors import InputError

    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {what} from standard input: byte {error.start + 1} (0x{data[error.start]:02x}) is not UTF-8. "
            "Convert it first, e.g. with iconv -t utf-8."
        ) from error
