"""The journal's SQLite file: its schema, its version, and SQLite's errors as one clear line each.

`events` holds what happened and never changes. `runs` holds, for each run, its head (number and hash of its last event) and its
lease (see `k2core.agent.lease`). `wishes` holds what others want of a run's owner.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from attrs import frozen

from k2core.agent.journal_chain import text
from k2core.errors import JournalError, JournalVersionError

SCHEMA_VERSION = 2  # PRAGMA user_version; raise it with every change that an older k2core would misread
APPLICATION_ID = 0x6B32636F  # "k2co": tells the file from another program's SQLite file

# A journal of version 1 has none of these; they are added before the first write.
RUNS = """
CREATE TABLE runs (
    run      TEXT    PRIMARY KEY,
    sequence INTEGER NOT NULL DEFAULT 0,
    hash     TEXT    NOT NULL DEFAULT '',
    fence    INTEGER NOT NULL DEFAULT 0,
    owner    TEXT,
    until    REAL
);
CREATE TABLE wishes (
    number INTEGER PRIMARY KEY,
    run    TEXT NOT NULL,
    body   TEXT NOT NULL
);
"""

# A run's rows are numbered from 1 without gaps. The insert trigger also stops INSERT OR REPLACE, which would otherwise
# delete a row without firing the delete trigger.
SCHEMA = f"""
CREATE TABLE events (
    run      TEXT    NOT NULL,
    sequence INTEGER NOT NULL,
    time     TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    body     TEXT    NOT NULL,
    hash     TEXT    NOT NULL,
    PRIMARY KEY (run, sequence)
);
CREATE INDEX first_events ON events (run) WHERE sequence = 1;
CREATE TRIGGER events_never_change BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER events_never_go BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER events_follow_each_other BEFORE INSERT ON events
    WHEN NEW.sequence <> (SELECT coalesce(max(sequence), 0) + 1 FROM events WHERE run = NEW.run)
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
{RUNS}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

_REMEDIES = {  # primary result code -> (what is wrong, what to do)
    sqlite3.SQLITE_FULL: ("the disk is full", "Free space or give another place with --store."),
    sqlite3.SQLITE_READONLY: ("it is read-only", "Make it writable or give another place with --store."),
    sqlite3.SQLITE_BUSY: ("another program holds its lock", "Try again when that program is done."),
    sqlite3.SQLITE_LOCKED: ("another program holds its lock", "Try again when that program is done."),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "Check the folder's permissions or give another with --store."),
    sqlite3.SQLITE_NOTADB: ("it is not a SQLite file", "Give another with --store."),
    sqlite3.SQLITE_CORRUPT: ("the file is damaged", "Restore it from a copy or give another with --store."),
    sqlite3.SQLITE_IOERR: ("the disk does not take or give data", "Check the disk, its free space and its limits."),
    sqlite3.SQLITE_PERM: ("access is denied", "Check the permissions or give another with --store."),
}


@frozen(kw_only=True)
class JournalFile:
    """Where the journal is and how it is opened.

    Attributes:
        path: the file.
        busy_timeout_s: how long to wait for a lock.
        max_bytes: size at which it refuses to grow, or None.
    """

    path: Path
    busy_timeout_s: float
    max_bytes: int | None

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that cannot write, closed at the end; an empty store when the file does not exist yet.

        Raises:
            JournalError: see `check`.
        """
        with closing(self._connect_reading()) as connection:
            yield connection

    def _connect_reading(self) -> sqlite3.Connection:
        if self.exists():
            with journal_errors(self.path, "open"):
                name = f"{self.path.absolute().as_uri()}?mode=ro"
                connection = sqlite3.connect(name, uri=True, timeout=self.busy_timeout_s, isolation_level=None)
                try:
                    if self.check(connection):
                        return connection
                except BaseException:
                    connection.close()
                    raise
                connection.close()
        empty = sqlite3.connect(":memory:", isolation_level=None)
        empty.executescript(SCHEMA)
        return empty

    def writing(self) -> sqlite3.Connection:
        """A connection of the writer thread; makes the folder, the file and the schema where they are missing.

        Raises:
            JournalError: see `check`; or the folder cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise JournalError(
                f"cannot make the folder {self.path.parent} for the journal: {reason}. Give another place with --store."
            ) from error
        with journal_errors(self.path, "open"):
            connection = sqlite3.connect(self.path, timeout=self.busy_timeout_s, isolation_level=None)
            try:
                self.check(connection)
                self._use_wal(connection)
                connection.execute("PRAGMA synchronous = FULL")
                if self.max_bytes is not None:
                    (page,) = connection.execute("PRAGMA page_size").fetchone()
                    connection.execute(f"PRAGMA max_page_count = {max(1, self.max_bytes // page)}")
                connection.execute("BEGIN IMMEDIATE")
                missing = "" if self.check(connection) else SCHEMA
                if not missing and self._version(connection) < SCHEMA_VERSION:
                    missing = f"{RUNS}\nPRAGMA user_version = {SCHEMA_VERSION};"
                for statement in _statements(missing):
                    connection.execute(statement)
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
        return connection

    def check(self, connection: sqlite3.Connection) -> bool:
        """Whether the schema is there; False for a file without anything in it.

        Raises:
            JournalVersionError: a newer k2core wrote the file.
            JournalError: it is another program's SQLite file, or not a SQLite file at all.
        """
        with at_once(connection):  # another process may be writing the schema
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID:
            if application == 0 and version == 0 and tables == 0:
                return False
            raise JournalError(
                f"cannot open the journal {self.path}: it is a SQLite file of another program. Give another with --store."
            )
        if version > SCHEMA_VERSION:
            raise JournalVersionError(
                f"cannot open the journal {self.path}: its format is version {version}, this k2core knows up to "
                f"version {SCHEMA_VERSION}. Upgrade k2core or give another with --store."
            )
        return True

    def head(self, connection: sqlite3.Connection, run: str) -> tuple[int, str] | None:
        """Number and hash of the run's last event, as they stand beside the events; None where a version 1 wrote it alone."""
        if self._version(connection) < 2:
            return None
        row = connection.execute("SELECT sequence, hash FROM runs WHERE run = ?", (run,)).fetchone()
        if row is None or not isinstance(row[0], int) or not row[0]:
            return None
        return row[0], text(row[1])

    def wishes(self, connection: sqlite3.Connection, run: str, after: int) -> list[tuple[int, bytes]]:
        """Numbers and bodies of what is wanted of the run's owner, behind number *after*, in order."""
        if self._version(connection) < 2:
            return []
        query = "SELECT number, body FROM wishes WHERE run = ? AND number > ? ORDER BY number"
        return connection.execute(query, (run, after)).fetchall()

    @staticmethod
    def _version(connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # the first switch to WAL needs the file alone and does not wait for the busy timeout
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


@contextmanager
def at_once(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read inside is of one moment."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _statements(script: str) -> Iterator[str]:
    """Statements of a script one by one: executescript would commit the open transaction first."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def journal_errors(path: Path, verb: str) -> Iterator[None]:
    """Turn SQLite's errors into a `JournalError`: what was tried, what is wrong, what to do.

    Args:
        path: the journal's file.
        verb: what was tried, e.g. ``write to``.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        wrong, remedy = _REMEDIES.get(-1 if code is None else code & 0xFF, (str(error), "Give another with --store."))
        raise JournalError(f"cannot {verb} the journal {path}: {wrong}. {remedy}") from error
