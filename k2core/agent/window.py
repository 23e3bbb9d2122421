"""A finite context for a run that is not: old tool results are hidden first, in blocks.

When the context is 90 % full, the oldest results are replaced by ``(hidden)`` until 60 % is used. Hiding one per step would
cost the shared prefix at every step; hiding a block costs it once. (Hiding tool outputs first is K2's own strategy for
long runs: the Kimi K2 Thinking model card.)
"""

from collections.abc import Sequence

from k2core.agent.projection import HIDDEN
from k2core.messages import Message, Usage

HIDE_AT = 0.9
HIDE_UNTIL = 0.6


def to_hide(messages: Sequence[Message], usage: Usage, context: int) -> tuple[int, ...]:
    """Numbers of the calls whose results should be hidden before the next turn; empty while there is room.

    Sizes are estimated: the last turn's prompt says how many tokens a character takes here.

    Args:
        messages: the conversation, the newest results included.
        usage: of the last turn.
        context: tokens that the model may be given.
    """
    last_turn = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
    if last_turn < 0 or usage.prompt_tokens == 0:
        return ()
    seen = sum(_characters(message) for message in messages[:last_turn])
    per_character = usage.prompt_tokens / max(seen, 1)
    used = float(usage.prompt_tokens + usage.completion_tokens)
    used += sum(_characters(message) for message in messages[last_turn + 1 :]) * min(per_character, 1.0)
    if used <= HIDE_AT * context:
        return ()
    hidden: list[int] = []
    results = [message for message in messages[:last_turn] if message.role == "tool"]  # what answers the newest turn stays
    for number, message in enumerate(results):
        if used <= HIDE_UNTIL * context:
            break
        if message.content != HIDDEN:
            hidden.append(number)
            used -= max(0, len(message.content) - len(HIDDEN)) * min(per_character, 1.0)
    return tuple(hidden)


def _characters(message: Message) -> int:
    calls = sum(len(call.id) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning or "") + calls + 16  # 16: the frame around a message
