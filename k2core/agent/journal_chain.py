"""The journal's hash chain: the one spelling of an event's JSON, a row's hash, and the check of a whole run."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from k2core.errors import FormatError, JournalDamaged
from k2core.events import Event, Stored, event_from_json

_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical_json(value: Any) -> str:
    """The one spelling of JSON that is hashed: sorted keys, no spaces, non-ASCII raw except lone surrogates.

    Raises:
        FormatError: *value* holds something that JSON has no form for, e.g. NaN.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FormatError(f"cannot write an event as JSON: {error}") from error
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def row_hash(previous: str, run: str, sequence: int, moment: str, kind: str, body: str) -> str:
    """sha256 (hex) over the previous row's hash and this row: each part as UTF-8 with its length in front."""
    return _row_hash(previous.encode(), run.encode(), sequence, moment.encode(), kind.encode(), body.encode())


def _row_hash(previous: bytes, run: bytes, sequence: int, moment: bytes, kind: bytes, body: bytes) -> str:
    digest = hashlib.sha256()
    for part in (previous, run, str(sequence).encode(), moment, kind, body):
        digest.update(f"{len(part)}:".encode())
        digest.update(part)
    return digest.hexdigest()


Row = tuple[object, object, object, object, object, object]  # run, sequence, time, kind, body, hash: as SQLite gives them


def verified(run: str, rows: Iterable[Row], head: tuple[int, str] | None = None) -> Iterator[Stored]:
    """Events of a run's rows in order, each checked against the chain.

    Args:
        run: the run's id.
        rows: its rows in order of sequence, texts as bytes.
        head: number and hash of its last row, as they are kept beside the rows; None where they are not.

    Raises:
        JournalDamaged: at the first row that does not fit, or behind the last one where more are missing.
    """
    previous = b""
    expected = 0
    for expected, row in enumerate(rows, start=1):
        try:
            event = _checked(previous, expected, row)
        except (ValueError, FormatError) as error:
            raise _damaged(run, expected, str(error)) from error
        yield Stored(run=run, sequence=expected, time=text(row[2]), event=event)
        previous = text(row[5]).encode()
    if head is not None and head[0] > expected:
        raise _damaged(run, expected + 1, f"it and all up to {head[0]} are missing")
    if head is not None and head != (expected, previous.decode()):
        raise _damaged(run, min(expected, head[0]), "the hash beside the run is another one")


def _damaged(run: str, sequence: int, what: str) -> JournalDamaged:
    line = f"run {run} is damaged at event {sequence}: {what}. The events before it are intact."
    if sequence > 1:
        line += f" Go on from before it: k2 runs fork {run}@{sequence - 1}"
    return JournalDamaged(line, run=run, sequence=sequence)


def _checked(previous: bytes, expected: int, row: Row) -> Event:
    run, sequence, moment, kind, body, found = row
    if sequence != expected:
        raise ValueError(f"event {sequence!r} follows event {expected - 1}")
    if not (isinstance(run, bytes) and isinstance(moment, bytes) and isinstance(kind, bytes) and isinstance(body, bytes)):
        raise ValueError("a column has another type than text")
    if _row_hash(previous, run, expected, moment, kind, body).encode() != found:
        raise ValueError("its content does not fit its hash")
    event = event_from_json(json.loads(body))
    if event.kind.encode() != kind:
        raise ValueError("its kind is not its body's")
    return event


def text(value: object) -> str:
    """Text of a column read as bytes; bytes that are not UTF-8 become U+FFFD."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
