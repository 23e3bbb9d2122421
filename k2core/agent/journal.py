"""The journal: an append-only store of runs in one SQLite file.

Every event is a row (run, sequence, time, kind, body, hash). ``hash`` covers the row and the hash of the row before
it in the same run, so a changed, missing or reordered row is found when the run is opened; only the loss of the last
rows leaves no trace in the chain (such a run lacks its ``run.ended``).

Writing: `Journal.append` hands events to the one writer thread, which commits everything that waits in one transaction
and answers only when it is on disk (WAL with ``synchronous=FULL``: each commit syncs the log). Several processes may
write to one file, even to one run. Reading opens a connection of its own each time and never waits for the writer.

A full disk, a lock that is held too long or a file that turned read-only fails the appends concerned with one
`JournalError` line; whatever was acknowledged before stays.
"""

import asyncio
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from attrs import define, field, frozen

from k2core.agent.journal_chain import canonical_json, row_hash, verified
from k2core.agent.journal_file import JournalFile, journal_errors
from k2core.agent.journal_runs import RunSummary, find_run, summaries
from k2core.errors import JournalError
from k2core.events import Event, Stored

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
GROUP_LIMIT = 512  # appends that share one commit at most


@frozen(kw_only=True, eq=False)
class _Append:
    """Work for the writer thread."""

    run: str
    bodies: tuple[tuple[str, str], ...]  # (kind, canonical JSON)
    done: "Future[list[tuple[int, str]]]" = field(factory=Future)  # (sequence, time) of each


