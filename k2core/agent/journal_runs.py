"""What the journal knows of its runs: their summaries, and which one a short name stands for.

Connections here give texts as bytes, since a damaged text need not be UTF-8.
"""

import difflib
import json
import sqlite3
from pathlib import Path

from attrs import frozen

from k2core.agent.journal_chain import text
from k2core.errors import FormatError, InputError, UnknownName
from k2core.events import MessageAdded, RunEnded, RunForked, RunResumed, RunStarted, TurnEnded, event_from_json


@frozen(kw_only=True)
class RunSummary:
    """One line of a list of runs.

    Attributes:
        run: its id.
        started: time of its first event, of a fork that of its ``run.forked``, as in `Stored.time`.
        question: the user's text.
        status: of the last ``run.ended``; ``unfinished`` while its last question has none; ``damaged`` when a row cannot be
            read.
        model: the model's name.
        backend: the backend's name; empty for a model without one.
        calls: tool calls begun.
        tokens: tokens generated.
    """

    run: str
    started: str
    question: str
    status: str
    model: str
    backend: str
    calls: int
    tokens: int


def find_run(connection: sqlite3.Connection, name: str, path: Path) -> str:
    """The full id that *name* stands for: an id, the beginning of exactly one, or ``last`` for the run begun last.

    Raises:
        UnknownName: no such run in *path*; lists the nearest ids, or the newest.
        InputError: several ids begin so.
    """
    rows = connection.execute("SELECT run FROM events WHERE sequence = 1 ORDER BY rowid")
    ids = [text(row[0]) for row in rows]
    if name == "last" and ids:
        return ids[-1]
    if name in ids:
        return name
    fitting = [run for run in ids if name and run.startswith(name)]
    if len(fitting) > 1:
        newest = ", ".join(reversed(fitting[-3:]))
        raise InputError(f"run '{name}' fits {len(fitting)} runs, the newest are {newest}. Give more of the id.")
    if not fitting:
        near = difflib.get_close_matches(name, ids, n=3, cutoff=0.6) or ids[-3:]
        raise UnknownName("run", name, near, f"({len(ids)} runs in {path})")
    return fitting[0]


def summaries(connection: sqlite3.Connection, limit: int) -> list[RunSummary]:
    """The newest *limit* runs, newest first."""
    firsts = connection.execute(
        "SELECT run, time, body FROM events WHERE sequence = 1 ORDER BY rowid DESC LIMIT ?", (limit,)
    ).fetchall()
    return [_summary(connection, text(run), text(time), body) for run, time, body in firsts]


def _summary(connection: sqlite3.Connection, run: str, started: str, first: bytes) -> RunSummary:
    query = "SELECT count(*) FROM events WHERE run = ? AND kind = 'tool.intent'"
    (calls,) = connection.execute(query, (run,)).fetchone()
    query = (
        "SELECT time, body FROM events WHERE run = ? "
        "AND kind IN ('turn', 'run.ended', 'run.resumed', 'run.forked', 'message') ORDER BY sequence"
    )
    question, model, status, tokens = "", dict[str, str](), "unfinished", 0
    try:
        start = event_from_json(json.loads(first))
        if isinstance(start, RunStarted):
            question, model = start.question, dict(start.model)
        for time, body in connection.execute(query, (run,)):
            event = event_from_json(json.loads(body))
            if isinstance(event, TurnEnded):
                tokens += event.usage.completion_tokens
            elif isinstance(event, RunEnded):
                status = event.status
            elif isinstance(event, RunResumed) or (isinstance(event, MessageAdded) and event.role == "user"):
                status = "unfinished"
            elif isinstance(event, RunForked):
                status, started = "unfinished", text(time)
    except (ValueError, FormatError):
        status = "damaged"
    return RunSummary(
        run=run,
        started=started,
        question=question,
        status=status,
        model=model.get("model", ""),
        backend=model.get("backend", ""),
        calls=calls,
        tokens=tokens,
    )
