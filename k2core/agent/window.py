"""A finite context for a run that is not: old tool results are hidden first, then whole steps are left out, in blocks.

When the context is 90 % full, the oldest results are replaced by ``(hidden)`` until 60 % is used; where that is not enough, the
oldest steps are left out. Hiding one per step would cost the shared prefix at every step; hiding a block costs it once. (Hiding
tool outputs first is K2's own strategy for long runs: the Kimi K2 Thinking model card.) Questions and answers always stay.
"""

import itertools
from collections.abc import Iterator, Sequence

from attrs import frozen

from k2core.agent.projection import HIDDEN
from k2core.messages import Message, Usage

HIDE_AT = 0.9
HIDE_UNTIL = 0.6


@frozen(kw_only=True)
class Room:
    """What makes room: calls whose results are hidden, and up to which number, it not included, calls are left out with
    their steps; 0 where none is."""

    hidden: tuple[int, ...] = ()
    left_out: int = 0


def make_room(messages: Sequence[Message], usage: Usage, context: int, *, gone: frozenset[int] = frozenset()) -> Room | None:
    """What the next turn should no longer see; None while there is room.

    Sizes are estimated: the last turn's prompt says how many tokens a character takes here.

    Args:
        messages: the conversation, the newest results included.
        usage: of the last turn.
        context: tokens that the model may be given.
        gone: numbers of calls that the messages no longer show.
    """
    last_turn = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
    if last_turn < 0 or usage.prompt_tokens == 0:
        return None
    seen = sum(_characters(message) for message in messages[:last_turn])
    per_character = usage.prompt_tokens / max(seen, 1)
    used = float(usage.prompt_tokens + usage.completion_tokens)
    used += sum(_characters(message) for message in messages[last_turn + 1 :]) * min(per_character, 1.0)
    if used <= HIDE_AT * context:
        return None
    hidden: list[int] = []
    results = [message for message in messages[:last_turn] if message.role == "tool"]  # what answers the newest turn stays
    numbers = _numbers(gone)
    for number, message in zip(numbers, results, strict=False):
        if used <= HIDE_UNTIL * context:
            break
        if message.content != HIDDEN:
            hidden.append(number)
            used -= max(0, len(message.content) - len(HIDDEN)) * min(per_character, 1.0)
    numbers, left_out = _numbers(gone), 0
    for size, calls in _steps(messages[:last_turn]):
        if used <= HIDE_UNTIL * context:
            break
        left_out = [next(numbers) for _ in range(calls)][-1] + 1
        used -= size * min(per_character, 1.0)
    hidden = [number for number in hidden if number >= left_out]
    return Room(hidden=tuple(hidden), left_out=left_out) if hidden or left_out else None


def _numbers(gone: frozenset[int]) -> Iterator[int]:
    """Numbers of the calls that are still shown, in order."""
    return (number for number in itertools.count() if number not in gone)


def _steps(messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Characters and calls of each step, whose results count as hidden."""
    for message in messages:
        if message.tool_calls:
            yield _characters(message) + sum(len(HIDDEN) + 16 for _ in message.tool_calls), len(message.tool_calls)


def _characters(message: Message) -> int:
    calls = sum(len(call.id) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning or "") + calls + 16  # 16: the frame around a message
