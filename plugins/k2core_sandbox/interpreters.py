"""One Python interpreter for each run, in a sandbox of its own, with a workspace that outlives it.

When an interpreter is gone (a cell was killed, the host was restarted) the next cell first repeats the run's earlier cells in
a fresh one and compares what they printed. Where that is not possible, or not the same, the model is told that the variables
are lost.
"""

import contextlib
import hashlib
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from k2core.errors import K2Error, Unavailable
from k2core.interfaces import CallContext, PastCall, ToolOutput
from k2core_sandbox.beneath import Entry, Workspace
from k2core_sandbox.process import LOST, Cell, Kind, Worker
from k2core_sandbox.watchdog import Bounds, Watchdog

CELL_S = 60.0  # deadline of one cell
REPLAY_S = 30.0  # at most this much time of earlier cells is repeated
KEPT = 8  # interpreters at once; the one used longest ago ends first
SHOWN = 8  # files named in one result
ARTEFACT_LIMIT = 4 << 20  # bytes of a file that goes into the journal
ADDRESS = re.compile(r"at 0x[0-9a-f]+")  # of an object; differs from one interpreter to the next
TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@frozen(kw_only=True)
class Settings:
    """What every interpreter of a session has in common.

    Attributes:
        kind: the isolation in force.
        workspace: the folder that the cells may write.
        bounds: of each sandbox.
    """

    kind: Kind
    workspace: Path
    bounds: Bounds = field(factory=Bounds)


@define
class Interpreter:
    """A worker with its watchdog, started by the first cell. One cell at a time."""

    settings: Settings
    workspace: Workspace
    lock: threading.Lock = field(factory=threading.Lock, init=False)
    _open: contextlib.ExitStack = field(factory=contextlib.ExitStack, init=False)
    _worker: Worker | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def run(self, code: str, past: Sequence[PastCall], most_s: float) -> ToolOutput:
        """Run one cell of the model, earlier ones first where they have to be repeated."""
        with self.lock:
            note, fresh = "", False
            if self._worker is None:
                self._start()
                note, fresh = self._restore(past)
            before = {entry.path: entry for entry in self.workspace.entries()[0]}
            cell = self._cell(code, max(0.1, min(CELL_S, most_s)))
            after, _ = self.workspace.entries()
            changed = [entry for entry in after if before.get(entry.path) != entry]
            return self._output(cell, changed, note, fresh)

    def close(self) -> None:
        """End the worker, and with it a cell that is still running; the workspace's files stay."""
        self._closed = True
        if (worker := self._worker) is not None:
            worker.kill("the session ended")
        with self.lock:
            self._end()

    def _start(self) -> None:
        if self._closed:
            raise Unavailable("the session has ended")
        stage = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="k2core-stage-")))
        stage.chmod(0o711)
        try:
            self._worker = Worker.start(self.settings.workspace, stage=stage, kind=self.settings.kind)
        except BaseException:
            self._open.close()
            raise
        self._open.callback(self._worker.close)
        if self._closed:  # while it started
            self._end()
            raise Unavailable("the session has ended")
        self._open.enter_context(Watchdog(self._worker, self.settings.workspace, self.settings.bounds))

    def _end(self) -> None:
        self._worker = None
        self._open.close()

    def _cell(self, code: str, timeout_s: float) -> Cell:
        assert self._worker is not None
        cell = self._worker.run(code, timeout_s=timeout_s)
        if cell.lost:
            self._end()
        return cell

    def _restore(self, past: Sequence[PastCall]) -> tuple[str, bool]:
        """Repeat earlier cells; a line for the model about its variables, and whether they are lost."""
        cells = [call for call in past if call.details.get("cell")]
        fresh = [place for place, call in enumerate(cells) if call.details.get("fresh")]
        cells = cells[fresh[-1] :] if fresh else cells
        cells = [call for call in cells if call.details.get("status") not in LOST]  # what ended an interpreter is not repeated
        if not cells:
            return ("[the interpreter was restarted; it had no variables]" if past else ""), True
        if why := _unrepeatable(cells):
            return f"[the interpreter was restarted and its variables are lost: {why}]", True
        for call in cells:
            cell = self._cell(str(call.arguments.get("code", "")), CELL_S)
            if cell.lost or digest(cell) != call.details.get("digest"):
                if not cell.lost:
                    self._end()
                self._start()
                why = "repeating the earlier cells gave something else"
                return f"[the interpreter was restarted and its variables are lost: {why}]", True
        return f"[the interpreter was restarted; repeating {len(cells)} earlier cells restored its variables]", False

    def _output(self, cell: Cell, changed: Sequence[Entry], note: str, fresh: bool) -> ToolOutput:
        parts = [note, printed(cell)]
        if cell.status == "interrupted":
            parts.append("[interrupted: the variables are kept]")
        elif cell.lost:
            parts.append("[the interpreter ended; its variables are lost unless the cells can be repeated]")
        if changed:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            parts.append(f"[files: {', '.join(f'{one.path} ({one.size} bytes)' for one in changed[:SHOWN])}{more}]")
        text = "\n".join(part for part in parts if part) or "[no output]"
        failed = cell.status != "ok"
        if failed:
            last = (cell.error or cell.status).splitlines()[-1:] or [cell.status]
            text = f"error: {readable(last[0])}\n{text}"
        files: dict[str, bytes] = {}
        for entry in changed[:SHOWN]:
            with contextlib.suppress(K2Error):  # gone or replaced by something else since it was listed
                files[entry.path] = self.workspace.read(entry.path, ARTEFACT_LIMIT)
        details: Mapping[str, Any] = {
            "cell": cell.number,
            "status": cell.status,
            "digest": digest(cell),
            "changed": sum(not one.path.startswith(f"figure-{cell.number}-") for one in changed),
            "fresh": fresh,
            "seconds": cell.seconds,
            "sandbox": self.settings.kind,
        }
        return ToolOutput(text=text, ok=not failed, files=files, details=details)


