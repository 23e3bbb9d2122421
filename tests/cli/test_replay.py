"""``k2 replay``: a run of one process generated again in others, whatever their threads, and a token that is another one."""

import os
from pathlib import Path

import pytest
from attrs import evolve
from cli.processes import K2

from k2core.agent.journal import Journal
from k2core.events import TurnEnded
from k2core_nano import WEIGHTS

needs_nano = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)
CACHE = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # compiled kernels
SHIPPED = {"K2CORE_DISABLE": "scripted", "XDG_CACHE_HOME": CACHE}


@needs_nano
def test_every_token_is_chosen_again_in_other_processes(process: K2) -> None:
    """With one thread and with two, greedy and by chance: each turn and the sum are told, the exit code is 0."""
    runs = [
        process("run", "--threads", threads, *sampling, "--calls", "6", "--max-tokens", "150", "--json", question, env=SHIPPED)
        for threads, sampling, question in (
            ("2", (), "What is 23 times 47?"),
            ("1", ("--temperature", "1", "--seed", "3"), "What is 12 plus 30?"),
        )
    ]
    for done in runs:
        run, tokens, turns = (done.json()[name] for name in ("run", "tokens", "turns"))
        for threads in ("1", "2"):
            told = process("replay", run, "--threads", threads, env=SHIPPED)
            lines = told.out.splitlines()

            assert (told.code, told.err) == (0, "")
            assert lines[0] == f"     run        {run}  nano · numba · exact, as recorded"
            assert len(lines) == len(turns) + 2
            assert lines[-1] == f"     end        {tokens} tokens of {len(turns)} turns are chosen again"
    assert process("runs", "replay", "last", "--drafts", "0", "--json", env=SHIPPED).json()["same"]


@needs_nano
def test_a_changed_token_is_reported_at_its_place(process: K2, tmp_path: Path) -> None:
    """Turn, position, both tokens, margin; the sum counts all; --json has the same; the exit code is 4."""
    run = process("run", "--json", "What is 23 times 47?", env=SHIPPED).json()["run"]
    with Journal.open(tmp_path / "runs.sqlite") as journal:
        events = [one.event for one in journal.events(run)]
        place = [at for at, one in enumerate(events) if isinstance(one, TurnEnded)][1]
        turn = events[place]
        assert isinstance(turn, TurnEnded) and turn.token_ids is not None
        at = turn.token_ids.index(ord("/"))
        events[place] = evolve(turn, token_ids=(*turn.token_ids[:at], ord("*"), *turn.token_ids[at + 1 :]))
        journal.write("altered", *events)

    told = process("replay", "altered", env=SHIPPED)
    found = process("replay", "altered", "--json", env=SHIPPED)

    assert told.code == found.code == 4
    (line,) = (one for one in told.out.splitlines() if one.startswith(f"{place + 1:>3}  turn"))
    assert f'first at token {at}: 42 "*" then, 47 "/" now, margin ' in line
    assert f"the first in event {place + 1} at token {at}" in told.out.splitlines()[-1]
    whole, differing = found.json(), next(one for one in found.json()["turns"] if one["differences"])
    assert (differing["event"], differing["differences"][0]["position"]) == (place + 1, at)
    assert whole["agreed"] == whole["tokens"] - whole["differences"] and not whole["same"]
    assert {one["weights"] for one in (whole["recorded"], whole["model"])} == {whole["model"]["weights"]} != {""}


@needs_nano
def test_another_model_is_told_in_the_first_line(process: K2, tmp_path: Path) -> None:
    """Other weights by their hash; a run is replayed on a checkpoint folder too."""
    run = process("run", "--json", "What is 23 times 47?", env=SHIPPED).json()["run"]
    folder = tmp_path / "copy"
    folder.mkdir()
    for one in WEIGHTS.iterdir():
        content = one.read_bytes()
        (folder / one.name).write_bytes(content[:-64] + bytes(64) if one.name == "model.safetensors" else content)

    first = process("replay", run, "-m", str(folder), env=SHIPPED).out.splitlines()[0]

    assert "recorded on nano · numba · exact, replayed on " in first
    assert "; with other weights: sha256:" in first and " then, sha256:" in first and first.endswith("… now")


def test_mistakes_are_one_clear_line(k2: K2) -> None:
    """A run without tokens, one of several paths, none at all; exit code 2."""
    assert (k2("replay").code, k2("replay").err.startswith("k2: no run 'last'. Known: none.")) == (2, True)
    run = k2("run", "-m", "product", "--json", "What is 23 times 47?").json()["run"]

    done = k2("replay", run)

    assert (done.code, done.out) == (2, "")
    assert done.err == f"k2: cannot replay run {run}: none of its turns can be compared (2 without token ids)\n"
    assert k2("runs", "replay", run, "--json").json()["kind"] == "InputError"
    paths = k2("run", "-m", "words", "--paths", "2", "--json", "What is 23 times 47?").json()
    told = k2("replay", paths["run"])
    assert told.code == 2 and all(one["run"] in told.err for one in paths["paths"])
