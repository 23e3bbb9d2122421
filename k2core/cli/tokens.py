"""``k2 tokens``: text to token ids and back, as JSON; whether two tokenizers do the same."""

import click

from k2core.cli.app import App
from k2core.cli.options import model_option, read_stdin
from k2core.cli.output import emit, json_option

control_option = click.option("--control/--no-control", default=False, help="Whether control tokens are made (off).")


@click.group()
def tokens() -> None:
    """Text to token ids and back, as JSON."""


@tokens.command()
@click.argument("text", required=False)
@control_option
@model_option
@json_option
@click.pass_obj
def encode(app: App, text: str | None, control: bool, model: str | None, as_json: bool) -> None:
    """Token ids of TEXT, or of standard input to its last byte: {"ids": […], "count": n}."""
    from k2core.cli.language import tokenizer_of, wire_of

    tokenizer = tokenizer_of(app.plugins(), app.settings(model=model)["model"])
    raw = read_stdin("text") if text in (None, "-") else text
    emit(wire_of(tokenizer).encode(tokenizer, raw, control))


@tokens.command()
@click.argument("ids", nargs=-1)
@click.option("--control/--no-control", default=True, help="Whether control tokens are written out (on).")
@model_option
@json_option
@click.pass_obj
def decode(app: App, ids: tuple[str, ...], control: bool, model: str | None, as_json: bool) -> None:
    """Text of token IDS, or of those in standard input, apart by white space or commas: {"text": …, "utf8": true}.

    "utf8" is whether their bytes are UTF-8; what is not becomes U+FFFD.
    """
    from k2core.cli.language import tokenizer_of, wire_of
    from k2core.errors import InputError, TokenizerError

    words = " ".join(ids) if ids and ids != ("-",) else read_stdin("token ids")
    words = words.translate(str.maketrans(",[]", "   "))
    for word in words.split():
        if not (word.isascii() and word.isdigit()):
            raise InputError(f"'{word}' is not a token id. Give whole numbers from 0 on.")
    tokenizer = tokenizer_of(app.plugins(), app.settings(model=model)["model"])
    try:
        emit(wire_of(tokenizer).decode(tokenizer, [int(word) for word in words.split()], control))
    except TokenizerError as error:  # of ids that were given, not of the vocabulary
        raise InputError(str(error)) from error


@tokens.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("-n", "--count", type=click.IntRange(min=1), default=500, show_default=True, metavar="N", help="Texts and ids.")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of what is drawn.")
@model_option
@json_option
@click.pass_obj
@click.pass_context
def check(
    ctx: click.Context, app: App, first: str, second: str, count: int, seed: int, model: str | None, as_json: bool
) -> None:
    """Whether two tokenizers do the same, e.g. k2 tokens check kimi mine.

    A and B are registered tokenizers, which read the folder of --model, or models and folders with a tokenizer of their own.
    The vocabularies are compared first. Then texts and ids are drawn, and what both encode and decode is compared; the first
    disagreement is shown, made as simple as possible, and the exit code is 4.
    """
    from k2core.cli.comparing import tell
    from k2core.cli.language import tokenizer_named
    from k2core.cli.streams import strangers_code
    from k2core.cli.text import to_json
    from k2core.conformance.tokenizers_check import check_tokenizers

    settings, plugins = app.settings(model=model), app.plugins()
    pair = [tokenizer_named(plugins, name, settings["model"]) for name in (first, second)]
    with strangers_code():
        found = check_tokenizers(pair[0], pair[1], count=count, seed=seed)
    app.caught.log()
    given = None if found.disagreement is None else found.disagreement.given
    shown = "their vocabularies" if given is None else to_json(given)
    ctx.exit(tell((first, second), "sample", found, given, shown, as_json=as_json))
