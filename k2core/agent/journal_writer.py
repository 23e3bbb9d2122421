"""The journal's one writer: a thread that commits everything that waits in one transaction, under the leases of its runs.

With every write the run's head (number and hash of its last event) is written too, so that lost last rows are noticed.
"""

import itertools
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime

from attrs import define, field, frozen

from k2core.agent.journal_chain import row_hash
from k2core.agent.journal_file import JournalFile, journal_errors
from k2core.agent.lease import Lease, Owner
from k2core.errors import JournalError, RunBusy, RunLost

GROUP_LIMIT = 512  # jobs that share one commit at most
RENEWALS = 3  # of a lease, within its time

Place = tuple[int, str]  # sequence and time of a stored event


@frozen(kw_only=True, eq=False)
class Append:
    """Events for the end of a run: (kind, canonical JSON) each. Done with their places.

    Attributes:
        times: of the first ones, which are copies; the others happen now.
    """

    run: str
    bodies: tuple[tuple[str, str], ...]
    times: tuple[str, ...] = ()
    fence: int | None = None
    done: "Future[list[Place]]" = field(factory=Future)


@frozen(kw_only=True, eq=False)
class Take:
    """The lease of a run is wanted. Done with it."""

    run: str
    done: "Future[Lease]" = field(factory=Future)


@frozen(kw_only=True, eq=False)
class Release:
    """A lease is given back. Done when that is durable; a lease that was lost is none of ours."""

    lease: Lease
    done: "Future[None]" = field(factory=Future)


@frozen(kw_only=True, eq=False)
class Wish:
    """Something is wanted of a run's owner: canonical JSON. Done with its number."""

    run: str
    body: str
    done: "Future[int]" = field(factory=Future)


Job = Append | Take | Release | Wish


