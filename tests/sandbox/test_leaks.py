"""Sandboxes that come and go leave nothing: no process, no descriptor, no mount, no folder."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from k2core_sandbox.process import Worker
from k2core_sandbox.processes import alive, started, tree
from k2core_sandbox.self_test import places

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(100)
"""


def mounts() -> dict[str, int]:
    """How many mounts each of our threads sees: one of them has a namespace of its own."""
    return {task.name: len((task / "mountinfo").read_text().splitlines()) for task in Path("/proc/self/task").iterdir()}


def open_descriptors() -> set[str]:
    """The numbers of our descriptors."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def folders() -> set[str]:
    """Our folders among the temporary ones."""
    return {path.name for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith("k2core-")}


def cycle(seen: dict[int, str | None], kills: bool) -> None:
    """One sandbox, from its start to its end, in the middle of a cell if it *kills*."""
    with places() as (workspace, stage):
        worker = Worker.start(workspace, stage=stage, offered={})
        try:
            assert worker.run(DAEMON, timeout_s=20).status == "ok"
            seen.update({number: started(number) for number in [worker.process.pid, *tree(worker.root)]})
            if kills:
                worker.kill("the test wants it")
        finally:
            worker.close()


@pytest.mark.parametrize("cycles", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_nothing_is_left(strong: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cycles: int) -> None:
    """After many sandboxes, some killed, there are the processes, descriptors, mounts and folders of before."""
    seen: dict[int, str | None] = {}
    cycle(seen, kills=False)  # what is made once is there now
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(prefix="k2core-leaks-"))
    Path(tempfile.gettempdir()).chmod(0o711)
    try:
        descriptors, mounted = open_descriptors(), mounts()
        for number in range(cycles):
            cycle(seen, kills=number % 3 == 0)
        assert folders() == set()
        assert open_descriptors() == descriptors
        assert mounts() == mounted
    finally:
        Path(tempfile.gettempdir()).rmdir()
    left = [number for number, when in seen.items() if when is not None and alive(number) and started(number) == when]
    assert left == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root stages folders")
def test_staged_folders_are_bounded_and_follow_their_path(strong: None, tmp_path: Path) -> None:
    """Workspaces that the user inside cannot reach are bound, few at a time; a folder made anew is the one that is seen."""
    from k2core_sandbox import launcher

    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with places() as (_, stage):
        for number in range(3):
            workspace = hidden / "same"
            workspace.mkdir()
            os.chown(workspace, launcher.USER, launcher.USER)
            (workspace / "number").write_text(str(number))
            started = Worker.start(workspace, stage=stage, offered={})
            try:
                assert started.run("open('number').read()", timeout_s=10).value == repr(str(number))
            finally:
                started.close()
            shutil.rmtree(workspace)
    assert launcher._thread().submit(lambda: len(launcher._binds)).result() <= launcher.KEPT
