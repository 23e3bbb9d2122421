"""Replay: every turn of a run generated again behind the conversation that the journal has before it, and compared.

No tool is called: results are the journal's. On a batch-invariant backend with the same weights and numerics every token is
chosen again, whatever the threads, batches, guesses and cached prefixes. Elsewhere a turn goes on with the tokens that the
journal has, so that each place is judged on its own, and the next turn is asked for behind what was said then.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen

from k2core.agent import projection
from k2core.agent.asked import began_with, options_of, tools_of
from k2core.agent.swap_events import IDENTITY
from k2core.agent.swaps import declarations_hash
from k2core.engine.following import Difference, Followed
from k2core.errors import InputError, K2Error
from k2core.events import ModelSwitched, PathStarted, RunStarted, Stored, Swapped, TurnEnded
from k2core.interfaces import ChatModel, GenerateOptions
from k2core.messages import Message
from k2core.tools import Registry

if TYPE_CHECKING:
    from k2core.agent.session import Session


@runtime_checkable
class Follows(ChatModel, Protocol):
    """A model that can be led along the tokens of a turn, as `EngineModel` can."""

    async def follow(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        options: GenerateOptions,
        token_ids: Sequence[int],
    ) -> Followed:
        """Generate a turn along *token_ids*."""
        ...


@frozen(kw_only=True)
class Replayed:
    """One turn of a run, generated again.

    Attributes:
        event: number of its event.
        tokens: that the journal has of it.
        agreed: how many of these are chosen again.
        differences: where another one is, in order.
        skipped: why it was not generated; empty where it was.
        others: of the model's identity what is otherwise than it was then, each as (then, now).
        notes: what else is; one line each.
    """

    event: int
    tokens: int = 0
    agreed: int = 0
    differences: tuple[Difference, ...] = ()
    skipped: str = ""
    others: Mapping[str, tuple[str, str]] = field(factory=dict)
    notes: tuple[str, ...] = ()


@frozen(kw_only=True)
class AskedTurn:
    """A turn as it was asked for.

    Attributes:
        messages: the conversation before it.
        options: what it was held to.
        tools: names of those that the model was told of.
    """

    messages: Sequence[Message]
    options: GenerateOptions
    tools: Sequence[str]


def asked_turn(turn: TurnEnded, before: Sequence[Stored]) -> AskedTurn | None:
    """How a turn was asked for behind the events before it; None where its event does not tell."""
    options = options_of(turn)
    if options is None:
        return None
    return AskedTurn(messages=projection.messages(before), options=options, tools=tools_of(turn, before))


def why_skipped(turn: TurnEnded) -> str:
    """Why a turn cannot be compared; empty where it can."""
    if turn.finish_reason == "cancelled":
        return "interrupted"
    if not turn.token_ids:
        return "without token ids"
    return "" if turn.options else "recorded without options"


def see_comparable(events: Sequence[Stored]) -> None:
    """See that a run has a turn that can be compared.

    Raises:
        InputError: it has none; says why, and which runs have them where it is the question of several paths.
    """
    run, turns = events[0].run, [one.event for one in events if isinstance(one.event, TurnEnded)]
    skipped = [why for why in map(why_skipped, turns) if why]
    if len(skipped) < len(turns):
        return
    paths = [one.event.run for one in events if isinstance(one.event, PathStarted)]
    why = ", ".join(f"{skipped.count(one)} {one}" for one in dict.fromkeys(skipped))
    line = f"none of its turns can be compared ({why})" if turns else "it has no turns"
    if paths:
        line = f"its turns are those of its paths. Replay {', '.join(paths)}."
    raise InputError(f"cannot replay run {run}: {line}")


async def replay(session: "Session", events: Sequence[Stored]) -> AsyncIterator[Replayed]:
    """Generate every turn of a run again, in order.

    Args:
        session: with the run's tools; its model generates. Tools and tokenizer are swapped as they were in the run.
        events: of the run, all of them.

    Raises:
        InputError: none of the turns can be compared, or the session's model cannot be led along tokens.
        K2Error: the model failed, or a prompt does not fit into its context.
    """
    see_comparable(events)
    model, tools = session.agent.model, session.agent.tools
    if not isinstance(model, Follows):
        raise InputError(
            f"cannot replay run {events[0].run} on model '{model.name}': it cannot be led along tokens. Give another with -m."
        )
    now, then, notes = dict(model.identity()), dict[str, str](), list[str]()
    is_first = True
    for place, stored in enumerate(events):
        event = stored.event
        if isinstance(event, RunStarted | ModelSwitched):
            then = dict(event.model)
        elif isinstance(event, Swapped):
            notes += _swapped(session, event)
        elif isinstance(event, TurnEnded):
            others = {name: (then.get(name, ""), now.get(name, "")) for name in IDENTITY if then.get(name) != now.get(name)}
            if why := why_skipped(event):
                yield Replayed(event=stored.sequence, tokens=len(event.token_ids or ()), skipped=why, others=others)
                continue
            asked = asked_turn(event, events[:place])
            assert asked is not None and event.token_ids is not None  # else it is skipped
            notes += _undeclared(tools, asked.tools, events if is_first else ())
            declarations = [tools.get(name).declaration() for name in asked.tools if name in tools.names()]
            followed = await model.follow(asked.messages, declarations, asked.options, event.token_ids)
            told, is_first, notes = _prompts(event, followed, notes), False, []
            yield Replayed(
                event=stored.sequence,
                tokens=followed.tokens,
                agreed=followed.agreed,
                differences=followed.differences,
                others=others,
                notes=tuple(told),
            )


def _swapped(session: "Session", event: Swapped) -> list[str]:
    """Have a part carried out as it was from here on; what is wrong with that."""
    try:
        if event.what == "tool":
            session.tools.use(event.name, event.new)
        elif event.what == "tokenizer":
            session.tokenizers.use(event.new)
        session.agent.swaps.settle()
    except K2Error as error:
        return [f"{event.what} {event.name} was carried out by {event.new}: {error}"]
    return []


def _undeclared(tools: Registry, names: Sequence[str], events: Sequence[Stored]) -> list[str]:
    """What the model is not told as it was: tools that are missing and, with the run's *events*, those in other words."""
    missing = [f"tool {name} is not here" for name in names if name not in tools.names()]
    started = next((one.event for one in events if isinstance(one.event, RunStarted)), None)
    if missing or started is None or tuple(names) != began_with(events):
        return missing
    declared = declarations_hash([tools.get(name).declaration() for name in names])
    return [] if declared == started.declarations_hash else ["the tools are declared in other words than they were"]


def _prompts(turn: TurnEnded, followed: Followed, notes: Sequence[str]) -> list[str]:
    """*notes*, and whether the prompt is another one."""
    then, now = turn.usage.prompt_tokens, followed.usage.prompt_tokens
    return [*notes, *([f"its prompt has {now} tokens, {then} when it was recorded"] if then != now else [])]
