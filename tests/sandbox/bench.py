"""Runs attacks at a level or in a weaker set-up, and says what got through.

    python -m sandbox.bench SETUP [PYTHON PREFIX]

says as JSON which level there is and why, then reads names of attacks, one a line, and answers each with a verdict, or with
what this machine lacks for it. It is a process of its own, so that it may be another user's, and so that what it puts into its
environment, its keyring and its descriptors stays there.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

import msgspec
from attrs import asdict, frozen
from sandbox.cases import HELPERS, Case
from sandbox.control import Uncontrolled
from sandbox.corpus import CASES
from sandbox.outside import Outside

from k2core.errors import ToolError
from k2core_sandbox import launcher, levels, process
from k2core_sandbox.beneath import Workspace
from k2core_sandbox.interpreters import ARTEFACT_LIMIT
from k2core_sandbox.paths import Interpreter, packages
from k2core_sandbox.process import Cell, Worker
from k2core_sandbox.processes import alive, tree
from k2core_sandbox.watchdog import Bounds, Watchdog

Setup = Literal["strong", "wasm", "reduced", "plain", "rooted"]
LEVELS = {"strong": levels.strong, "wasm": levels.in_wasm, "reduced": levels.reduced}
BOUNDS = Bounds(memory=384 << 20, disk=64 << 20, files=1000, every_s=0.04)
SLACK_S = 4.0  # beyond deadline and grace, on a busy machine
SETTINGS = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/sys/kernel/uevent_helper", "/proc/sysrq-trigger")
HARMLESS_SETTINGS = ("/proc/sys/kernel/hostname",)


@frozen
class Verdict:
    """What became of one attack: how it got through (nothing is best), what its cell said, whether its worker was lost."""

    through: list[str]
    said: str
    lost: bool
    seconds: float


class Bench:
    """One outside and, for each attack that took it along, a fresh inside."""

    def __init__(self, setup: Setup, python: Interpreter | None = None) -> None:
        self.setup, self.python = setup, python
        process.GRACE_S = 0.5  # many cells do not stop when interrupted
        self.outside = Outside()
        self._open = contextlib.ExitStack()
        self.worker: Worker | None = None
        self.control: Uncontrolled | None = None

    def attack(self, case: Case) -> Verdict:
        """Run one attack; the host judges."""
        worker = self._started()
        started = time.monotonic()
        self._prepare(worker, case)
        meanwhile = self.outside.meanwhile(0.6) if case.called else None
        controlled = self.setup in LEVELS
        allowed = case.timeout_s + process.GRACE_S + SLACK_S
        cell = worker.run(case.code, timeout_s=case.timeout_s)
        if meanwhile is not None:
            meanwhile.join()
        found = self.outside.findings(case, cell, self.workspace)
        if cell.seconds > allowed or (not controlled and (cell.status == "interrupted" or "did not stop" in worker.why_killed)):
            found.append(f"it ran for {cell.seconds:.1f} s and was allowed {case.timeout_s:g} s")
        if case.says and cell.value == "True":
            found.append("it says so")
        if case.collected:
            found += self._collected()
        if case.ends or cell.lost:
            found += self._end()
        else:
            self._clear()
        said = f"{cell.status}: {cell.output[-300:]!r} {cell.value!s:.200} {(cell.error or '')[-300:]}"
        return Verdict(through=found, said=said, lost=cell.lost, seconds=round(time.monotonic() - started, 3))

    def _started(self) -> Worker:
        if self.worker is not None and self.worker.why_killed:  # by the watchdog, since the cell before
            self._end()
        if self.worker is not None:
            return self.worker
        folder = Path(tempfile.mkdtemp(prefix="k2core-bench-"))
        self._open.callback(remove, folder)
        folder.chmod(0o711)
        self.workspace, stage = folder / "workspace", folder / "stage"
        self.workspace.mkdir(mode=0o700)
        stage.mkdir(mode=0o711)
        if not os.geteuid():
            os.chown(self.workspace, launcher.USER, launcher.USER)
        offered = {**packages(), "offered": self.outside.package}
        if self.setup in LEVELS:
            self.worker = Worker.start(self.workspace, stage=stage, kind=self.setup, python=self.python, offered=offered)
            self._open.callback(self.worker.close)
            self._open.enter_context(Watchdog(self.worker, self.workspace, BOUNDS))
        else:
            self.control = Uncontrolled(self.setup, self.outside, self.workspace, stage, offered)
            self.worker = self.control.worker
            self._open.callback(self.control.close)
        c_library = "libc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall.restype = ctypes.c_long\n"
        helpers = HELPERS.replace(c_library, "") if self.setup == "wasm" else HELPERS  # there is none to open there
        self._expect(self.worker.run(helpers, timeout_s=20))
        return self.worker

    def _prepare(self, worker: Worker, case: Case) -> None:
        """Tell the inside where everything is (the victim may be another one now), and plant what the case needs."""
        names = self.outside.names(SETTINGS if self.setup in LEVELS else HARMLESS_SETTINGS)
        self._expect(worker.run("\n".join(f"{name} = {value!r}" for name, value in names.items()), timeout_s=20))
        if self.control is not None:
            self.control.remember()
        if case.plants == "rooted" and not os.geteuid():
            shutil.copy("/bin/cat", self.workspace / "rooted")
            (self.workspace / "rooted").chmod(0o4755)
            (self.workspace / "of-root").write_text(self.outside.tokens["file of root"])
            (self.workspace / "of-root").chmod(0o600)

    @staticmethod
    def _expect(cell: Cell) -> None:
        assert cell.status == "ok", f"the bench itself failed: {cell}"

    def _collected(self) -> list[str]:
        """What the collector of files gets wrong: ours at a level, a naive one elsewhere."""
        found: list[str] = []
        contents: dict[str, bytes] = {}
        reader = self._read_ours if self.setup in LEVELS else self._read_naively
        failures: list[BaseException] = []

        def collect() -> None:
            try:
                reader(contents)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(3.0)
        if thread.is_alive():
            found.append("the collector hangs")
            for path in self.workspace.glob("*"):
                if path.is_fifo():
                    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        found += [f"the collector failed: {error!r:.200}" for error in failures]
        for name, content in contents.items():
            if len(content) > ARTEFACT_LIMIT:
                found.append(f"{len(content)} bytes of {name!r:.40} were collected")
            found += [
                f"the token of '{of}' was collected" for of, token in self.outside.tokens.items() if token.encode() in content
            ]
            if not name.isprintable():
                found.append(f"the name {name!r:.40} was collected")
        if (self.workspace / ".envrc").exists() and ".envrc" not in contents:
            found.append("hidden files were not told")
        return found

    def _read_ours(self, contents: dict[str, bytes]) -> None:
        workspace = Workspace.open(self.workspace)
        try:
            for entry in workspace.entries()[0]:
                with contextlib.suppress(ToolError):
                    contents[entry.path] = workspace.read(entry.path, ARTEFACT_LIMIT)
        finally:
            workspace.close()

    def _read_naively(self, contents: dict[str, bytes]) -> None:
        for path in self.workspace.glob("*"):
            if path.name.startswith("."):
                continue
            for file in sorted(path.rglob("*")) + sorted(path.glob("secret")) if path.is_dir() else [path]:
                if not file.is_dir():
                    with file.open("rb") as open_file:
                        contents[str(file.relative_to(self.workspace))] = open_file.read(ARTEFACT_LIMIT + 1)

    def _clear(self) -> None:
        """Empty the workspace."""
        for path in self.workspace.iterdir():
            remove(path)

    def _end(self) -> list[str]:
        """End the inside; what is left of it got through."""
        found: list[str] = []
        worker = self.worker
        if worker is None:
            return found
        if self.control is not None:
            self.control.remember()
        members = tree(worker.root)
        if self.control is not None and not self.control.ends():
            found.append("it did not end when asked")
        left = [] if self.control is None else self.outside.left_processes()
        started = time.monotonic()
        (self.control or worker).close()
        if time.monotonic() - started > SLACK_S:
            found.append("it took long to end")
        self._open.close()
        self.worker = self.control = None
        until = time.monotonic() + SLACK_S  # what was killed may still be giving back its memory
        while any(alive(number) for number in members) and time.monotonic() < until:
            time.sleep(0.02)
        left += self.outside.left_processes() + [number for number in members if alive(number)]
        if left:
            found.append(f"{len(set(left))} processes are left")
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, 9)
        return found

    def close(self) -> None:
        """End the inside and remove the outside."""
        self._end()
        self.outside.close()


def remove(path: Path) -> None:
    """Remove a file or a tree of any depth."""
    subprocess.run(["/bin/rm", "-rf", "--", str(path)], check=True)


def main() -> None:
    """Say what level there is, then serve verdicts."""
    setup = msgspec.convert(sys.argv[1], Setup)
    python = Interpreter(executable=Path(sys.argv[2]), prefix=Path(sys.argv[3])) if len(sys.argv) > 2 else None
    if setup in LEVELS:
        found = LEVELS[setup](python)
        print(json.dumps([found.name, found.why]), flush=True)
    else:
        print(json.dumps([setup, "no isolation"]), flush=True)
    bench = Bench(setup, python)
    try:
        for line in sys.stdin:
            case = CASES[line.strip()]
            missing = bench.outside.missing(case) if setup in ("plain", "rooted") else ""
            print(json.dumps(missing if missing else asdict(bench.attack(case))), flush=True)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
