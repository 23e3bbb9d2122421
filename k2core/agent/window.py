"""A finite context for a run that is not: old tool results are hidden first, then whole steps are left out, in blocks.

When the context is 90 % full, the oldest results are replaced by ``(hidden)`` until 60 % is used; where that is not enough, the
oldest steps are left out. Hiding one per step would cost the shared prefix at every step; hiding a block costs it once. (Hiding
tool outputs first is K2's own strategy for long runs: the Kimi K2 Thinking model card.) Questions and answers always stay.

These are the framework's own rules: the memory `Window`, and what is done where another memory fails.
"""

import itertools
from collections.abc import Iterator, Sequence

from attrs import frozen

from k2core.agent.projection import HIDDEN
from k2core.interfaces import MemoryView, Room
from k2core.memory import Ask
from k2core.messages import Message, Usage

HIDE_AT = 0.9
HIDE_UNTIL = 0.6
WINDOW = "window"
FRAME = 16  # characters that the frame around a message counts for


@frozen(kw_only=True)
class Window:
    """Leaves old results and old steps out, without a word in their place."""

    name: str = WINDOW
    recalls: bool = False

    async def make_room(self, view: MemoryView, ask: Ask) -> Room:
        """The oldest results, then the oldest steps."""
        return room_by_rules(view) or Room()


def room_by_rules(view: MemoryView, *, until: float = HIDE_UNTIL, short: int = 0) -> Room | None:
    """`make_room` of a view."""
    messages = [one.message for one in view.shown]
    return make_room(messages, view.usage, view.context, gone=view.left_out, until=until, short=short)


def make_room(
    messages: Sequence[Message],
    usage: Usage,
    context: int,
    *,
    gone: frozenset[int] = frozenset(),
    until: float = HIDE_UNTIL,
    short: int = 0,
) -> Room | None:
    """What the next turn should no longer see; None while there is room.

    Sizes are estimated: the last turn's prompt says how many tokens a character takes here.

    Args:
        messages: the conversation, the newest results included.
        usage: of the last turn.
        context: tokens that the model may be given.
        gone: numbers of calls that the messages no longer show.
        until: the share of the context down to which room is made.
        short: characters up to which a result is not worth hiding.
    """
    sized = estimate(messages, usage)
    if sized is None or sized[0] <= HIDE_AT * context:
        return None
    used, per_character = sized
    last_turn = newest_turn(messages)
    hidden: list[int] = []
    results = [message for message in messages[:last_turn] if message.role == "tool"]  # what answers the newest turn stays
    numbers = _numbers(gone)
    for number, message in zip(numbers, results, strict=False):
        if used <= until * context:
            break
        if message.content != HIDDEN and len(message.content) > short:
            hidden.append(number)
            used -= max(0, len(message.content) - len(HIDDEN)) * per_character
    numbers, left_out = _numbers(gone), 0
    for size, calls in _steps(messages[:last_turn], short):
        if used <= until * context:
            break
        left_out = [next(numbers) for _ in range(calls)][-1] + 1
        used -= size * per_character
    hidden = [number for number in hidden if number >= left_out]
    return Room(hidden=tuple(hidden), left_out=left_out) if hidden or left_out else None


def estimate(messages: Sequence[Message], usage: Usage) -> tuple[float, float] | None:
    """Tokens that *messages* take as a prompt, and that a character takes, never more than one; None where nothing is known.

    Args:
        messages: the conversation, the newest results included.
        usage: of its last turn.
    """
    last_turn = newest_turn(messages)
    if last_turn < 0 or usage.prompt_tokens == 0:
        return None
    per_character = min(usage.prompt_tokens / max(characters_of(messages[:last_turn]), 1), 1.0)
    used = float(usage.prompt_tokens + usage.completion_tokens)
    return used + characters_of(messages[last_turn + 1 :]) * per_character, per_character


def newest_turn(messages: Sequence[Message]) -> int:
    """The place of the assistant's last message, -1 where there is none."""
    return max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)


def characters_of(messages: Sequence[Message]) -> int:
    """What *messages* count for."""
    return sum(_characters(message) for message in messages)


def _numbers(gone: frozenset[int]) -> Iterator[int]:
    """Numbers of the calls that are still shown, in order."""
    return (number for number in itertools.count() if number not in gone)


def _steps(messages: Sequence[Message], short: int) -> Iterator[tuple[int, int]]:
    """Characters and calls of each step, whose results count as hidden where they are worth it."""
    results = (message for message in messages if message.role == "tool")
    for message in messages:
        if message.tool_calls:
            shown = (len(next(results).content) for _ in message.tool_calls)
            sizes = (size if 0 < size <= short else len(HIDDEN) for size in shown)
            yield _characters(message) + sum(size + FRAME for size in sizes), len(message.tool_calls)


def _characters(message: Message) -> int:
    calls = sum(len(call.id) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning or "") + calls + FRAME
