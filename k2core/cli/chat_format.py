"""``k2 format``: messages to a prompt and a model's turn back, as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from k2core.cli.app import App
from k2core.cli.options import model_option
from k2core.cli.output import emit, json_option

if TYPE_CHECKING:
    from k2core.interfaces import Tokenizer
    from k2core.messages import Delta


@click.group("format")
def chat_format() -> None:
    """Messages to a prompt and a model's turn back, as JSON."""


@chat_format.command()
@click.argument("file", required=False)
@model_option
@json_option
@click.pass_obj
def render(app: App, file: str | None, model: str | None, as_json: bool) -> None:
    """A conversation as a prompt: {"text": …, "ids": […], "count": n}.

    FILE (or standard input) holds {"messages": […], "tools": […], "generate": true} in OpenAI's form, with
    "reasoning_content" beside "content".
    """
    from k2core.cli.language import chat_format_of, read_json, tokenizer_of
    from k2core.errors import InputError
    from k2core.messages import message_from_json

    data = _fields(read_json(file), {"messages": list, "tools": list, "generate": bool})
    if "messages" not in data:
        raise InputError('"messages" is missing; give {"messages": […], "tools": […]}')
    messages = [message_from_json(one, f"messages[{number}]") for number, one in enumerate(data["messages"])]
    tools = data.get("tools", [])
    for number, one in enumerate(tools):
        if not isinstance(one, Mapping):
            raise InputError(f"tools[{number}] is {type(one).__name__}, expected an object")
    name, plugins = app.settings(model=model)["model"], app.plugins()
    tokenizer = tokenizer_of(plugins, name)
    ids = chat_format_of(plugins, name, tokenizer).render(messages, tools, generate=data.get("generate", True))
    emit({"text": tokenizer.decode(ids), "ids": ids, "count": len(ids)})


@chat_format.command()
@click.argument("file", required=False)
@model_option
@json_option
@click.pass_obj
def parse(app: App, file: str | None, model: str | None, as_json: bool) -> None:
    """A model's turn as content, reasoning and calls: {"message": …, "deltas": [[…] per chunk], "done": …}.

    FILE (or standard input) holds {"chunks": […], "next_call_index": 0}; a chunk is text or a list of token ids, from the
    first after the assistant's header on. Control tokens in text count, also across chunks.
    """
    from k2core.cli.language import chat_format_of, read_json, tokenizer_of

    data = _fields(read_json(file), {"chunks": list, "next_call_index": int})
    name, plugins = app.settings(model=model)["model"], app.plugins()
    tokenizer = tokenizer_of(plugins, name)
    parser = chat_format_of(plugins, name, tokenizer).parser(next_call_index=data.get("next_call_index", 0))
    deltas = [[_delta(one) for one in parser.feed(ids)] for ids in chunk_ids(tokenizer, data.get("chunks", []))]
    last, message = parser.finish()
    deltas.append([_delta(one) for one in last])
    emit(
        {
            "content": message.content,
            "reasoning": message.reasoning,
            "tool_calls": [call.to_json() for call in message.tool_calls],
            "message": message.to_json(),
            "deltas": deltas,
            "ids": list(message.token_ids or ()),
            "done": parser.done,
        }
    )


def chunk_ids(tokenizer: "Tokenizer", chunks: Sequence[object]) -> Iterator[list[int]]:
    """Token ids of each chunk, and of what was held back at the end.

    Text that could be the beginning of a control token waits for the next chunk.

    Raises:
        InputError: a chunk is neither text nor a list of ids of the vocabulary.
    """
    from k2core.errors import InputError

    held = ""
    for number, chunk in enumerate(chunks):
        if isinstance(chunk, str):
            text = held + chunk
            keep = max(
                (size for token in tokenizer.control for size in range(1, len(token)) if text.endswith(token[:size])), default=0
            )
            held = text[len(text) - keep :]
            yield tokenizer.encode(text[: len(text) - keep], control=True)
            continue
        ids = chunk if isinstance(chunk, list) else None
        if ids is None or any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
            raise InputError(f"chunks[{number}] is neither text nor a list of token ids")
        wrong = next((one for one in ids if not 0 <= one < tokenizer.vocab_size), None)
        if wrong is not None:
            raise InputError(f"chunks[{number}] has token {wrong}: ids go from 0 to {tokenizer.vocab_size - 1}")
        before, held = tokenizer.encode(held, control=True), ""
        yield [*before, *ids]
    yield tokenizer.encode(held, control=True)


def _fields(data: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """*data* as an object with no other fields than *kinds*."""
    from k2core.errors import InputError

    if not isinstance(data, dict):
        raise InputError(f"the input is {type(data).__name__}, expected an object with {', '.join(kinds)}")
    for name in data:
        if name not in kinds:
            raise InputError(f'there is no field "{name}". Known: {", ".join(kinds)}.')
        value: Any = data[name]
        is_number = kinds[name] is int
        fits = (type(value) is int and value >= 0) if is_number else isinstance(value, kinds[name])
        if not fits:
            expected = "a whole number from 0 on" if is_number else {list: "a list", bool: "true or false"}[kinds[name]]
            raise InputError(f'"{name}" is {value!r:.80}, expected {expected}')
    return data


def _delta(delta: "Delta") -> dict[str, Any]:
    import attrs

    names = {"ReasoningDelta": "reasoning", "ContentDelta": "content", "CallStarted": "call", "ArgumentsDelta": "arguments"}
    return {"type": names[type(delta).__name__], **attrs.asdict(delta)}
