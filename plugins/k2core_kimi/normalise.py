"""The form in which a conversation is rendered: default system message, running call ids, no thinking of finished answers.

Sources: chat_template.jinja of moonshotai/Kimi-K2-Thinking, revision 6126819 (default system text, history rule);
MoonshotAI/Kimi-K2 docs/tool_call_guidance.md and the Kimi-Vendor-Verifier README (ids run over the conversation, and the
official service renames foreign ones).
"""

from collections.abc import Sequence

from attrs import define, evolve, field

from k2core.errors import FormatError
from k2core.messages import Message, ToolCall
from k2core_kimi.markers import native_id, native_name

DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."


def normalise(messages: Sequence[Message]) -> list[Message]:
    """The same conversation as `KimiChatFormat.render` sees it. Idempotent.

    - A conversation that does not begin with a system message gets the default one.
    - Calls are numbered over the whole conversation and called ``functions.NAME:IDX``; tool results follow. A turn of the
      current chain that is rendered from its own ids keeps a native id that it wrote itself, whatever its number.
    - Up to the last assistant message without calls, thinking is emptied and `token_ids` are dropped; after it, both stay.

    Raises:
        FormatError: a tool message without an open call, or calls on another role; names the message's index.
    """
    messages = list(messages)
    history = max((at for at, one in enumerate(messages) if one.role == "assistant" and not one.tool_calls), default=-1)
    renamer = _Renamer()
    out: list[Message] = []
    if not messages or messages[0].role != "system":
        out.append(Message(role="system", content=DEFAULT_SYSTEM))
    for at, message in enumerate(messages):
        if not isinstance(message.role, str) or not message.role:
            raise FormatError(f"message {at} has no role; give one of system, user, assistant, tool")
        if message.role == "assistant":
            if at and messages[at - 1].role != "assistant":
                renamer.turn += 1
            is_past = at <= history
            token_ids = None if is_past else message.token_ids
            calls = tuple(renamer.call(call, is_own=token_ids is not None) for call in message.tool_calls)
            reasoning = "" if is_past else message.reasoning or ""
            out.append(evolve(message, reasoning=reasoning, tool_calls=calls, tool_call_id=None, token_ids=token_ids))
            continue
        if message.tool_calls:
            raise FormatError(f"message {at} has tool calls, but its role is '{message.role}'; only an assistant can call")
        call_id = renamer.answer(message, at) if message.role == "tool" else None
        out.append(evolve(message, reasoning=None, tool_call_id=call_id, token_ids=None))
    return out


@define
class _Open:
    """A call without a result yet."""

    old: str
    new: str
    name: str
    turn: int


@define
class _Renamer:
    count: int = 0
    turn: int = 0
    open: list[_Open] = field(factory=list)
    answered: set[str] = field(factory=set)

    def call(self, call: ToolCall, *, is_own: bool) -> ToolCall:
        keep = is_own and native_name(call.id) == call.name
        new = call.id if keep else native_id(call.name, self.count)
        self.count += 1
        self.open.append(_Open(call.id, new, call.name, self.turn))
        return evolve(call, id=new)

    def answer(self, message: Message, at: int) -> str:
        """The new id of the call that a tool message answers.

        Without an id that is the first open call, by name where given. Where several open calls have the id, it is the first
        one of the latest turn that has any: results come in the order of their calls.
        """
        wanted = message.tool_call_id
        if wanted is None:
            named = [one for one in self.open if one.name == message.name]
            found = next(iter(named or self.open), None)
        else:
            same = [one for one in self.open if one.old == wanted]
            found = next((one for one in same if one.turn == same[-1].turn), None)
        if found is None:
            which = "no tool_call_id" if wanted is None else f"tool_call_id '{wanted}'"
            twice = ", which has its result already" if wanted in self.answered else ""
            known = ", ".join(f"'{one.old}'" for one in self.open[-5:]) or "none"
            raise FormatError(f"message {at} is a tool result with {which}{twice}, but open calls are {known}")
        self.open = [one for one in self.open if one is not found]
        self.answered.add(found.old)
        return found.new
