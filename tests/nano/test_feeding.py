"""Processes that make batches ahead: the same training, and no process left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import evolve

torch = pytest.importorskip("torch")

from nano.small import SMALL, broken, copies, options  # noqa: E402

from k2core.errors import K2Error  # noqa: E402
from k2core_nano.train.feeders import Feeders, Plan  # noqa: E402
from k2core_nano.train.feeding import Recipe  # noqa: E402
from k2core_nano.train.training import Trainer  # noqa: E402

STEPS = ("--shares", "3", "--copy-tokens", "1300", "--copy-mix-tokens", "2500", "--tokens", "9000", "--copy-until", "0")


def losses(*extra: str) -> tuple[list[float], Trainer]:
    """The losses of ten steps: three of copying, some with copying mixed in, some without."""
    trainer = Trainer(options(*STEPS, *extra), SMALL, copies)
    trainer.set_weights()
    try:
        found = [trainer.step(started=0.0, watch_logits=False)["loss"] for _ in range(10)]
    finally:
        trainer.close()
    return found, trainer


def test_feeders_change_no_bit() -> None:
    """Ten steps fed by two processes, through the change of phase, have the losses and weights of the unfed ones."""
    unfed, left = losses()
    fed, right = losses("--feeders", "2")
    assert unfed == fed
    assert all(map(torch.equal, left.masters, right.masters))
    assert left.counters["phase"] == "main"
    assert left.counters["main_tokens"] > 2500
    assert left.counters["step"] > left.counters["start_step"] > 1
    assert isinstance(right.source, Feeders)
    assert {share.phase for share in right.source._made} <= {"main"}  # what was made ahead of copying is gone
    assert [process.is_alive() for process in right.source.processes] == [False, False]


def test_an_error_of_the_generator_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    """When a feeder fails, its own error is shown and the step that needs it raises instead of waiting."""
    trainer = Trainer(options("--feeders", "1"), SMALL, broken)
    try:
        with pytest.raises(K2Error, match=r"batches of step 2: a feeder ended with exit code 1 .*Resume"):
            for _ in range(3):
                trainer.step(started=0.0, watch_logits=False)
    finally:
        trainer.close()
    assert "ValueError: a mistake" in capfd.readouterr().err


def test_what_copying_is_mixed_in_waits_for_the_count() -> None:
    """Steps are planned ahead without end but where the amount of copying depends on shares not made yet."""
    recipe = Recipe.of(options("--shares", "2", "--step-tokens", "1000", "--copy-mix-tokens", "2000"), copies)
    copying = Plan(recipe, step=0, phase="copy", main_tokens=0)
    assert [share.step for _ in range(3) for share in copying.advance()] == [0, 0, 1, 1, 2, 2]
    mixing = Plan(recipe, step=5, phase="main", main_tokens=0)
    assert [(share.step, share.index, share.copies) for share in mixing.advance()] == [(5, 0, 75), (5, 1, 75)]
    mixing.count(500)
    assert mixing.advance() == []
    mixing.count(500)
    assert [share.copies for share in mixing.advance()] == [37, 37]
    mixing.count(1000)
    assert [share.copies for _ in range(2) for share in mixing.advance()] == [0, 0, 0, 0]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_feeders_end_with_the_trainer(tmp_path: Path, how: str) -> None:
    """Told to stop together with its feeders, a trainer saves before all end; killed, it takes them with it."""
    size = evolve(SMALL, vocab_size=3072, max_position_embeddings=2048)
    (tmp_path / "config.json").write_text(json.dumps(size.config(bos_token_id=0, eos_token_id=1, pad_token_id=2)))
    command = [sys.executable, "-m", "k2core_nano.train.trainer", "--out", str(tmp_path), "--tokens", "10000000"]
    sizes = ["--processes", "1", "--feeders", "1", "--copy-step-tokens", "200", "--log-every", "0", "--geometry"]
    trainer = subprocess.Popen(
        [*command, *sizes, str(tmp_path / "config.json")], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert trainer.stdout is not None
    for line in trainer.stdout:
        if "train.progress" in line:
            break
    feeders = [pid for pid in children(trainer.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(feeders) == 1
    if how == "stop":
        os.killpg(trainer.pid, signal.SIGTERM)
    else:
        trainer.kill()
    rest = trainer.communicate(timeout=120)[0]
    assert trainer.returncode == (0 if how == "stop" else -signal.SIGKILL)
    assert ('"ending": "stopped"' in rest) == (how == "stop")
    assert (tmp_path / "latest.pt").exists() == (how == "stop")
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in feeders):
        assert time.monotonic() < until, "feeders outlive the trainer by a minute"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
