"""What the journal says, and what it keeps, when its file or its disk is no good."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys

import pytest
from journal.writing import append

from k2core.agent.journal import Journal
from k2core.agent.journal_file import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, JournalFile
from k2core.errors import FormatError, JournalError, JournalVersionError
from k2core.events import NoteKept, UnknownEvent


@pytest.fixture
def path(tmp_path):
    """Where the journal is to be."""
    return tmp_path / "runs.sqlite"


def written(path, text="kept"):
    """A closed journal with one event."""
    with Journal.open(path) as journal:
        append(journal, "run", NoteKept(text=text))


def execute(path, statement):
    """Run one statement on the file from outside."""
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def one_line(error):
    """The error's text, which must be one line that names a remedy."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_missing_file_without_create(path):
    """A file that must exist and does not is named."""
    with pytest.raises(JournalError) as error:
        Journal.open(path, create=False)

    assert one_line(error) == f"cannot open the journal {path}: there is no such file. Give another with --store."


@pytest.mark.parametrize("content", [b"not a database at all, only text\n" * 100, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_not_sqlite(path, content):
    """A file that is not SQLite is refused, and untouched."""
    path.write_bytes(content)

    with pytest.raises(JournalError, match="not a SQLite file") as error:
        Journal.open(path)

    one_line(error)
    assert path.read_bytes() == content


def test_folder_instead_of_file(tmp_path):
    """A folder is not a journal."""
    with pytest.raises(JournalError, match="it is a folder") as error:
        Journal.open(tmp_path)

    one_line(error)


def test_empty_file_becomes_a_journal(path):
    """A file of no bytes is as good as none."""
    path.touch()

    with Journal.open(path) as journal:
        assert journal.runs() == []
        append(journal, "run", NoteKept(text="x"))
        assert len(journal.events("run")) == 1


def test_another_programs_database(path):
    """Another program's SQLite file is refused, and gets no tables of ours."""
    execute(path, "CREATE TABLE theirs (a)")

    with pytest.raises(JournalError, match="of another program") as error:
        Journal.open(path)

    one_line(error)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()


def test_newer_version(path):
    """A newer format is refused with both versions, for reading and for writing."""
    written(path)
    with Journal.open(path) as journal:
        execute(path, f"PRAGMA user_version = {SCHEMA_VERSION + 6}")

        with pytest.raises(JournalVersionError) as reading:
            journal.events("run")
        with pytest.raises(JournalVersionError) as writing:
            append(journal, "run", NoteKept(text="x"))
    with pytest.raises(JournalVersionError) as opening:
        Journal.open(path)

    for error in (reading, writing, opening):
        assert f"version {SCHEMA_VERSION + 6}, this k2core knows up to version {SCHEMA_VERSION}" in one_line(error)


def test_version_and_application_are_in_the_file(path):
    """The file says what it is."""
    written(path)

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_full_disk_keeps_everything_before(path):
    """When the store cannot grow, the append that does not fit fails alone; what was before stays, smaller ones go on."""
    with Journal.open(path, max_bytes=200_000) as journal:
        append(journal, "run", NoteKept(text="first"))

        with pytest.raises(JournalError, match="the disk is full") as error:
            append(journal, "run", NoteKept(text="small"), NoteKept(text="x" * 300_000))

        assert one_line(error).startswith(f"cannot write to the journal {path}")
        assert [one.event.text for one in journal.events("run")] == ["first"]
        assert append(journal, "run", NoteKept(text="second"))[0].sequence == 2
    assert [one.event.text for one in Journal.open(path).events("run")] == ["first", "second"]


def test_in_a_group_only_the_append_that_does_not_fit_fails(path):
    """An append too large for the disk does not take down others of the same commit."""

    async def main(journal):
        texts = ["a", "b", "x" * 400_000, "c", "d"]
        tasks = [journal.append(f"run-{number}", NoteKept(text=text)) for number, text in enumerate(texts)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Journal.open(path, max_bytes=200_000) as journal:
        results = asyncio.run(main(journal))

        assert [isinstance(one, JournalError) for one in results] == [False, False, True, False, False]
        assert len(journal.runs()) == 4


LIMITED = """
import resource, signal, sys
from journal.writing import append
from k2core.agent.journal import Journal
from k2core.errors import JournalError
from k2core.events import NoteKept
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal.open(sys.argv[1]) as journal:
    append(journal, "run", NoteKept(text="first"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        for _ in range(100):
            append(journal, "run", NoteKept(text="x" * 10_000))
    except JournalError as error:
        print(error)
"""


def test_operating_system_refuses_to_write(path):
    """A write that the operating system refuses is one line; the file stays sound."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    assert resource.RLIMIT_FSIZE  # the limit exists here
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write to the journal {path}: the disk ")
    assert done.stdout.count("\n") == 1
    kept = Journal.open(path).events("run")
    assert kept[0].event == NoteKept(text="first")
    assert all(one.event.text == "x" * 10_000 for one in kept[1:])
    assert 0 < len(kept) < 100


def test_locked_by_another_program(path):
    """A lock held too long is one line; afterwards the same journal writes on."""
    written(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Journal.open(path, busy_timeout_s=0.1) as journal:
        with pytest.raises(JournalError, match="another program holds its lock") as error:
            append(journal, "run", NoteKept(text="x"))
        one_line(error)
        assert len(journal.events("run")) == 1  # reading goes on meanwhile

        holder.execute("ROLLBACK")
        holder.close()

        assert append(journal, "run", NoteKept(text="y"))[0].sequence == 2


def test_file_turned_read_only(path, monkeypatch):
    """A journal that may not be written says so."""
    written(path)
    connect = sqlite3.connect

    def read_only(name, **options):
        return connect(f"{path.as_uri()}?mode=ro", uri=True, **{key: value for key, value in options.items() if key != "uri"})

    with Journal.open(path) as journal:
        monkeypatch.setattr(sqlite3, "connect", read_only)  # file modes mean nothing to root

        with pytest.raises(JournalError, match="it is read-only") as error:
            append(journal, "run", NoteKept(text="x"))

        one_line(error)
        assert len(journal.events("run")) == 1


def test_folder_that_cannot_be_made(tmp_path):
    """A file in the way of the folder is named."""
    (tmp_path / "file").touch()
    journal = Journal.open(tmp_path / "file" / "runs.sqlite")
    with journal, pytest.raises(JournalError, match="cannot make the folder") as error:
        append(journal, "run", NoteKept(text="x"))

    one_line(error)


def test_damaged_pages(path):
    """A file whose pages are overwritten is one line, never rows of nonsense."""
    with Journal.open(path) as journal:
        append(journal, "run", *[NoteKept(text=f"{n}" * 500) for n in range(100)])
    raw = bytearray(path.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    path.write_bytes(raw)

    with pytest.raises(JournalError) as error:
        Journal.open(path).events("run")

    one_line(error)


def test_closed_journal(path):
    """A closed journal refuses to write, still reads, and closes twice."""
    journal = Journal.open(path)
    append(journal, "run", NoteKept(text="x"))
    journal.close()
    journal.close()

    with pytest.raises(JournalError, match="it is closed"):
        append(journal, "run", NoteKept(text="y"))
    assert len(journal.events("run")) == 1


def test_close_writes_what_waits(path):
    """Appends that wait when the journal closes are stored."""

    async def main():
        journal = Journal.open(path)
        tasks = [asyncio.ensure_future(journal.append("run", NoteKept(text=str(n)))) for n in range(50)]
        await asyncio.sleep(0)
        journal.close()
        await asyncio.gather(*tasks)

    asyncio.run(main())

    assert [one.event.text for one in Journal.open(path).events("run")] == [str(n) for n in range(50)]


def test_what_json_cannot_say_is_refused(path):
    """An event that JSON has no form for is refused before anything is written."""
    with Journal.open(path) as journal, pytest.raises(FormatError, match="cannot write an event as JSON"):
        append(journal, "run", NoteKept(text="x"), UnknownEvent(kind="x", body={"kind": "x", "value": float("nan")}))

    assert not path.exists()


def test_a_file_that_another_process_is_making_is_not_a_foreign_one(tmp_path):
    """Whenever the schema appears while the file is looked at, it is seen as a whole or not at all."""
    path = tmp_path / "r.sqlite"
    for moment in range(1, 6):
        path.unlink(missing_ok=True)
        file = JournalFile(path=path, busy_timeout_s=0.0, max_bytes=None)
        statements = 0

        def other_process(_statement, moment=moment):
            nonlocal statements
            statements += 1
            if statements == moment:
                with sqlite3.connect(path, timeout=0.0) as other:
                    try:
                        other.executescript(f"BEGIN IMMEDIATE;{SCHEMA};COMMIT")
                    except sqlite3.OperationalError:
                        other.rollback()  # it has to wait for us
                other.close()

        connection = sqlite3.connect(path, timeout=0.0, isolation_level=None)
        connection.set_trace_callback(other_process)
        assert file.check(connection) in (True, False)
        connection.close()
        assert statements > 1
