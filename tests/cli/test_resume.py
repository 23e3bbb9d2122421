"""``k2 resume``, ``k2 runs decide``, ``raise`` and ``graph``: runs that were killed, that wait, that get other budgets."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from cli.processes import K2


@pytest.fixture
def killed(environment: dict[str, str], tmp_path: Path, k2: K2, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was killed after its payment took effect and before the bank said so; its id."""
    book = tmp_path / "paid.txt"
    monkeypatch.setenv("PAID", str(book))
    process = subprocess.Popen(
        [sys.executable, "-m", "k2core.cli", "run", "-m", "pays", "--effort", "low", "Pay 7."],
        env={**environment, "PAID": str(book)}, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not book.exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert book.read_text() == "7\n"
    return str(k2("runs", "--json").json()["runs"][0]["run"])


def test_a_payment_that_may_have_happened_waits_for_a_decision(killed: str, k2: K2, tmp_path: Path) -> None:
    """It is not made again; the run waits, says what to do, and goes on as decided."""
    assert k2("runs", "--json").json()["runs"][0]["status"] == "unfinished"

    waits = k2("resume", killed)
    assert waits.code == 7
    assert waits.out.startswith("I wait for a decision:\n- call 0, pay amount=7, begun 2")
    assert f"k2 runs decide {killed} 0 happened|redo|abandon" in waits.err
    assert k2("runs", "--json").json()["runs"][0]["status"] == "waiting"
    assert k2("resume", killed).code == 7

    decided = k2("runs", "decide", killed, "0", "happened", "--result", "7 paid, says the bank")
    assert (decided.code, decided.out) == (0, f"decided: call 0 happened. Go on: k2 resume {killed}\n")
    done = k2("resume", killed, "--json")
    assert (done.code, done.json()["answer"], done.json()["calls"][0]["result"]) == (0, "7 paid.", "7 paid, says the bank")
    assert (tmp_path / "paid.txt").read_text() == "7\n"
    shown = k2("runs", "show", killed).out
    assert "decided 0" in shown and "happened, by user: 7 paid, says the bank" in shown and "resumed" in shown


def test_a_payment_that_did_not_happen_is_made_once(killed: str, k2: K2, tmp_path: Path) -> None:
    """Redo makes it, and the run ends."""
    k2("resume", killed)
    assert k2("runs", "decide", killed, "0", "redo").code == 0
    assert k2("resume", killed).code == 0
    assert (tmp_path / "paid.txt").read_text() == "7\n7\n"


def test_mistakes_are_one_clear_line(killed: str, k2: K2) -> None:
    """No such call, nothing to decide, a result that makes no sense, a run that is done."""
    k2("resume", killed)
    mistakes: Mapping[str, tuple[str, ...]] = {
        f"cannot decide about call 4 of run {killed}: call 0 waits for one": ("runs", "decide", killed, "4", "redo"),
        "cannot decide 'redo' with a result: only a call that happened has one": (
            "runs", "decide", killed, "0", "redo", "--result", "x",
        ),
        "no run 'nobody'.": ("resume", "nobody"),
        f"give a budget, e.g. k2 runs raise {killed} --calls 100": ("runs", "raise", killed),
    }  # fmt: skip
    for line, arguments in mistakes.items():
        done = k2(*arguments)
        assert done.code == 2 and done.err.startswith(f"k2: {line}") and len(done.err.splitlines()) == 1

    k2("runs", "decide", killed, "0", "abandon")
    assert k2("runs", "decide", killed, "0", "redo").err.rstrip().endswith(f"already (abandon). Go on with k2 resume {killed}")
    assert k2("resume", killed).code == 4  # the answer states a payment that nobody saw
    assert "cannot resume run" in k2("resume", killed).err


def test_a_budget_is_raised_afterwards(k2: K2) -> None:
    """A partial answer goes on with the settings of its run and more calls."""
    first = k2("run", "-m", "endless", "--calls", "5", "--seed", "7", "--json", "q")
    assert (first.code, len(first.json()["calls"])) == (3, 5)
    assert first.json()["partial"]["known"][0]["text"] == "multiply a=0 b=0: 0"
    run = first.json()["run"]
    assert k2("runs", "raise", run, "--calls", "9", "--json").json()["limits"] == {"calls": 9}

    more = k2("resume", run, "--json")  # the script begins anew: it repeats itself and is stopped for that
    assert more.code == 3
    kinds = [one["kind"] for one in k2("runs", "show", run, "--json").json()["events"]]
    assert kinds.count("limits") == 1 and kinds.count("run.resumed") == 1
    resumed = next(one for one in k2("runs", "show", run, "--json").json()["events"] if one["kind"] == "run.resumed")
    assert resumed["limits"]["calls"] == 9


def test_efforts(k2: K2) -> None:
    """Presets of all budgets; one that is set on its own counts."""
    started = k2("run", "-m", "product", "--effort", "high", "--seconds", "9", "--json", "q").json()["run"]
    limits = k2("runs", "show", started, "--json").json()["events"][0]["limits"]

    assert (limits["calls"], limits["seconds"], limits["reasoning_tokens"]) == (150, 9.0, 128_000)
    assert "Known: high, low, max, medium" in k2("run", "--effort", "huge", "q").err


def test_graph(k2: K2) -> None:
    """A flowchart for people, nodes and edges for programs."""
    run = k2("run", "-m", "product", "--json", "What is 23 times 47?").json()["run"]

    assert k2("runs", "graph", run).out.startswith("flowchart TD\n    question")
    nodes = json.loads(k2("runs", "graph", run, "--json").out)["nodes"]
    assert [one["kind"] for one in nodes] == ["question", "call", "evidence", "answer", "claim"]
