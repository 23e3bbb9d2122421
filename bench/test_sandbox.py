"""What isolation costs: starting, one cell, many sandboxes at once, and a hostile neighbour; each has its limit.

Run with ``pytest bench/test_sandbox.py -s``. Each figure is printed beside its peer, the same worker without isolation, in one
run; cells are checked for their answer before they are timed.
"""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from k2core_sandbox.levels import level
from k2core_sandbox.paths import interpreter, packages
from k2core_sandbox.process import Worker
from k2core_sandbox.program import program
from k2core_sandbox.self_test import places
from k2core_sandbox.watchdog import Bounds, Watchdog

pytestmark = pytest.mark.skipif(level().name != "strong", reason=f"no strong sandbox: {level().why}")
STARTS, CELLS, CROWD = 200, 3000, 200
BOMB = """
import os, time
for _ in range(60):
    try:
        if not os.fork():
            held = bytearray(30 << 20)
            with open(str(os.getpid()), "wb") as file:
                while True:
                    file.write(bytes(held))
                    file.seek(0)
    except OSError:
        break
time.sleep(60)
"""


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3


@pytest.fixture
def ground() -> Iterator[tuple[Path, Path]]:
    """A workspace and a staging folder."""
    packages()  # found once per process
    with places() as found:
        yield found


def plain(worker: Path) -> float:
    """Seconds until the same program without isolation has said its first word."""
    started = time.perf_counter()
    arguments = [str(interpreter().executable), "-I", "-S", "-B", str(worker), "0", "1", "/nowhere", "/nowhere", "4096"]
    with subprocess.Popen(arguments, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert len(process.stdout.read(8)) == 8
        took = time.perf_counter() - started
        process.stdin.close()
    return took


def test_start(ground, tmp_path):
    """Start to the first word, sandboxed and plain, alternating; at most 15 ms more at the 95th percentile."""
    workspace, stage = ground
    name, content = program(None)
    peer = tmp_path / Path(name).name
    peer.write_bytes(content)
    isolated, bare = [], []
    for _ in range(STARTS):
        started = time.perf_counter()
        worker = Worker.start(workspace, stage=stage)
        isolated.append(time.perf_counter() - started)
        worker.close()
        bare.append(plain(peer))
    line = "  ".join(
        f"{name} p50 {quantile(v, 0.5):.1f} p95 {quantile(v, 0.95):.1f} ms"
        for name, v in (("strong", isolated), ("plain", bare))
    )
    over = [a - b for a, b in zip(isolated, bare, strict=True)]
    print(f"\nstart: {line}  over plain p50 {quantile(over, 0.5):.1f} p95 {quantile(over, 0.95):.1f} ms")
    assert quantile(over, 0.95) <= 15


def cells(worker: Worker, count: int) -> list[float]:
    """Seconds of each of *count* cells, answers checked."""
    took = []
    for number in range(count):
        started = time.perf_counter()
        cell = worker.run(f"{number} + 1", timeout_s=10)
        took.append(time.perf_counter() - started)
        assert cell.value == str(number + 1)
    return took


def test_cell(ground):
    """The smallest cell, there and back."""
    workspace, stage = ground
    worker = Worker.start(workspace, stage=stage)
    try:
        took = cells(worker, CELLS)
    finally:
        worker.close()
    print(f"\ncell: p50 {quantile(took, 0.5):.3f} p99 {quantile(took, 0.99):.3f} ms")
    assert quantile(took, 0.99) <= 1


def test_crowd():
    """Two hundred sandboxes alive at once, each answering."""
    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        grounds = [stack.enter_context(places()) for _ in range(CROWD)]
        started = time.perf_counter()
        workers = list(threads.map(lambda ground: Worker.start(ground[0], stage=ground[1]), grounds))
        try:
            values = list(threads.map(lambda worker: worker.run("6 * 7", timeout_s=30).value, workers))
            print(f"\ncrowd: {len(workers)} sandboxes answered after {time.perf_counter() - started:.1f} s")
            assert values == ["42"] * CROWD
        finally:
            list(threads.map(Worker.close, workers))


def test_neighbour():
    """Cells of one sandbox alone, and beside one that forks, fills memory and writes without end."""
    with places() as (workspace, stage), places() as (other, other_stage):
        victim, bomber = Worker.start(workspace, stage=stage), Worker.start(other, stage=other_stage)
        try:
            alone = cells(victim, CELLS)
            with Watchdog(bomber, other, Bounds()), ThreadPoolExecutor(1) as thread:
                bomb = thread.submit(bomber.run, BOMB, timeout_s=20)
                time.sleep(0.3)
                beside = cells(victim, CELLS)
                outcome = bomb.result()
        finally:
            victim.close()
            bomber.close()
    before, after = quantile(alone, 0.99), quantile(beside, 0.99)
    print(
        f"\nneighbour: cell p99 {before:.3f} ms alone, {after:.3f} beside a bomb: {after / before:.1f} times; {outcome.error}"
    )
    assert after < 3 * before