def _unrepeatable(cells: Sequence[PastCall]) -> str:
    if any(call.details.get("status") not in ("ok", "error") for call in cells):
        return "an earlier cell was interrupted or ended the interpreter"
    if any(call.details.get("changed") for call in cells):
        return "an earlier cell changed files, and to repeat it would change them again"
    if sum(float(call.details.get("seconds", 0)) for call in cells) > REPLAY_S:
        return f"its earlier cells took more than {REPLAY_S:g} s"
    return ""


def printed(cell: Cell) -> str:
    """What the cell printed, its value and its traceback, without terminal sequences."""
    parts = [cell.output.rstrip("\n")]
    if cell.dropped:
        parts.append(f"[cut: {cell.dropped} more bytes were printed]")
    if cell.value is not None:
        parts.append(cell.value)
    if cell.status == "error" and cell.error:
        parts.append(cell.error)
    return readable("\n".join(part for part in parts if part))


def readable(text: str) -> str:
    """The text without terminal sequences; a carriage return, which would overwrite its line on a terminal, is a new line."""
    return TERMINAL.sub("", re.sub("\r+\n?", "\n", text))


def digest(cell: Cell) -> str:
    """A hash of what the cell printed and gave, to tell whether repeating it is the same."""
    said = ADDRESS.sub("at 0x0", repr((cell.status, cell.output, cell.dropped, cell.value)))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


@define
class Interpreters:
    """The interpreters of a session by run, over one workspace."""

    settings: Settings
    workspace: Workspace
    _runs: dict[str, Interpreter] = field(factory=dict, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def of(self, call: CallContext) -> Interpreter:
        """The interpreter of the call's run."""
        with self._lock:
            found = self._runs.pop(call.run, None)
            if found is None:
                found = Interpreter(self.settings, self.workspace)
            self._runs[call.run] = found  # now the one used last
            idle = [run for run, one in self._runs.items() if run != call.run and not one.lock.locked()]
            old = [self._runs.pop(run) for run in idle[: max(0, len(self._runs) - KEPT)]]
        for one in old:
            one.close()
        return found

    def close(self) -> None:
        """End all."""
        with self._lock:
            runs = list(self._runs.values())
            self._runs.clear()
        for one in runs:
            one.close()
