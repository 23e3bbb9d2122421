"""The files of a Kimi vocabulary, read and checked: ``tiktoken.model`` and ``tokenizer_config.json``.

``tiktoken.model`` has one line per piece, "base64(bytes) SPACE rank", ranks dense from 0; a piece's rank is its id and its
merge priority. ``tokenizer_config.json`` names control tokens under ``added_tokens_decoder``; ids behind the ranks that it
does not name are ``<|reserved_token_{id}|>``. A vocabulary of the family has 256 ids behind its ranks; another one may bring
its own pattern under ``pat_str`` and then has as many ids as its config.json says, or else as its highest name needs.

Source: MoonshotAI/Kimi-Vendor-Verifier beam/tokenizer @3dad65a.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from k2core.errors import TokenizerError

RANKS, CONFIG = "tiktoken.model", "tokenizer_config.json"
LARGEST_FILE = 64 * 2**20  # bytes; the family's ranks have 2.8 MB
LARGEST_VOCABULARY = 2**22
FAMILY_CONTROL = 256


@frozen(kw_only=True)
class Vocabulary:
    """A checked vocabulary.

    Attributes:
        ranks: bytes of a piece to its id; every single byte is among them.
        control: text of a control token to its id; these ids fill the range from ``len(ranks)`` to `size`.
        size: number of ids.
        pattern: the folder's own pre-tokenizer, None for the family's.
    """

    ranks: Mapping[bytes, int] = field(eq=False, repr=False)
    control: Mapping[str, int] = field(eq=False, repr=False)
    size: int
    pattern: str | None = None


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read a folder.

    Raises:
        TokenizerError: a file is missing or malformed; names the file and the line or key.
    """
    ranks = _ranks(folder / RANKS)
    config = _object(folder / CONFIG)
    pattern = config.get("pat_str")
    if pattern is not None and (not isinstance(pattern, str) or not pattern):
        raise TokenizerError(f"{folder / CONFIG}: key 'pat_str' is {pattern!r:.60}, expected a regular expression")
    named = _named(folder / CONFIG, config.get("added_tokens_decoder"), len(ranks))
    size = _size(folder, len(ranks), max(named, default=len(ranks) - 1) + 1, own=pattern is not None)
    control: dict[str, int] = {}
    for token in range(len(ranks), size):
        text = named.get(token, f"<|reserved_token_{token}|>")
        if text in control:
            raise TokenizerError(f"{folder / CONFIG}: ids {control[text]} and {token} are both called {text!r:.60}")
        control[text] = token
    return Vocabulary(ranks=ranks, control=control, size=size, pattern=pattern)


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    number = 0
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line:
            continue
        parts = line.split(b" ")
        try:
            piece, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (ValueError, IndexError) as error:
            raise TokenizerError(f"{path}, line {number}: {line[:40]!r} is not 'base64 rank'") from error
        if len(parts) != 2 or not piece:
            raise TokenizerError(f"{path}, line {number}: {line[:40]!r} is not 'base64 rank'")
        if rank != len(ranks):
            raise TokenizerError(f"{path}, line {number}: rank {rank} where {len(ranks)} is expected; ranks count up from 0")
        if piece in ranks:
            raise TokenizerError(f"{path}, line {number}: {piece[:20]!r} is there already with rank {ranks[piece]}")
        ranks[piece] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{path}: after {number} lines {len(missing)} of the 256 single bytes are missing, first 0x{missing[0]:02x}; "
            "the file may be truncated"
        )
    return ranks


def _named(path: Path, added: Any, first: int) -> dict[int, str]:
    if not isinstance(added, dict):
        raise TokenizerError(f"{path}: key 'added_tokens_decoder' is missing or no object of ids to tokens")
    named: dict[int, str] = {}
    for key, value in added.items():
        text = value.get("content") if isinstance(value, dict) else None
        if not key.isascii() or not key.isdigit() or len(key) > 8 or not isinstance(text, str) or not text:
            raise TokenizerError(
                f"{path}: added_tokens_decoder has {key!r:.40}: {value!r:.60}, expected an id with its 'content'"
            )
        token = int(key)
        if not first <= token < LARGEST_VOCABULARY:
            raise TokenizerError(
                f"{path}: added_tokens_decoder names id {token}, but control ids start at {first}, after the ranks"
            )
        named[token] = text
    return named


def _size(folder: Path, ranks: int, needed: int, *, own: bool) -> int:
    size, source = ranks + FAMILY_CONTROL, "the family's ranks + 256"
    config = folder / "config.json"
    if config.is_file():
        data = _object(config)
        inner = data.get("text_config")
        stated = (inner if isinstance(inner, dict) else data).get("vocab_size")
        if not isinstance(stated, int) or isinstance(stated, bool) or not ranks <= stated <= LARGEST_VOCABULARY:
            raise TokenizerError(
                f"{config}: key 'vocab_size' is {stated!r:.40}, expected at least the {ranks} ranks of {RANKS}"
            )
        size, source = stated, "config.json"
    elif own:
        size = needed
    if needed > size:
        raise TokenizerError(f"{folder / CONFIG}: it names id {needed - 1}, but the vocabulary has {size} ids by {source}")
    return size


def _object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read {path}: it is not valid JSON ({str(error)[:100]})") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"cannot read {path}: it holds {type(data).__name__}, expected a JSON object")
    return data


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise TokenizerError(f"cannot read {path}: there is no such file; a tokenizer folder has {RANKS} and {CONFIG}")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise TokenizerError(f"cannot read {path}: it has {size} bytes, more than the {LARGEST_FILE} such a file may have")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error
