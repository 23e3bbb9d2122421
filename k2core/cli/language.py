"""A model's tokenizer and chat format without its weights, their JSON form, and JSON from a file or standard input."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k2core.cli.options import read_stdin
from k2core.cli.streams import strangers_code

if TYPE_CHECKING:
    from k2core.interfaces import ChatFormat, Tokenizer
    from k2core.plugins import Plugins


@strangers_code()
def tokenizer_of(plugins: "Plugins", model: str) -> "Tokenizer":
    """The tokenizer of a registered model or of a folder.

    Raises:
        UnknownName: there is no such model.
        InputError: the model brings its own language, which cannot be asked for.
        TokenizerError: its files are malformed.
    """
    options = _options(plugins, model)
    tokenizer: Tokenizer = plugins.get("tokenizer", options["tokenizer"]).load()(Path(options["checkpoint"]))
    return tokenizer


@strangers_code()
def tokenizer_named(plugins: "Plugins", name: str, model: str) -> "Tokenizer":
    """A registered tokenizer over the folder of *model*, or the tokenizer of the model or folder *name*.

    Raises:
        UnknownName: there is neither.
        PluginError: the tokenizer does not load.
        InputError, TokenizerError: as `tokenizer_of`.
    """
    from k2core.agent.swapping import made_of
    from k2core.errors import UnknownName

    if name in plugins.names("tokenizer"):
        tokenizer: Tokenizer = made_of(plugins.get("tokenizer", name), Path(_options(plugins, model)["checkpoint"]))
        return tokenizer
    if name in plugins.names("model") or Path(name).expanduser().is_dir():
        return tokenizer_of(plugins, name)
    known = [*plugins.names("tokenizer"), *plugins.names("model")]
    raise UnknownName("tokenizer", name, known, "A folder with a tokenizer's files works too.")


@strangers_code()
def chat_format_of(plugins: "Plugins", model: str, tokenizer: "Tokenizer") -> "ChatFormat":
    """The chat format of a registered model or of a folder, over its tokenizer; errors as `tokenizer_of`."""
    chat_format: ChatFormat = plugins.get("chat format", _options(plugins, model)["chat_format"]).load()(tokenizer)
    return chat_format


def wire_of(thing: object) -> Any:
    """The module ``wire`` beside a tokenizer or chat format: its language as JSON.

    The package of a language plugin may have one, with ``encode(tokenizer, text, control)``, ``decode(tokenizer, ids,
    control)``, ``render(chat_format, data)`` and ``parse(chat_format, data)``, each giving JSON values.

    Raises:
        Unavailable: the plugin has none.
    """
    from k2core.errors import Unavailable

    package = type(thing).__module__.partition(".")[0]
    if importlib.util.find_spec(f"{package}.wire") is None:
        raise Unavailable(f"the language of {type(thing).__name__} has no JSON form: {package} has no module wire")
    return importlib.import_module(f"{package}.wire")


def model_options(plugins: "Plugins", model: str) -> dict[str, Any] | None:
    """Where a registered model or a folder lies and what it speaks; None where *model* is neither.

    Raises:
        InputError: the model is registered without a checkpoint.
    """
    from k2core.agent.placement import of_folder
    from k2core.errors import InputError

    if model in plugins.names("model"):
        options = dict(plugins.get("model", model).options)
        if options["checkpoint"] is None:
            raise InputError(
                f"model '{model}' has no checkpoint folder: its tokens, its format and its sizes are its own affair"
            )
        return options
    folder = Path(model).expanduser()
    return of_folder(folder) if folder.is_dir() else None


def _options(plugins: "Plugins", model: str) -> dict[str, Any]:
    from k2core.errors import UnknownName

    options = model_options(plugins, model)
    if options is None:
        raise UnknownName("model", model, plugins.names("model"), "A folder with a tokenizer's files works too.")
    return options


def read_json(file: str | None) -> Any:
    """The JSON value in *file*, or in standard input for None and ``-``.

    Raises:
        InputError: no such file, not UTF-8, or not JSON; says where.
    """
    from k2core.errors import InputError

    if file in (None, "-"):
        where, text = "standard input", read_stdin("JSON")
    else:
        where = str(file)
        try:
            text = Path(where).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"cannot read {where}: byte {error.start + 1} is not UTF-8") from error
        except OSError as error:
            raise InputError(f"cannot read {where}: {error.strerror}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"cannot read {where} as JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {where} as JSON: {error}") from error
