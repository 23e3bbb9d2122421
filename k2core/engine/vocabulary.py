"""Whether another tokenizer may take a model's: it has the same token, control token or bytes, under every id, and a chat
format works over it."""

from k2core.interfaces import ChatFormat, Tokenizer
from k2core.messages import Message, ToolCall
from k2core.registration import described


def vocabulary_difference(first: Tokenizer, second: Tokenizer) -> str:
    """The first thing in which two vocabularies differ, in words; empty where there is none."""
    if first.vocab_size != second.vocab_size:
        return f"its vocabulary has {second.vocab_size} ids, not {first.vocab_size}"
    for text in sorted({*first.control, *second.control}):
        before, after = first.control.get(text), second.control.get(text)
        if before != after:
            return f"control token {text} has {_id(after)}, not {_id(before)}"
    for token in range(first.vocab_size):
        old, new = first.decode_bytes((token,)), second.decode_bytes((token,))
        if old != new:
            return f"id {token} is {new!r}, not {old!r}"
    return ""


def format_problem(chat_format: ChatFormat) -> str:
    """Why a small conversation and a turn of it cannot be rendered and parsed, empty where they can."""
    call = ToolCall(id="functions.tool:0", name="tool", arguments='{"text":"é 🙂"}')
    turn = Message(role="assistant", reasoning="It is a test.", tool_calls=(call,))
    messages = [Message(role="system", content="s"), Message(role="user", content="q"), turn]
    try:
        begin = len(chat_format.render(messages[:2]))
        ids = chat_format.render(messages, generate=False)[begin:]
        parser = chat_format.parser(tools=("tool",))
        for token in ids:
            parser.feed([token])
        _, parsed = parser.finish()
    except Exception as error:  # a stranger's fault, told before a conversation depends on it
        return described(error)
    if (parsed.reasoning, parsed.tool_calls) != (turn.reasoning, turn.tool_calls):
        return "a turn that it renders is parsed as another"
    return ""


def _id(token: int | None) -> str:
    return "no id" if token is None else f"id {token}"
