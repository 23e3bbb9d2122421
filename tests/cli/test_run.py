"""``k2 run`` as a process: answer on stdout, the rest on stderr, one JSON object, exit codes, what tools may do to it."""

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from cli.processes import K2

KEYS = {
    "run",
    "status",
    "answer",
    "reason",
    "claims",
    "calls",
    "decisions",
    "partial",
    "paths",
    "verdict",
    "tokens",
    "reasoning_tokens",
    "prompt_tokens",
    "cached_tokens",
    "computed_tokens",
    "turns",
    "seconds",
    "tokens_per_second",
    "model",
    "backend",
    "numerics",
    "placement",
}


def test_the_answer_alone_is_on_stdout(process: K2) -> None:
    """stdout has the answer and nothing else; stderr has thinking, calls, verdict, evidence, cost and what to do next."""
    done = process("run", "-m", "product", "What is 23 times 47?")

    assert (done.code, done.out) == (0, "The product is 1081.\n")
    for line in (
        "think      Multiply 23 by 47.",
        "call 0     multiply a=23 b=47",
        "result 0   1081",
        'call 1     answer "The product is 1081." (1 claim)',
        "verdict    accepted",
        "           ok 1081 in call 0  [numbers]",
        "evidence   23 times 47 is 1081",
        "           call 0: multiply a=23 b=47 → 1081",
    ):
        assert line in done.err.splitlines()
    assert re.search(
        r"^cost       16 tokens \(7 thinking\) · 2 calls · [\d.]+ s · .*% of prompts cached · product$", done.err, re.M
    )
    assert "\x1b" not in done.err


def test_the_last_lines_are_commands_that_work(k2: K2, tmp_path: Path) -> None:
    """The commands named at the end do what they say, with --store where it was given by flag."""
    store = tmp_path / "other runs.sqlite"
    done = k2("run", "-m", "twice", "--store", str(store), "first?")
    shown, again = (line[11:] for line in done.err.splitlines()[-2:])

    assert shown.startswith("k2 runs show ") and f"--store '{store}'" in shown and again.startswith("k2 run -c ")
    run = shown.split()[3]
    assert "first?" in k2("runs", "show", run, "--store", str(store)).out
    # the scripted model begins its script again: the second answer is its first, in the same run
    continued = k2("run", "-c", run, "--store", str(store), "--json", "second?")
    assert continued.json()["run"] == run and continued.json()["model"] == "twice"
    assert "second?" in k2("runs", "show", run, "--store", str(store)).out


def test_json_is_one_object_with_stable_keys(process: K2) -> None:
    """--json prints exactly one object; claims carry calls and events, calls their arguments and results."""
    done = process("run", "-m", "product", "--json", "What is 23 times 47?")
    found = done.json()

    assert (done.code, done.err, set(found)) == (0, "", KEYS)
    assert (found["status"], found["answer"], found["reason"]) == ("answered", "The product is 1081.", "")
    assert found["calls"][0] == {
        "id": "functions.multiply:0",
        "index": 0,
        "name": "multiply",
        "arguments": {"a": 23, "b": 47},
        "result": "1081",
        "ok": True,
    }
    (claim,) = found["claims"]
    (event,) = claim["events"]
    events = process("runs", "show", found["run"], "--json").json()["events"]
    assert claim["evidence"] == [0]
    assert events[event - 1]["kind"] == "tool.result" and events[event - 1]["text"] == "1081"
    assert found["verdict"]["accepted"] and found["verdict"]["findings"][0]["subject"] == "1081"
    assert found["computed_tokens"] >= found["tokens"] == 16 and found["reasoning_tokens"] == 7
    assert sum(turn["prompt_tokens"] for turn in found["turns"]) == found["prompt_tokens"] > found["cached_tokens"] > 0
    assert found["turns"][0]["hit_rate"] == 0.0 < found["turns"][1]["hit_rate"] < 1.0


def test_a_repeated_call_id_keeps_both_results(k2: K2) -> None:
    """Two calls that the model gave the same id show each its own result."""
    calls = k2("run", "-m", "repeats", "--json", "q").json()["calls"]

    assert [(one["index"], one["arguments"].get("b"), one["result"]) for one in calls[:2]] == [(0, 3, "6"), (1, 5, "10")]


@pytest.mark.parametrize(
    ("model", "options", "code", "status", "reason"),
    [
        ("product", [], 0, "answered", ""),
        ("wrong", [], 4, "unverified", "number 1082 is in no result"),
        ("endless", ["--calls", "3"], 3, "partial", "the budget of 3 calls is nearly used up"),
        ("endless", ["--thinking-tokens", "2"], 3, "partial", "the budget of 2 reasoning tokens is used up"),
        ("declines", [], 6, "declined", "it claims nothing, and nothing in it comes from a result"),
        ("slow", ["--seconds", "0.3"], 3, "partial", "the budget of 0.3 seconds is used up"),
    ],
)
def test_exit_codes_mean_something(model: str, options: list[str], code: int, status: str, reason: str, k2: K2) -> None:
    """0 answered, 3 a budget ended it, 4 not verified, 6 declined; the object says the same and why."""
    done = k2("run", "-m", model, *options, "--json", "q")

    assert (done.code, done.json()["status"], done.json()["reason"]) == (code, status, reason)
    plain = k2("run", "-m", model, *options, "q")
    assert plain.code == code and (not reason or f"{status.ljust(11)}{reason}" in plain.err)


