"""The host's side of one sandbox: start the worker, run cells in it, interrupt, kill, and leave nothing behind.

What comes out is data, never trusted: frames are bounded and parsed strictly, and a worker that says anything else is killed.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from attrs import define, field, frozen

from k2core.errors import Unavailable
from k2core_sandbox import bubblewrap, landlock, wasm
from k2core_sandbox.launcher import launch
from k2core_sandbox.paths import Interpreter, packages
from k2core_sandbox.plans import Ends, Inside, Plan
from k2core_sandbox.processes import end_below

FRAME_LIMIT = 1 << 20  # bytes of one reply
OUTPUT_KEPT = 1 << 20  # bytes of one cell's output that are kept; the rest is read and dropped
DRAINED = 32  # reads of output after a cell's end: more than a pipe holds, and an end where something prints on
START_S = 15.0
GRACE_S = 2.0  # between SIGINT and SIGKILL
PLANS: dict[str, Callable[[Inside, Ends], Plan]] = {
    "strong": bubblewrap.plan, "wasm": wasm.plan, "reduced": landlock.plan,
}  # fmt: skip


class Reply(msgspec.Struct, forbid_unknown_fields=True):
    """A frame of the worker."""

    cell: int
    status: Literal["ok", "error", "interrupted", "exit"]
    value: str | None
    error: str | None


Kind = Literal["strong", "wasm", "reduced"]
LOST = ("killed", "died", "exit")  # the variables are gone
Status = Literal["ok", "error", "interrupted", "exit", "killed", "died"]


@frozen(kw_only=True)
class Cell:
    """What became of one cell.

    Attributes:
        number: counted from 1 in each worker.
        status: ``killed`` by us (deadline or limits) or ``died`` by itself; see `lost`.
        output: what it printed, terminal sequences included, invalid UTF-8 replaced.
        dropped: bytes of output beyond what is kept.
        value: repr of the last expression.
        error: traceback, or why it was killed.
        seconds: wall time.
    """

    number: int
    status: Status
    output: str
    dropped: int = 0
    value: str | None = None
    error: str | None = None
    seconds: float

    @property
    def lost(self) -> bool:
        """Whether the worker is gone, and the variables with it."""
        return self.status in LOST


@define
class Worker:
    """A running worker. Use from one thread at a time; `kill` may come from any."""

    process: subprocess.Popen[bytes]
    first: int  # pidfd of the sandbox's first process: its end is the end of all
    worker: int  # pidfd of the worker
    requests: int
    replies: int
    output: int
    root: int  # number of the sandbox's first process, for the watchdog
    cells: int = 0
    why_killed: str = ""
    folders: tuple[Path, ...] = ()  # on the disk, that it may write beside the workspace
    in_memory: tuple[str, ...] = ()  # file systems in memory that it may write, by their place inside
    gathers: bool = False  # no namespace ends what it started: we do
    _lock: threading.Lock = field(factory=threading.Lock)
    _closed: bool = False

    @classmethod
    def start(
        cls,
        workspace: Path,
        *,
        stage: Path,
        kind: Kind = "strong",
        python: Interpreter | None = None,
        offered: Mapping[str, Path] | None = None,
    ) -> "Worker":
        """Start a worker.

        Args:
            workspace: the folder it may write; as root it must belong to `launcher.USER`.
            stage: an empty folder that everyone may enter, for this worker's use until it ends.
            kind: the isolation; whether it holds on this machine is for `levels` to say.
            python: the interpreter inside; ours by default.
            offered: packages inside; those of `paths.OFFERED` by default.

        Raises:
            Unavailable: it did not start, with what it said.
        """
        ours: list[int] = []
        theirs: list[int] = []
        try:
            requests_in, requests = _pipe(theirs, ours)
            replies, replies_out = _pipe(ours, theirs)
            output, output_out = _pipe(ours, theirs)
            info, info_out = _pipe(ours, theirs)
            ends = Ends(requests=requests_in, replies=replies_out, info=info_out, descriptors=theirs)
            offered = packages() if offered is None else offered
            plan = PLANS[kind](Inside(workspace=workspace, stage=stage, python=python, packages=offered), ends)
            process = launch(
                plan.build,
                change_user=plan.change_user,
                env=plan.environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output_out,
                stderr=output_out,
                pass_fds=[fd for fd in theirs if fd != output_out],
                start_new_session=True,
            )
        except BaseException as error:
            _close(ours)
            if isinstance(error, OSError):
                raise Unavailable(f"the sandbox could not be started: {error}") from error
            raise
        finally:
            _close(theirs)
        started = cls(process, -1, -1, requests, replies, output, 0)
        started.folders, started.in_memory, started.gathers = plan.folders, plan.in_memory, not plan.tells
        try:
            started._meet(info if plan.tells else None)
        except BaseException:
            started.close()
            raise
        finally:
            os.close(info)
        return started

    def _meet(self, info: int | None) -> None:
        """Learn the process numbers, from bubblewrap where there is one, and hear the worker's first word."""
        until = time.monotonic() + START_S
        said = b""
        with contextlib.suppress(_Silent):
            while info is not None and not said.endswith(b"}\n"):
                said += self._read(info, 4096, until)
        try:
            self.root = self.process.pid if info is None else int(json.loads(said)["child-pid"])
            self.first = os.pidfd_open(self.root)
            reply = self._reply(until)
            children = Path(f"/proc/{self.root}/task/{self.root}/children").read_text().split()
            self.worker = os.pidfd_open(self.root if info is None else int(children[0]))
        except (ValueError, KeyError, IndexError, OSError, _Silent, msgspec.MsgspecError) as error:
            text = self._heard()[0].strip() or f"{type(error).__name__}: {error}"
            raise Unavailable(f"the sandbox did not start: {text[-600:]}") from error
        if reply.cell != 0:
            raise Unavailable("the sandbox did not start: its worker's first word was something else")

    def run(self, code: str, *, timeout_s: float) -> Cell:
        """Run one cell; SIGINT after *timeout_s* seconds, SIGKILL `GRACE_S` later."""
        self.cells += 1
        number, started = self.cells, time.monotonic()
        output, dropped = bytearray(), 0
        reply: Reply | None = None
        status: Status = "died"
        try:
            body = code.encode("utf-8", "surrogatepass")
            self._write(len(body).to_bytes(4, "big") + body, started + timeout_s + GRACE_S)
            interrupted = False
            frame = bytearray()
            while reply is None:
                now = time.monotonic()
                until = started + timeout_s + (GRACE_S if interrupted else 0.0)
                if now >= until and interrupted:
                    self.kill(f"it ran longer than {timeout_s:g} s and did not stop when interrupted")
                    break
                if now >= until:
                    signal.pidfd_send_signal(self.worker, signal.SIGINT)
                    interrupted = True
                    continue
                ready, _, _ = select.select([self.output, self.replies, self.worker], [], [], max(0.0, until - now))
                if self.output in ready:
                    dropped += _take(self.output, output)
                if self.replies in ready:
                    more = os.read(self.replies, 65536)
                    if not more:
                        break
                    frame += more
                    reply = _parsed(frame, number)
                elif self.worker in ready:
                    break  # it ended; a process that it left may hold its pipes open
            if reply is not None:
                status = reply.status
        except (OSError, _Silent):
            status = "died"
        except msgspec.MsgspecError:
            self.kill("it forged a reply")
        if reply is None:
            self._end()
        for _ in range(DRAINED):
            if not select.select([self.output], [], [], 0)[0]:
                break
            before = len(output)
            more_dropped = _take(self.output, output)
            dropped += more_dropped
            if len(output) == before and not more_dropped:
                break
        if self.why_killed:
            status = "killed"
        error = self.why_killed or (reply.error if reply else "the interpreter ended")
        return Cell(
            number=number,
            status=status,
            output=output.decode("utf-8", "replace"),
            dropped=dropped,
            value=reply.value if reply else None,
            error=error,
            seconds=round(time.monotonic() - started, 6),
        )

    def kill(self, why: str) -> None:
        """End every process of the sandbox at once."""
        with self._lock:
            if self._closed or self.why_killed:
                return
            self.why_killed = why
            self._signal()

    def _signal(self) -> None:
        """SIGKILL to the first process inside, with which the kernel ends all; what is outside then reaps it and ends too."""
        if self.first < 0:
            self.process.kill()
            return
        try:
            if self.gathers:
                end_below(self.root)
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)

    def close(self) -> None:
        """End it and give everything back; a second time does nothing."""
        if self._closed:  # its descriptors may be somebody else's by now
            return
        self.kill("closed")
        self._end()
        with self._lock:
            if not self._closed:
                self._closed = True
                _close([fd for fd in (self.first, self.worker, self.requests, self.replies, self.output) if fd >= 0])

    def _end(self) -> None:
        """Wait until the processes are gone; they are killed first."""
        self._signal()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _reply(self, until: float) -> Reply:
        frame = bytearray()
        while True:
            frame += self._read(self.replies, 65536, until)
            reply = _parsed(frame, 0)
            if reply is not None:
                return reply

    def _read(self, descriptor: int, size: int, until: float) -> bytes:
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise _Silent("it said nothing")
        data = os.read(descriptor, size)
        if not data:
            raise _Silent("it ended")
        return data

    def _write(self, data: bytes, until: float) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self.requests], [], max(0.0, until - time.monotonic()))[1]:
                raise _Silent("it does not listen")
            view = view[os.write(self.requests, view[: select.PIPE_BUF]) :]

    def _heard(self) -> tuple[str, int]:
        output = bytearray()
        dropped = 0
        while select.select([self.output], [], [], 0.2)[0]:
            before = len(output)
            dropped += _take(self.output, output)
            if len(output) == before:
                break
        return output.decode("utf-8", "replace"), dropped


class _Silent(Exception):
    """The other side does not answer."""


def _parsed(frame: bytearray, number: int) -> Reply | None:
    """The reply once its frame is complete.

    Raises:
        msgspec.MsgspecError: it is too long, not of the form, not for this cell, or something follows it.
    """
    if len(frame) < 4:
        return None
    size = int.from_bytes(frame[:4], "big")
    if size > FRAME_LIMIT or len(frame) > 4 + size:
        raise msgspec.ValidationError("a reply that is too long")
    if len(frame) < 4 + size:
        return None
    reply = msgspec.json.decode(bytes(frame[4:]), type=Reply)
    if reply.cell != number:
        raise msgspec.ValidationError("a reply for another cell")
    return reply


def _take(descriptor: int, into: bytearray) -> int:
    """Read once, keep what still fits; how many bytes were dropped."""
    data = os.read(descriptor, 65536)
    room = max(0, OUTPUT_KEPT - len(into))
    into += data[:room]
    return len(data) - min(room, len(data))


def _pipe(reader: list[int], writer: list[int]) -> tuple[int, int]:
    read, write = os.pipe()
    reader.append(read)
    writer.append(write)
    return read, write


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
