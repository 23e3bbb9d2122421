"""``k2 runs fork``: a new run goes on from an event of another, with a result given by hand, before a damage."""

import sqlite3
from pathlib import Path

import pytest
from cli.processes import K2

QUESTION = "What is 23 times 47?"


def numbers(k2: K2, run: str) -> dict[str, int]:
    """The first event of each kind in a run."""
    events = k2("runs", "show", run, "--json").json()["events"]
    return {one["kind"]: one["sequence"] for one in reversed(events)}


@pytest.fixture
def run(k2: K2) -> str:
    """A run that is answered; its id."""
    return str(k2("run", "-m", "product", "--seed", "5", "--calls", "9", "--json", QUESTION).json()["run"])


def test_a_fork_goes_on_in_a_new_run(run: str, k2: K2) -> None:
    """It is answered on its own, with the settings of the run; the run stays as it is; what it came of is shown and listed."""
    before = k2("runs", "show", run, "--json").json()
    step = numbers(k2, run)["tool.result"]

    done = k2("runs", "fork", f"{run}@{step}")
    listed = k2("runs", "--json").json()["runs"]

    assert (done.code, done.out) == (0, "The product is 1081.\n")
    assert [one["status"] for one in listed] == ["answered", "answered"] and listed[1]["run"] == run
    new = listed[0]["run"]
    assert f"next       k2 runs show {new}" in done.err.splitlines()
    after = k2("runs", "show", new, "--json").json()["events"]
    told, own = ("kind", "text", "content", "question", "time"), before["events"][:step]
    assert [[one.get(name) for name in told] for one in after[:step]] == [[one.get(name) for name in told] for one in own]
    assert (after[step]["kind"], after[step]["run"], after[step]["seed"]) == ("run.forked", run, None)
    assert after[step + 1]["kind"] == "run.resumed" and after[step + 1]["limits"]["calls"] == 9
    assert k2("runs", "show", run, "--json").json() == before
    assert f"forked     all before is that of {run} up to event {step}" in k2("runs", "show", new).out


def test_a_fork_of_a_fork_with_another_seed(run: str, k2: K2) -> None:
    """--json is the object of k2 run; the seed stays with the fork, also where it is resumed or forked again."""
    step = numbers(k2, run)["message"]
    found = k2("runs", "fork", f"{run}@{step}", "--seed", "8", "--json").json()
    assert (found["status"], found["answer"]) == ("answered", "The product is 1081.") and found["run"] != run
    forked = numbers(k2, found["run"])["run.forked"]

    again = k2("runs", "fork", f"{found['run']}@{forked + 2}", "--json").json()["run"]

    kinds = [(one["kind"], one.get("seed")) for one in k2("runs", "show", again, "--json").json()["events"]]
    assert [one for one in kinds if one[0] == "run.forked"] == [("run.forked", 8), ("run.forked", None)]


def test_a_result_is_given_by_hand(k2: K2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payment is not made again where what came back from it is given, wherever the run is forked."""
    monkeypatch.setenv("PAID", str(tmp_path / "paid.txt"))
    (tmp_path / "paid.txt").write_text("1\n")
    run = k2("run", "-m", "pays", "--json", "Pay 7.").json()["run"]
    places = numbers(k2, run)
    paid = (tmp_path / "paid.txt").read_text()

    for kind in ("tool.intent", "tool.result"):
        done = k2("runs", "fork", f"{run}@{places[kind]}", "--with", "pay=nothing was due", "--json")

        assert done.json()["calls"][0]["result"] == "nothing was due" and done.json()["calls"][0]["ok"]
        assert (tmp_path / "paid.txt").read_text() == paid
        assert "the result of call 0 given by hand" in k2("runs", "show").out
    failed = k2("runs", "fork", f"{run}@{places['tool.result']}", "--with", "pay=error: no money", "--json")
    assert failed.json()["calls"][0]["ok"] is False


def test_mistakes_are_one_clear_line(run: str, k2: K2) -> None:
    """What was tried, what was found, what to do; exit code 2, and no run is written."""
    places = numbers(k2, run)
    last = len(k2("runs", "show", run, "--json").json()["events"])
    for arguments, line in (
        ((run,), f"cannot fork '{run}': expected RUN@STEP, where STEP is the number of an event as k2 runs show prints it"),
        ((f"{run}@nine",), "expected RUN@STEP"),
        ((f"{run}@{last + 1}",), f"cannot fork run {run} at event {last + 1}: it has the events 1 to {last}"),
        ((f"{run}@{last}",), "its question is done there (answered). Fork it before the answer"),
        (("nobody@3",), "no run 'nobody'"),
        ((f"{run}@{places['turn']}", "--with", "multiply=1"), "that event is no call but turn; results of multiply are events"),
        ((f"{run}@{places['tool.result']}", "--with", "loud=1"), "the call there is one of multiply"),
        ((f"{run}@{places['tool.result']}", "--with", "1"), "cannot give the result '1': expected TOOL=RESULT"),
    ):
        done = k2("runs", "fork", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert line in done.err and done.err.count("\n") == 1, done.err
    assert "Missing argument 'RUN@STEP'" in k2("runs", "fork").err


def test_a_damaged_run_goes_on_from_before_the_damage(run: str, k2: K2, tmp_path: Path) -> None:
    """The line that says what is wrong says how, and that works."""
    step = numbers(k2, run)["verdict"]
    with sqlite3.connect(tmp_path / "runs.sqlite") as connection:
        connection.execute("DROP TRIGGER events_never_change")
        connection.execute("UPDATE events SET body = '{}' WHERE kind = 'verdict'")
    connection.close()

    shown = k2("runs", "show", run)
    assert shown.code == 1 and shown.err.rstrip().endswith(f"Go on from before it: k2 runs fork {run}@{step - 1}")
    command = shown.err.rstrip().rpartition("k2 ")[2].split()

    assert k2(*command).out == "The product is 1081.\n"
    assert f"it is damaged at event {step}." in k2("runs", "fork", f"{run}@{step}").err
