"""The journal: an append-only store of runs in one SQLite file.

Every event is a row (run, sequence, time, kind, body, hash). ``hash`` covers the row and the hash of the row before it in the
same run, and the hash of the last row stands beside the rows once more: a changed, missing or reordered row is found when the
run is opened.

Writing: `Journal.append` hands events to the one writer thread, which commits everything that waits in one transaction and
answers only when it is on disk (WAL with ``synchronous=FULL``: each commit syncs the log). Several processes may write to one
file, and one at a time to a run (`Journal.take`). Reading opens a connection of its own each time and never waits for the
writer.

A full disk, a lock that is held too long or a file that turned read-only fails the appends concerned with one
`JournalError` line; whatever was acknowledged before stays.
"""

import asyncio
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from attrs import define, field

from k2core.agent.journal_chain import canonical_json, text, verified
from k2core.agent.journal_file import JournalFile, at_once, journal_errors
from k2core.agent.journal_runs import RunSummary, find_run, summaries
from k2core.agent.journal_writer import Append, JournalWriter, Place, Release, Take, Wish
from k2core.agent.lease import LEASE_S, Lease
from k2core.errors import JournalDamaged, JournalError
from k2core.events import Event, Stored

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


@define(kw_only=True, eq=False)
class Journal:
    """The store of runs; make one with `Journal.open`. Usable from any thread; close it when done.

    Attributes:
        path: the file; made with its folder on the first append.
    """

    path: Path
    _file: JournalFile
    _writer: JournalWriter
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _last_id: int = field(default=0, init=False)

    @classmethod
    def open(
        cls,
        path: Path | str | None = None,
        create: bool = True,
        *,
        busy_timeout_s: float = 10.0,
        max_bytes: int | None = None,
        lease_s: float = LEASE_S,
    ) -> "Journal":
        """The journal in *path*.

        Args:
            path: the file; ``runs.sqlite`` in the user's data folder by default.
            create: whether a file that does not exist is fine; it is made on the first append.
            busy_timeout_s: how long to wait for another process's lock.
            max_bytes: size at which this journal refuses to grow further; None is the disk's own limit.
            lease_s: seconds without a sign of life after which others may take over a run that is taken here.

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
        return cls(path=chosen, file=file, writer=JournalWriter(file=file, lease_s=lease_s))

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

    async def append(self, run: str, *events: Event, lease: Lease | None = None) -> list[Stored]:
        """Store *events* at the end of *run*, all or none; they are on disk when this returns.

        Cancelling the caller does not take the events back: they are stored, or not, as a whole.

        Args:
            run: a run's id.
            events: what happened.
            lease: from `take`; None writes only while nobody has taken the run.

        Raises:
            RunLost: somebody else took the run over.
            RunBusy: somebody has taken it, and no lease is given.
            JournalError: they could not be stored; nothing of them is in the file.
        """
        return _stored(run, events, await asyncio.wrap_future(self._submit(run, events, lease)))

    def write(self, run: str, *events: Event, lease: Lease | None = None) -> list[Stored]:
        """`append` for callers without an event loop."""
        return _stored(run, events, self._submit(run, events, lease).result())

    async def copy(self, events: Sequence[Stored], run: str, *more: Event) -> list[Stored]:
        """Begin *run* with *events* of another one, at the times that they have, and *more* behind them, all or none.

        Args:
            events: as they were read.
            run: a new run's id, from `start_run`.
            more: happens now.

        Raises:
            JournalError: they could not be stored; nothing of them is in the file.
        """
        copied, times = [one.event for one in events], tuple(one.time for one in events)
        every = (*copied, *more)
        return _stored(run, every, await asyncio.wrap_future(self._submit(run, every, None, times)))

    def _submit(
        self, run: str, events: Sequence[Event], lease: Lease | None, times: tuple[str, ...] = ()
    ) -> "Future[list[Place]]":
        bodies = tuple((event.kind, canonical_json(event.to_json())) for event in events)
        job = Append(run=run, bodies=bodies, times=times, fence=None if lease is None else lease.fence)
        self._writer.submit(job)
        return job.done

    async def take(self, run: str) -> Lease:
        """Become the one that writes to *run*, until `release` or until somebody else takes it over.

        Others can take it over when this process is gone, or shows no sign of life for the lease's time.

        Raises:
            RunBusy: somebody else has it, or this journal already.
            JournalError: the journal cannot be written to.
        """
        job = Take(run=run)
        self._writer.submit(job)
        return await asyncio.wrap_future(job.done)

    async def confirm(self, lease: Lease) -> None:
        """Make sure that the run is still ours, where this process may have slept since it last wrote under *lease*.

        Raises:
            RunLost: somebody else took the run over.
        """
        if self._writer.may_be_lost(lease):
            job = Append(run=lease.run, bodies=(), fence=lease.fence)
            self._writer.submit(job)
            await asyncio.wrap_future(job.done)

    async def release(self, lease: Lease) -> None:
        """Give a lease back; nothing is to be written under it any more."""
        job = Release(lease=lease)
        self._writer.submit(job)
        await asyncio.wrap_future(job.done)

    async def ask_for(self, run: str, limits: Mapping[str, float | None]) -> int:
        """Ask whoever works on *run* for other budgets; heard at its next step, or when it goes on.

        Args:
            run: a run's id.
            limits: by name, those that shall be others; see `Limits.changed`.

        Returns:
            The wish's number.

        Raises:
            JournalError: it could not be stored.
        """
        job = Wish(run=run, body=canonical_json({"limits": dict(limits)}))
        self._writer.submit(job)
        return await asyncio.wrap_future(job.done)

    def asked_for(self, run: str, after: int = 0) -> list[tuple[int, dict[str, float | None]]]:
        """Budgets that were asked for, with the wishes' numbers, behind number *after*; what makes no sense is left out."""
        with self._rows() as connection:
            found = self._file.wishes(connection, run, after)
        wishes = []
        for number, body in found:
            try:
                wishes.append((number, {str(name): value for name, value in json.loads(body)["limits"].items()}))
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
        return wishes

    def close(self) -> None:
        """Write what still waits, give the leases back, then stop the writer. Closing twice is fine."""
        self._writer.close()

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
        return self._events(self.find_run(run))

    def _events(self, run: str) -> list[Stored]:
        return list(self._verified(run))

    def _verified(self, run: str) -> Iterator[Stored]:
        with self._rows() as connection, at_once(connection):
            rows = connection.execute(
                "SELECT run, sequence, time, kind, body, hash FROM events WHERE run = ? ORDER BY sequence", (run,)
            ).fetchall()
            head = self._file.head(connection, run)
        return verified(run, rows, head)

    def sound(self, run: str) -> tuple[list[Stored], JournalDamaged | None]:
        """The events of a run up to the first that does not fit, and what is wrong with that one; None where all fit.

        Args:
            run: an id, the beginning of one, or ``last``.

        Raises:
            UnknownName, InputError: see `find_run`.
        """
        full, found = self.find_run(run), list[Stored]()
        try:
            for stored in self._verified(full):
                found.append(stored)
        except JournalDamaged as damage:
            return found, damage
        return found, None

    def hash_of(self, run: str, sequence: int) -> str:
        """The hash of an event of a run's id as it stands in the journal; empty where there is no such event."""
        with self._rows() as connection:
            row = connection.execute("SELECT hash FROM events WHERE run = ? AND sequence = ?", (run, sequence)).fetchone()
        return "" if row is None else text(row[0])

    def known(self, run: str) -> list[Stored]:
        """`events` of a run's id; none where the run has none yet."""
        return self._events(run)

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


def _stored(run: str, events: Sequence[Event], places: list[Place]) -> list[Stored]:
    return [
        Stored(run=run, sequence=sequence, time=moment, event=event)
        for event, (sequence, moment) in zip(events, places, strict=True)
    ]


def default_path() -> Path:
    """``runs.sqlite`` in k2core's folder for data of this user."""
    import platformdirs

    return Path(platformdirs.user_data_dir("k2core", appauthor=False)) / "runs.sqlite"
