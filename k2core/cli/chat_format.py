"""``k2 format``: messages to a prompt and a model's turn back, as JSON."""

from typing import Any

import click

from k2core.cli.app import App
from k2core.cli.options import model_option
from k2core.cli.output import emit, json_option


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
    "reasoning_content" beside "content"; a list alone is taken for the messages.
    """
    _convert(app, "render", file, model)


@chat_format.command()
@click.argument("file", required=False)
@model_option
@json_option
@click.pass_obj
def parse(app: App, file: str | None, model: str | None, as_json: bool) -> None:
    """A model's turn as "content", "reasoning_content", "tool_calls", and "deltas": one list per chunk.

    FILE (or standard input) holds {"chunks": […]}, all texts or all lists of token ids, from the first after the assistant's
    header on; also "next_call_index", "tools" and "thinking" (the prompt ends in <think>). A list
    alone is taken for the chunks.
    """
    _convert(app, "parse", file, model)


def _convert(app: App, verb: str, file: str | None, model: str | None) -> None:
    from k2core.cli.language import chat_format_of, read_json, tokenizer_of, wire_of
    from k2core.errors import InputError, TokenizerError

    data: Any = read_json(file)
    name, plugins = app.settings(model=model)["model"], app.plugins()
    spoken = chat_format_of(plugins, name, tokenizer_of(plugins, name))
    try:
        emit(getattr(wire_of(spoken), verb)(spoken, data))
    except TokenizerError as error:  # of ids that were given, not of the vocabulary
        raise InputError(str(error)) from error
