"""The journal: what goes in comes out, in order, verified."""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal.strategies import any_event
from journal.writing import append

from k2core.agent.journal import Journal
from k2core.errors import InputError, JournalDamaged, UnknownName
from k2core.events import MessageAdded, NoteKept, RunEnded, RunResumed, RunStarted, ToolIntent, TurnEnded
from k2core.messages import Usage


@pytest.fixture
def journal(tmp_path):
    """A journal in a folder that does not exist yet."""
    with Journal.open(tmp_path / "new" / "runs.sqlite") as opened:
        yield opened


def notes(count):
    """So many different events."""
    return [NoteKept(text=f"note {number}") for number in range(count)]


@settings(deadline=None)
@given(st.lists(st.lists(any_event, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_events_round_trip(groups):
    """Whatever is appended is read back in order, numbered from 1 without gaps, also by another journal object."""
    with tempfile.TemporaryDirectory() as folder, Journal.open(Path(folder) / "r.sqlite") as journal:
        run = journal.start_run()

        stored = [one for group in groups for one in append(journal, run, *group)]

        assert [one.event for one in stored] == [event for group in groups for event in group]
        assert [one.sequence for one in stored] == list(range(1, len(stored) + 1))
        assert journal.events(run) == stored
        assert Journal.open(journal.path, create=False).events("last") == stored


@settings(deadline=None, max_examples=50)
@given(
    st.text(st.characters(), min_size=1, max_size=8).filter(lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text))
)
def test_text_that_is_not_unicode_is_kept(text):
    """Lone surrogates (from file names that are not UTF-8) survive storing."""
    with tempfile.TemporaryDirectory() as folder, Journal.open(Path(folder) / "r.sqlite") as journal:
        run = journal.start_run()

        append(journal, run, NoteKept(text=text))

        assert journal.events(run)[0].event == NoteKept(text=text)


def test_run_ids_sort_by_time_and_differ(journal):
    """Ids are short, readable, and strictly ascending even within a millisecond."""
    ids = [journal.start_run() for _ in range(2000)]

    assert all(re.fullmatch(r"\d{6}-\d{6}-[0-9a-z]{6}", one) for one in ids)
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


def test_nothing_is_made_before_the_first_append(tmp_path):
    """Opening and reading leave no trace on the disk."""
    with Journal.open(tmp_path / "a" / "b.sqlite") as journal:
        assert journal.runs() == []
        assert not (tmp_path / "a").exists()

        append(journal, journal.start_run(), NoteKept(text="x"))

        assert (tmp_path / "a" / "b.sqlite").exists()


def test_default_place_is_the_users_data_folder(monkeypatch, tmp_path):
    """Without a path the journal is runs.sqlite in the user's data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    path = Journal.open().path

    assert (path.name, path.parent.name) == ("runs.sqlite", "k2core")
    assert path.is_relative_to(tmp_path)
    assert not path.parent.exists()


def test_concurrent_tasks_keep_each_runs_order(journal):
    """Appends of many tasks at once are grouped, and each run is whole and in order."""

    async def write(run, count):
        for number in range(count):
            await journal.append(run, NoteKept(text=f"{run} {number}"))

    async def main(runs):
        await asyncio.gather(*(write(run, 20) for run in runs))

    runs = [journal.start_run() for _ in range(8)]
    asyncio.run(main(runs))

    for run in runs:
        assert [one.event.text for one in journal.events(run)] == [f"{run} {number}" for number in range(20)]


def test_concurrent_threads_may_share_a_run(journal):
    """Several threads that append to one run leave one intact chain with all their events."""
    run = journal.start_run()
    threads = [
        threading.Thread(target=lambda name=name: [append(journal, run, NoteKept(text=f"{name} {n}")) for n in range(30)])
        for name in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    texts = [one.event.text for one in journal.events(run)]

    for name in range(4):
        assert [text for text in texts if text.startswith(f"{name} ")] == [f"{name} {n}" for n in range(30)]


WRITER = """
import sys
from journal.writing import append
from k2core.agent.journal import Journal
from k2core.events import NoteKept
path, run, name, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with Journal.open(path) as journal:
    for number in range(count):
        stored, = append(journal, run, NoteKept(text=f"{name} {number}"))
        print(stored.sequence, stored.event.text, flush=True)
"""


def start_writer(path, run, name, count):
    """A process that appends notes and prints each as soon as it is acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), run, name, str(count)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_concurrent_processes_may_share_a_file_and_a_run(tmp_path):
    """Processes that create and fill one file together, some in the same run, lose nothing."""
    path = tmp_path / "r.sqlite"
    writers = [start_writer(path, run, name, 25) for run, name in (("run-a", "1"), ("run-a", "2"), ("run-b", "3"))]
    printed = [writer.communicate(timeout=60)[0].splitlines() for writer in writers]

    stored = {run: Journal.open(path).events(run) for run in ("run-a", "run-b")}

    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert {run: len(events) for run, events in stored.items()} == {"run-a": 50, "run-b": 25}
    seen = [f"{one.sequence} {one.event.text}" for one in stored["run-a"]]
    assert set(printed[0]) | set(printed[1]) == set(seen)


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path):
    """After SIGKILL in the middle of writing, every acknowledged event is there and the chain is whole."""
    path = tmp_path / "r.sqlite"
    writer = start_writer(path, "run-a", "x", 100_000)
    lines = [writer.stdout.readline().strip() for _ in range(40)]
    writer.kill()
    lines += [line.strip() for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    writer.wait(timeout=30)
    writer.stdout.close()

    stored = [f"{one.sequence} {one.event.text}" for one in Journal.open(path).events("run-a")]

    assert len(lines) >= 40
    assert stored[: len(lines)] == lines
    with Journal.open(path) as journal:
        assert append(journal, "run-a", NoteKept(text="on"))[0].sequence == len(stored) + 1


def test_a_cancelled_append_is_still_stored_whole(journal):
    """Cancelling the task that waits does not tear its events apart."""
    run = journal.start_run()

    async def main():
        task = asyncio.ensure_future(journal.append(run, *notes(3)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await journal.append(run, NoteKept(text="after"))

    asyncio.run(main())

    assert [one.event.text for one in journal.events(run)] == ["note 0", "note 1", "note 2", "after"]


def test_appending_nothing_is_nothing(journal):
    """An empty append returns an empty list."""
    assert append(journal, journal.start_run()) == []


def test_times_are_utc_with_milliseconds(journal):
    """Times are ISO 8601 in UTC with milliseconds and never go back within a run."""
    run = journal.start_run()
    times = [append(journal, run, note)[0].time for note in notes(5)]

    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one) for one in times)
    assert times == sorted(times)


def test_summaries_newest_first(journal):
    """A list of runs tells question, status, model, backend, calls and tokens of each, newest first."""
    first, second = journal.start_run(), journal.start_run()
    started = RunStarted(question="What?", model={"model": "nano", "backend": "numba"})
    call = ToolIntent(call_id="functions.a:0", index=0, name="a", arguments="{}")
    turn = TurnEnded(usage=Usage(completion_tokens=7))
    append(journal, first, started, turn, call, turn, call, RunEnded(status="answered", tokens=14, calls=2))
    append(journal, second, RunStarted(question="Why?"), turn)

    newest, oldest = journal.runs()

    assert (newest.run, newest.question, newest.status, newest.tokens) == (second, "Why?", "unfinished", 7)
    assert (oldest.run, oldest.status, oldest.calls, oldest.tokens) == (first, "answered", 2, 14)
    assert (oldest.model, oldest.backend) == ("nano", "numba")
    assert [one.run for one in journal.runs(limit=1)] == [second]


@pytest.mark.parametrize("after", [RunResumed(), MessageAdded(role="user", content="And?")])
def test_a_run_that_goes_on_is_unfinished(journal, after):
    """The end of an earlier question, or of an earlier try, says nothing of the newest."""
    run = journal.start_run()
    append(journal, run, RunStarted(question="What?"), RunEnded(status="answered"), after)

    assert journal.runs()[0].status == "unfinished"

    append(journal, run, RunEnded(status="waiting"))

    assert journal.runs()[0].status == "waiting"


class TestFindRun:
    """Names that a person may give a run."""

    @pytest.fixture
    def filled(self, journal):
        """Three runs."""
        for run in ("260101-000000-aaaaa", "260101-000000-bbbbb", "260102-000000-ccccc"):
            append(journal, run, NoteKept(text=run))
        return journal

    @pytest.mark.parametrize("name", ["260102-000000-ccccc", "260102", "260102-0", "last"])
    def test_whole_id_beginning_or_last(self, filled, name):
        """A whole id, the beginning of only one, and ``last`` are understood."""
        assert filled.find_run(name) == "260102-000000-ccccc"
        assert filled.events(name)[0].event == NoteKept(text="260102-000000-ccccc")

    def test_an_ambiguous_beginning_is_refused(self, filled):
        """A beginning of several ids names the newest of them."""
        with pytest.raises(InputError, match="fits 2 runs, the newest are 260101-000000-bbbbb, 260101-000000-aaaaa"):
            filled.find_run("260101")

    def test_an_unknown_id_lists_the_nearest(self, filled):
        """A mistyped id is answered with the nearest one."""
        with pytest.raises(UnknownName, match="Did you mean '260102-000000-ccccc'") as caught:
            filled.events("260102-000000-cccdc")

        assert caught.value.kind == "run"

    @pytest.mark.parametrize("name", ["last", "", "2601"])
    def test_an_empty_journal_has_no_runs(self, journal, name):
        """Without runs every name is unknown."""
        with pytest.raises(UnknownName, match="Known: none"):
            journal.events(name)

    def test_an_empty_name_is_unknown(self, filled):
        """The empty name is not the beginning of every id."""
        with pytest.raises(UnknownName):
            filled.find_run("")


class TestAppendOnly:
    """Rows are never changed through SQL."""

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE events SET body = '{}'",
            "DELETE FROM events",
            "INSERT OR REPLACE INTO events SELECT run, sequence, time, kind, '{}', hash FROM events WHERE sequence = 1",
            "INSERT INTO events SELECT run, sequence + 5, time, kind, body, hash FROM events WHERE sequence = 1",
        ],
    )
    def test_sqlite_refuses(self, journal, statement):
        """UPDATE, DELETE, REPLACE and a gap are refused by the file itself."""
        append(journal, "run", *notes(2))
        connection = sqlite3.connect(journal.path)
        try:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
        finally:
            connection.close()