@pytest.mark.parametrize(
    ("model", "ok", "result"),
    [
        ("raises", False, "error: RuntimeError: broken in two lines"),
        ("exits", False, "error: RuntimeError: SystemExit: 3"),
        ("hangs", False, "error: timed out after 0.3 s"),
        ("prints", True, "printed"),
        ("bytes", False, "error: the tool returned 3 bytes that are not UTF-8 text"),
        ("garbled", False, "error: invalid arguments: not JSON: "),
        ("returns", True, "x" * 16_000 + "\n[cut: 16000 of 100000000 characters shown]"),
    ],
)
def test_ill_behaved_tools_are_observations(model: str, ok: bool, result: str, process: K2) -> None:
    """A tool that raises, exits, hangs, prints 100 MB, returns 100 MB or bytes: the run goes on and stdout stays one object."""
    done = process("run", "-m", model, "--json", "q")
    first = done.json()["calls"][0]

    assert done.code == 0, done.err
    assert first["ok"] is ok and first["result"].startswith(result)
    assert len(done.out) < 20_000 and done.err == ""


def test_descriptors_and_child_processes_do_not_reach_stdout(process: K2) -> None:
    """What a tool writes to descriptor 1 or 2, in a child process or a thread, is a dim line that names it, or only logged."""
    plain, as_json = process("run", "-m", "below", "q"), process("run", "-m", "below", "--json", "q")

    assert (plain.code, plain.out) == (0, "Done.\n")
    printed = "\n           ".join(["printed    below: descriptor x", "error", "child", "a thread"])
    assert f"{printed}\nresult 0   x\n" in plain.err and "printed    a plugin that prints when it is imported\n" in plain.err
    assert as_json.json()["status"] == "answered" and as_json.err == ""
    assert process("tools", "call", "below", '{"text": "y"}').out == "y\n"
    assert [one["name"] for one in process("tools", "--json").json()["tools"]].count("below") == 1


def test_async_tools_print_nowhere(k2: K2) -> None:
    """What an async tool prints does not reach stdout either."""
    done = k2("run", "-m", "evil", "--json", "q")

    assert done.json()["status"] == "answered"


def test_nothing_reaches_the_terminal_as_an_escape(k2: K2) -> None:
    """Escape sequences, C1 controls and direction overrides of models and tools are gone; markup is only text."""
    for done in (k2("run", "-m", "evil", "q"), k2("runs", "show")):
        for text in (done.out, done.err):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
        assert "red [bold]markup[/bold]" in done.out
    raw = k2("run", "-m", "evil", "--json", "q").out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", raw)


def test_thinking_is_hidden_on_request(k2: K2) -> None:
    """-R, or reasoning = no in the environment, leaves thinking out of the display."""
    assert "Multiply 23" in k2("run", "-m", "product", "q").err
    assert "Multiply 23" not in k2("run", "-R", "-m", "product", "q").err
    assert "Multiply 23" not in k2("run", "-m", "product", "q", env={"K2CORE_REASONING": "no"}).err


def test_the_question_comes_from_stdin(k2: K2) -> None:
    """With - the question is standard input; bytes that are not UTF-8 are one line with their place."""
    assert k2("run", "-m", "product", "-", stdin="What is\n23 times 47?\n").code == 0
    assert "question   What is" in k2("runs", "show").out
    done = k2("run", "-m", "product", "-", stdin=b"caf\xe9?")
    assert done.code == 2 and "byte 4 (0xe9) is not UTF-8" in done.err


def test_a_failing_model_leaves_a_run_to_show(k2: K2) -> None:
    """When the model fails half way, everything up to there is in the journal and the line names the run."""
    done = k2("run", "-m", "broken", "--json", "q")

    assert done.code == 1 and done.json()["kind"] == "K2Error"
    shown = k2("runs", "show", done.json()["run"])
    assert "result 0   1081" in shown.out and "failed" in shown.out


def test_only_chosen_tools_are_declared(k2: K2) -> None:
    """-T limits the tools; control tools stay."""
    run = k2("run", "-m", "words", "-T", "loud", "-T", "blob", "--json", "q").json()["run"]
    started = k2("runs", "show", run, "--json").json()["events"][0]

    assert started["tools"] == ["answer", "blob", "hypothesis", "loud", "note", "plan", "recall"]