@define(kw_only=True, eq=False)
class JournalWriter:
    """The thread, started with the first job.

    Attributes:
        file: where to write.
        lease_s: seconds after which a lease lapses that is not renewed.
    """

    file: JournalFile
    lease_s: float
    held: dict[str, Lease] = field(factory=dict, init=False)
    _queue: "queue.SimpleQueue[Job | None]" = field(factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _closed: bool = field(default=False, init=False)
    _renewed: float = field(default=0.0, init=False)
    _sure: dict[str, float] = field(factory=dict, init=False)  # when a run was certainly still ours

    def submit(self, job: Job) -> None:
        """Hand a job over; from here on it cannot be cancelled, only awaited.

        Raises:
            JournalError: the journal is closed.
        """
        job.done.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise JournalError(f"cannot write to the journal {self.file.path}: it is closed. Open it again.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="k2core-journal", daemon=True)
                self._thread.start()
            self._queue.put(job)

    def may_be_lost(self, lease: Lease) -> bool:
        """Whether it is too long since the lease was certainly ours; at once True where it is known to be lost."""
        return lease.lost.is_set() or time.monotonic() - self._sure.get(lease.run, 0.0) > self.lease_s / 2

    def close(self) -> None:
        """Write what still waits, give the leases back, then stop. Closing twice is fine."""
        for lease in list(self.held.values()):
            try:
                self.submit(Release(lease=lease))
            except JournalError:
                break
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        going_on = True
        while going_on:
            group, going_on = self._next_group()
            if group or self._is_renewal_due():
                connection = self._commit(connection, group)
        if connection is not None:
            connection.close()

    def _next_group(self) -> tuple[list[Job], bool]:
        """What waits, at most `GROUP_LIMIT` jobs, and whether more may come; nothing where a lease is to be renewed first."""
        group: list[Job] = []
        try:
            item = self._queue.get(timeout=self.lease_s / RENEWALS if self.held else None)
            while item is not None:
                group.append(item)
                if len(group) == GROUP_LIMIT:
                    return group, True
                item = self._queue.get_nowait()
        except queue.Empty:
            return group, True
        return group, False

    def _is_renewal_due(self) -> bool:
        return bool(self.held) and time.monotonic() - self._renewed >= self.lease_s / RENEWALS

    def _commit(self, connection: sqlite3.Connection | None, group: list[Job]) -> sqlite3.Connection | None:
        """Commit a group; if that fails, each of its jobs on its own, so that only those concerned fail."""
        results: list[object]
        try:
            if connection is None:
                connection = self.file.writing()
            results = self._write(connection, group)
        except Exception as error:  # carried over to the waiting callers
            if connection is not None and len(group) > 1:
                for single in group:
                    connection = self._commit(connection, [single])
                return connection
            for job in group:
                job.done.set_exception(error)
            if connection is not None and not isinstance(error, RunBusy | RunLost):
                connection.close()  # the next job starts afresh: the file may have been replaced
                return None
            return connection
        for job, result in zip(group, results, strict=True):
            job.done.set_result(result)  # type: ignore[arg-type]
        return connection

    def _write(self, connection: sqlite3.Connection, group: list[Job]) -> list[object]:
        """One transaction; what each job is done with."""
        taken: list[Lease] = []
        given: list[Lease] = []
        results: list[object] = []
        with journal_errors(self.file.path, "write to"):
            connection.execute("BEGIN IMMEDIATE")
            try:
                moment = now()
                if renewed := self._is_renewal_due():
                    self._renew(connection)
                for job in group:
                    if isinstance(job, Append):
                        results.append(self._append(connection, job, moment))
                    elif isinstance(job, Take):
                        lease = self._take(connection, job.run)
                        taken.append(lease)
                        results.append(lease)
                    elif isinstance(job, Wish):
                        cursor = connection.execute("INSERT INTO wishes (run, body) VALUES (?, ?)", (job.run, job.body))
                        results.append(cursor.lastrowid)
                    else:
                        self._release(connection, job.lease)
                        results.append(None)
                        given.append(job.lease)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        if renewed or taken:
            self._renewed = time.monotonic()
        for lease in taken:
            self.held[lease.run] = lease
        for lease in given:
            if self.held.get(lease.run) == lease:
                del self.held[lease.run]
                self._sure.pop(lease.run, None)
        return results

    def _append(self, connection: sqlite3.Connection, job: Append, moment: str) -> list[Place]:
        last = connection.execute(
            "SELECT sequence, hash FROM events WHERE run = ? ORDER BY sequence DESC LIMIT 1", (job.run,)
        ).fetchone()
        sequence, chain = last if last is not None else (0, "")
        self._see_lease(connection, job)
        places: list[Place] = []
        if not job.bodies:
            return places
        for (kind, body), time_of in zip(job.bodies, itertools.chain(job.times, itertools.repeat(moment)), strict=False):
            sequence += 1
            row = (job.run, sequence, time_of, kind, body)
            chain = row_hash(chain, *row)
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", (*row, chain))
            places.append((sequence, time_of))
        connection.execute(
            "INSERT INTO runs (run, sequence, hash) VALUES (?, ?, ?) "
            "ON CONFLICT (run) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash",
            (job.run, sequence, chain),
        )
        return places

    def _see_lease(self, connection: sqlite3.Connection, job: Append) -> None:
        """Whether the run may be written to: under the newest lease, or under none while nobody has one."""
        row = connection.execute("SELECT fence, owner, until FROM runs WHERE run = ?", (job.run,)).fetchone()
        fence, owner, until = row if row is not None else (0, None, None)
        if job.fence is not None and job.fence != fence:
            self._lose(job.run)
            raise RunLost(
                f"cannot write to run {job.run}: {_owner(owner)} took it over, since this one gave no sign of life for "
                f"{self.lease_s:g} s. What was written before is safe.",
                run=job.run,
            )
        if job.fence is None and owner is not None and not self._is_free(owner, until):
            raise _busy(job.run, owner)
        if job.fence is not None:
            self._sure[job.run] = time.monotonic()

    def _take(self, connection: sqlite3.Connection, run: str) -> Lease:
        row = connection.execute("SELECT fence, owner, until FROM runs WHERE run = ?", (run,)).fetchone()
        fence, owner, until = row if row is not None else (0, None, None)
        if run in self.held or (owner is not None and not self._is_free(owner, until)):
            raise _busy(run, owner)
        connection.execute(
            "INSERT INTO runs (run, fence, owner, until) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (run) DO UPDATE SET fence = excluded.fence, owner = excluded.owner, until = excluded.until",
            (run, fence + 1, Owner.here().to_json(), time.time() + self.lease_s),
        )
        return Lease(run=run, fence=fence + 1)

    def _release(self, connection: sqlite3.Connection, lease: Lease) -> None:
        connection.execute("UPDATE runs SET owner = NULL, until = NULL WHERE run = ? AND fence = ?", (lease.run, lease.fence))

    def _renew(self, connection: sqlite3.Connection) -> None:
        until = time.time() + self.lease_s
        for lease in list(self.held.values()):
            renewed = connection.execute(
                "UPDATE runs SET until = ? WHERE run = ? AND fence = ?", (until, lease.run, lease.fence)
            )
            if not renewed.rowcount:
                self._lose(lease.run)
            else:
                self._sure[lease.run] = time.monotonic()

    def _lose(self, run: str) -> None:
        lease = self.held.pop(run, None)
        if lease is not None:
            lease.lost.set()

    @staticmethod
    def _is_free(owner: str, until: float | None) -> bool:
        return until is None or time.time() >= until or Owner.from_json(owner).is_gone()


def now() -> str:
    """UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _owner(owner: str | None) -> str:
    return "another process" if owner is None else str(Owner.from_json(owner))


def _busy(run: str, owner: str | None) -> RunBusy:
    return RunBusy(f"run {run} is being worked on by {_owner(owner)}. Wait for its end, or end it, and try again.", run=run)
