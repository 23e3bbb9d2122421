"""JSON in and out, behind ``k2 tokens encode|decode`` and ``k2 format render|parse``."""

from collections.abc import Mapping, Sequence
from typing import Any

from k2core.errors import FormatError, nearest
from k2core.messages import ArgumentsDelta, CallStarted, ContentDelta, Delta, message_from_json
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.parser import KimiTextParser, KimiTurnParser
from k2core_kimi.tokenizer import KimiTokenizer


def encode(tokenizer: KimiTokenizer, text: Any, control: bool = False) -> dict[str, Any]:
    """``{"ids": [...], "count": n}`` of a text.

    Raises:
        FormatError: *text* is no text.
    """
    if not isinstance(text, str):
        raise FormatError(f"cannot encode {type(text).__name__}, expected text")
    ids = tokenizer.encode(text, control=control)
    return {"ids": ids, "count": len(ids)}


def decode(tokenizer: KimiTokenizer, ids: Any, control: bool = True) -> dict[str, Any]:
    """``{"text": ..., "utf8": whether the bytes of the ids are valid UTF-8}``.

    Raises:
        FormatError: *ids* is no list of whole numbers.
        TokenizerError: an id is outside the vocabulary.
    """
    if isinstance(ids, Mapping):
        ids = _fields(ids, "ids").get("ids")
    kept = _ids(ids, "ids")
    try:
        tokenizer.decode_bytes(kept).decode("utf-8")
    except UnicodeDecodeError:
        is_valid = False
    else:
        is_valid = True
    return {"text": tokenizer.decode(kept, control=control), "utf8": is_valid}


def render(chat_format: KimiChatFormat, data: Any) -> dict[str, Any]:
    """``{"text", "ids", "count"}`` of ``{"messages": [...], "tools": [...], "generate": true}``, or of the messages alone.

    Raises:
        FormatError: the data has another shape, or the conversation cannot be rendered; names the message.
    """
    data = _fields({"messages": data} if isinstance(data, list) else data, "messages", "tools", "generate")
    raw = _list(data.get("messages"), "messages")
    messages = [message_from_json(one, f"messages[{at}]") for at, one in enumerate(raw)]
    tools = _list([] if data.get("tools") is None else data["tools"], "tools")
    generate = _flag(data, "generate", True)
    ids = chat_format.render(messages, tools, generate=generate)
    return {"text": chat_format.render_text(messages, tools, generate=generate), "ids": ids, "count": len(ids)}


def parse(chat_format: KimiChatFormat, data: Any) -> dict[str, Any]:
    """One model turn from its chunks, all texts or all lists of ids.

    Args:
        chat_format: of the model.
        data: ``{"chunks": [...]}``, or the list of chunks alone; also ``next_call_index``, ``tools`` (declarations or names)
            and ``thinking`` (the prompt ends in ``<think>``).

    Returns:
        ``content``, ``reasoning_content`` (null where the turn has no think tags), ``tool_calls``, ``finish_reason``,
        ``deltas`` (one list per chunk, in OpenAI's form) and ``flushed`` (the deltas after the last chunk).

    Raises:
        FormatError: the data has another shape.
        TokenizerError: an id is outside the vocabulary.
    """
    data = _fields({"chunks": data} if isinstance(data, list) else data, "chunks", "next_call_index", "tools", "thinking")
    chunks = _list(data.get("chunks"), "chunks")
    start = data.get("next_call_index", 0)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise FormatError(f"'next_call_index' is {start!r:.60}, expected a whole number from 0")
    names = [_tool_name(one, at) for at, one in enumerate(_list([] if data.get("tools") is None else data["tools"], "tools"))]
    thinking = _flag(data, "thinking", False)
    deltas: list[list[dict[str, Any]]]
    parser: KimiTextParser | KimiTurnParser
    if any(isinstance(chunk, str) for chunk in chunks):
        parser = text = chat_format.text_parser(next_call_index=start, tools=names, thinking=thinking)
        deltas = [_json(text.feed(_text(chunk, at))) for at, chunk in enumerate(chunks)]
    else:
        parser = ids = chat_format.parser(next_call_index=start, tools=names, thinking=thinking)
        deltas = [_json(ids.feed(_ids(chunk, f"chunks[{at}]"))) for at, chunk in enumerate(chunks)]
    flushed, message = parser.finish()
    return {
        "content": message.content,
        "reasoning_content": message.reasoning,
        "tool_calls": [call.to_json() for call in message.tool_calls],
        "finish_reason": parser.finish_reason,
        "deltas": deltas,
        "flushed": _json(flushed),
    }


def _json(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for delta in deltas:
        if isinstance(delta, CallStarted):
            function = {"name": delta.name, "arguments": ""}
            out.append({"tool_calls": [{"index": delta.index, "id": delta.id, "type": "function", "function": function}]})
        elif isinstance(delta, ArgumentsDelta):
            out.append({"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]})
        else:
            key = "content" if isinstance(delta, ContentDelta) else "reasoning_content"
            out.append({key: delta.text})
    return out


def _fields(data: Any, *known: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise FormatError(f"the input is {type(data).__name__}, expected an object with '{known[0]}'")
    for key in data:
        if key not in known:
            close = nearest(str(key), known)
            hint = f" Did you mean '{close}'?" if close else ""
            raise FormatError(f"the input has the key {key!r:.60}; known are {', '.join(known)}.{hint}")
    if known[0] not in data:
        raise FormatError(f"the input has no key '{known[0]}'")
    return data


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"'{where}' is {type(value).__name__}, expected a list")
    return value


def _ids(value: Any, where: str) -> list[int]:
    for at, one in enumerate(_list(value, where)):
        if not isinstance(one, int) or isinstance(one, bool):
            raise FormatError(f"{where}[{at}] is {one!r:.60}, expected a token id")
    return list(value)


def _text(value: Any, at: int) -> str:
    if not isinstance(value, str):
        raise FormatError(f"chunks[{at}] is {type(value).__name__}; give texts only, or lists of token ids only")
    return value


def _flag(data: Mapping[str, Any], key: str, default: bool) -> bool:
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"'{key}' is {value!r:.60}, expected true or false")
    return value


def _tool_name(value: Any, at: int) -> str:
    function = value.get("function") if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else value
    if not isinstance(name, str) or not name:
        raise FormatError(f"tools[{at}] is neither a name nor a declaration with function.name")
    return name