@define(kw_only=True, eq=False)
class Journal:
    """The store of runs; make one with `Journal.open`. Usable from any thread; close it when done.

    Attributes:
        path: the file; made with its folder on the first append.
    """

    path: Path
    _file: JournalFile
    _queue: "queue.SimpleQueue[_Append | None]" = field(factory=queue.SimpleQueue, init=False)
    _writer: threading.Thread | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _closed: bool = field(default=False, init=False)
    _last_id: int = field(default=0, init=False)

    @classmethod
    def open(
        cls,
        path: Path | str | None = None,
        create: bool = True,
        *,
        busy_timeout_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> "Journal":
        """The journal in *path*.

        Args:
            path: the file; ``runs.sqlite`` in the user's data folder by default.
            create: whether a file that does not exist is fine; it is made on the first append.
            busy_timeout_s: how long to wait for another process's lock.
            max_bytes: size at which this journal refuses to grow further; None is the disk's own limit.

        Raises:
            JournalVersionError: a newer k2core wrote the file.
            JournalError: the file is missing (without *create*), is not a journal, or cannot be opened.
        """
        chosen = default_path() if path is None else Path(path)
        file = JournalFile(path=chosen, busy_timeout_s=busy_timeout_s, max_bytes=max_bytes)
        if chosen.is_dir():
            raise JournalError(f"cannot open the journal {chosen}: it is a folder. Give a file with --store.")
        if file.exists():
            with file.reading():
                pass
        elif not create:
            raise JournalError(f"cannot open the journal {chosen}: there is no such file. Give another with --store.")
        return cls(path=chosen, file=file)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_run(self) -> str:
        """A new run's id, e.g. ``261124-002639-x7qab2``: UTC date and time, then milliseconds and chance.

        Ids sort by time; those of one journal object are strictly ascending. Nothing is written until the run's first
        event is appended.
        """
        with self._lock:
            now = (time.time_ns() // 1_000_000 << 20) | secrets.randbits(20)
            self._last_id = now = max(now, self._last_id + 1)
        milliseconds = now >> 20
        stamp = datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%y%m%d-%H%M%S")
        tail = (milliseconds % 1000) << 20 | now & 0xFFFFF
        return f"{stamp}-" + "".join(ALPHABET[tail >> shift & 31] for shift in (25, 20, 15, 10, 5, 0))

    async def append(self, run: str, *events: Event) -> list[Stored]:
        """Store *events* at the end of *run*, all or none; they are on disk when this returns.

        Cancelling the caller does not take the events back: they are stored, or not, as a whole.

        Raises:
            JournalError: they could not be stored; nothing of them is in the file.
        """
        return _stored(run, events, await asyncio.wrap_future(self._submit(run, events)))

    def write(self, run: str, *events: Event) -> list[Stored]:
        """`append` for callers without an event loop."""
        return _stored(run, events, self._submit(run, events).result())

    def _submit(self, run: str, events: Sequence[Event]) -> "Future[list[tuple[int, str]]]":
        work = _Append(run=run, bodies=tuple((event.kind, canonical_json(event.to_json())) for event in events))
        work.done.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only awaited
        with self._lock:
            if self._closed:
                raise JournalError(f"cannot write to the journal {self.path}: it is closed. Open it again.")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="k2core-journal", daemon=True)
                self._writer.start()
            self._queue.put(work)
        return work.done

    def _write(self) -> None:
        connection: sqlite3.Connection | None = None
        stop = False
        while not stop:
            group: list[_Append] = []
            item = self._queue.get()
            while True:
                if item is None:
                    stop = True
                    break
                group.append(item)
                if len(group) == GROUP_LIMIT:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            connection = self._commit(connection, group) if group else connection
        if connection is not None:
            connection.close()

    def _commit(self, connection: sqlite3.Connection | None, group: list[_Append]) -> sqlite3.Connection | None:
        """Commit a group; if that fails, each of its appends on its own, so that only those concerned fail."""
        try:
            if connection is None:
                connection = self._file.writing()
            places = self._insert(connection, group)
        except Exception as error:  # carried over to the waiting callers
            if connection is not None and len(group) > 1:
                for single in group:
                    connection = self._commit(connection, [single])
                return connection
            for work in group:
                work.done.set_exception(error)
            if connection is not None:  # the next append starts afresh: the file may have been replaced
                connection.close()
            return None
        for work, place in zip(group, places, strict=True):
            work.done.set_result(place)
        return connection

    def _insert(self, connection: sqlite3.Connection, group: list[_Append]) -> list[list[tuple[int, str]]]:
        places = []
        with journal_errors(self.path, "write to"):
            connection.execute("BEGIN IMMEDIATE")
            try:
                moment = _now()
                for work in group:
                    last = connection.execute(
                        "SELECT sequence, hash FROM events WHERE run = ? ORDER BY sequence DESC LIMIT 1", (work.run,)
                    ).fetchone()
                    sequence, chain = last if last is not None else (0, "")
                    place = []
                    for kind, body in work.bodies:
                        sequence += 1
                        row = (work.run, sequence, moment, kind, body)
                        chain = row_hash(chain, *row)
                        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", (*row, chain))
                        place.append((sequence, moment))
                    places.append(place)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return places

    def close(self) -> None:
        """Write what still waits, then stop the writer. Closing twice is fine."""
        with self._lock:
            self._closed = True
            writer, self._writer = self._writer, None
            if writer is not None:
                self._queue.put(None)
        if writer is not None:
            writer.join()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def events(self, run: str) -> list[Stored]:
        """All events of a run, its chain verified.

        Args:
            run: an id, the beginning of one, or ``last``.

        Raises:
            UnknownName, InputError: see `find_run`.
            JournalDamaged: a row does not fit; names the first.
        """
        run = self.find_run(run)
        with self._rows() as connection:
            rows = connection.execute(
                "SELECT run, sequence, time, kind, body, hash FROM events WHERE run = ? ORDER BY sequence", (run,)
            ).fetchall()
        return list(verified(run, rows))

    def find_run(self, name: str) -> str:
        """The id that *name* stands for.

        Args:
            name: an id, the beginning of exactly one id, or ``last`` for the run that began last.

        Raises:
            UnknownName: no such run; lists the nearest ids, or the newest.
            InputError: several ids begin so.
        """
        with self._rows() as connection:
            return find_run(connection, name, self.path)

    def runs(self, limit: int = 20) -> list[RunSummary]:
        """The newest runs, newest first; chains are not verified here."""
        with self._rows() as connection:
            return summaries(connection, limit)

    @contextmanager
    def _rows(self) -> Iterator[sqlite3.Connection]:
        with self._file.reading() as connection, journal_errors(self.path, "read"):
            connection.text_factory = bytes  # a damaged text need not be UTF-8
            yield connection


def _stored(run: str, events: Sequence[Event], places: list[tuple[int, str]]) -> list[Stored]:
    return [
        Stored(run=run, sequence=sequence, time=moment, event=event)
        for event, (sequence, moment) in zip(events, places, strict=True)
    ]


def default_path() -> Path:
    """``runs.sqlite`` in k2core's folder for data of this user."""
    import platformdirs

    return Path(platformdirs.user_data_dir("k2core", appauthor=False)) / "runs.sqlite"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