def test_a_journal_of_a_newer_version_is_one_line(k2: K2, tmp_path: Path) -> None:
    """A store that a newer k2core wrote is refused before any work, and left as it is."""
    assert k2("run", "-m", "product", "q").code == 0
    with sqlite3.connect(tmp_path / "runs.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (tmp_path / "runs.sqlite").read_bytes()
    for arguments in (["run", "-m", "product", "q"], ["runs"], ["runs", "show"]):
        done = k2(*arguments)
        assert done.code == 1 and "its format is version 99" in done.err and done.err.count("\n") == 1
    assert (tmp_path / "runs.sqlite").read_bytes() == before


def test_ctrl_c_ends_cleanly(environment: Mapping[str, str], k2: K2, tmp_path: Path) -> None:
    """Ctrl-C while the model thinks: exit 130, one line that names the run, and the run ends as cancelled."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits SIGINT as ignored, and passes it on
    for extra in ([], ["--json"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "k2core.cli", "run", "-m", "slow", *extra, "q"],
            env=dict(environment),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_a_run(k2, 2 if extra else 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)

        assert process.returncode == 130
        run = k2("runs", "--json").json()["runs"][0]
        assert run["status"] == "cancelled"
        assert err.splitlines()[-1] == f"k2: interrupted; go on with k2 resume {run['run']}"
        assert "cancelled" in k2("runs", "show", run["run"]).out
        assert (json.loads(out) if extra else out) == (
            {"error": "interrupted", "kind": "Interrupted", "run": run["run"]} if extra else ""
        )


@pytest.mark.parametrize(("model", "code"), [("lingers", 0), ("slow-to-close", 130)])
def test_ctrl_c_when_the_work_is_done_is_quiet(model: str, code: int, environment: Mapping[str, str], tmp_path: Path) -> None:
    """Ctrl-C while a model is closed or the interpreter ends: an exit status as documented and no traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "k2core.cli", "run", "-m", model, "q"],
        env=dict(environment),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    last = "next " if model == "lingers" else "verdict "  # what is shown just before
    shown = next(line for line in process.stderr if line.startswith(last))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert shown and (process.returncode, "Traceback" in err, "Exception" in err) == (code, False, False), err
    assert (out == "The product is 1081.\n") is (code == 0) and ("k2: interrupted" in err) is (code == 130)


def wait_for_a_run(k2: K2, count: int) -> None:
    """Until so many runs are in the journal."""
    deadline = time.monotonic() + 30
    while len(k2("runs", "--json").json()["runs"]) < count:
        assert time.monotonic() < deadline
    time.sleep(0.3)


def on_a_terminal(environment: Mapping[str, str], *arguments: str, typed: bytes = b"") -> str:
    """What a terminal of 80 columns receives."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "k2core.cli", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(slave)
    os.write(master, typed)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not piece:
                break
            seen += piece
        elif process.poll() is not None:
            break
    os.close(master)
    assert process.wait(timeout=10) == 0
    return seen.decode()


def test_a_terminal_gets_dim_thinking_and_wrapped_lines(environment: Mapping[str, str]) -> None:
    """On a terminal thinking is dim, the rest has colour, and no line is wider than the window."""
    seen = on_a_terminal(environment, "run", "-m", "product", "What is 23 times 47?")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).replace("\r", "")

    assert "\x1b[2mthink" in seen and "\x1b[32m" in seen
    assert "think      Multiply 23 by 47." in plain and "\nThe product is 1081.\n" in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_no_color_is_honoured(environment: Mapping[str, str]) -> None:
    """With NO_COLOR a terminal gets no colour."""
    seen = on_a_terminal({**environment, "NO_COLOR": "1"}, "run", "-m", "product", "What is 23 times 47?")

    assert "The product is 1081." in seen
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|4[0-7])[0-9;]*m", seen)


def test_chat_on_a_terminal_prompts(environment: Mapping[str, str]) -> None:
    """On a terminal chat prompts, answers, knows its commands and leaves with /exit."""
    seen = on_a_terminal(environment, "chat", "-m", "words", typed=b"hello\n/nope\n/exit\n")

    assert "> " in seen and "Plain words." in seen and "no command '/nope'" in seen and "k2 runs show " in seen


def test_ctrl_c_at_an_idle_prompt_does_not_leave_the_chat(environment: Mapping[str, str]) -> None:
    """It clears the line and tells how to leave; the next question is answered."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits SIGINT as ignored, and passes it on
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "k2core.cli", "chat", "-m", "words"]
    environment = {**environment, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )  # fmt: skip
    os.close(slave)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 65536)
        seen = seen.partition(words)[2]

    until(b"> ")
    time.sleep(0.3)  # until it listens
    process.send_signal(signal.SIGINT)
    until(b"/exit leaves")
    until(b"> ")
    os.write(master, b"hello\n")
    until(b"Plain words.")
    os.write(master, b"/exit\n")
    until(b"k2 runs show ")
    assert process.wait(timeout=20) == 0
    os.close(master)