def tamper(path, statement, *values):
    """Change the file behind the triggers' back."""
    connection = sqlite3.connect(path)
    try:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement, values)
        connection.commit()
    finally:
        connection.close()


class TestDamage:
    """Every change of a stored row is found."""

    def test_every_byte_of_a_body(self, journal):
        """Flipping any single bit of any byte of a stored body is found at its event."""
        run = "run"
        append(journal, run, NoteKept(text="a"), NoteKept(text="größer ≠ 1"), NoteKept(text="c"))
        connection = sqlite3.connect(journal.path)
        (body,) = connection.execute("SELECT body FROM events WHERE sequence = 2").fetchone()
        connection.close()
        raw = body.encode()

        for place in range(len(raw)):
            changed = bytearray(raw)
            changed[place] ^= 1 << place % 8
            tamper(journal.path, "UPDATE events SET body = CAST(? AS TEXT) WHERE sequence = 2", bytes(changed))

            with pytest.raises(JournalDamaged, match="run run is damaged at event 2") as caught:
                journal.events(run)

            assert (caught.value.run, caught.value.sequence) == (run, 2)

    @pytest.mark.parametrize(
        ("statement", "run", "sequence"),
        [
            ("UPDATE events SET time = '2020-01-01T00:00:00.000Z' WHERE sequence = 3", "run", 3),
            ("UPDATE events SET kind = 'plan' WHERE sequence = 3", "run", 3),
            ("UPDATE events SET hash = 'x' || substr(hash, 2) WHERE sequence = 3", "run", 3),
            ("UPDATE events SET body = 7 WHERE sequence = 3", "run", 3),
            ("DELETE FROM events WHERE sequence = 2", "run", 2),
            ("UPDATE events SET sequence = sequence + 1 WHERE sequence = 5", "run", 5),
            ("UPDATE events SET run = 'other' WHERE sequence > 1", "other", 2),
        ],
    )
    def test_other_columns_and_rows(self, journal, statement, run, sequence):
        """A changed time, kind, hash or body, a missing row and a moved row are found where they begin."""
        append(journal, "run", *notes(5))
        append(journal, "other", NoteKept(text="x"))
        tamper(journal.path, statement)

        with pytest.raises(JournalDamaged) as caught:
            journal.events(run)

        assert (caught.value.run, caught.value.sequence) == (run, sequence)

    def test_rows_of_another_run_do_not_fit(self, journal):
        """A row's content moved to another run's same place is found there."""
        append(journal, "run", *notes(2))
        append(journal, "other", NoteKept(text="x"), NoteKept(text="y"))
        tamper(
            journal.path,
            "UPDATE events SET (body, hash) = (SELECT body, hash FROM events WHERE run = 'run' AND sequence = 2) "
            "WHERE run = 'other' AND sequence = 2",
        )

        with pytest.raises(JournalDamaged, match="run other is damaged at event 2: its content does not fit its hash"):
            journal.events("other")
        assert len(journal.events("run")) == 2

    def test_a_damaged_run_is_still_listed(self, journal):
        """A run whose rows cannot be read stands in the list as damaged."""
        append(journal, "run", RunStarted(question="q"))
        tamper(journal.path, "UPDATE events SET body = CAST(? AS TEXT)", b"\xff{")

        assert [(one.run, one.status) for one in journal.runs()] == [("run", "damaged")]
