"""Whose words reach the terminal: ours. What plugins, tools and their child processes print is caught.

From `kept_output` on, ``sys.stdout`` and ``sys.stderr`` write to copies of the real descriptors, and descriptors 1 and 2 lead
into a pipe that is read here: neither ``print`` in a tool, nor ``os.write(1, …)``, nor a child process that inherits them can
break the JSON on stdout or tear the display on stderr.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from k2core.cli.text import counted

KEPT_LINES = 5  # of what is printed between two looks
_LINE_BYTES = 400
_READS = 64  # of 64 KiB at a time: somebody who prints without end must not hold up who looks


class Caught:
    """Lines that somebody else printed; the same little memory however much that is. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lines: list[str] = []
        self._more = 0
        self._open = b""
        self._pipe: int | None = None

    def listen(self, pipe: int) -> None:
        """Read from *pipe* too, for good."""
        os.set_blocking(pipe, False)
        self._pipe = pipe
        threading.Thread(target=self._read_on, args=(pipe,), name="k2core-caught", daemon=True).start()

    def add(self, data: bytes) -> None:
        """Something was printed."""
        with self._lock:
            self._pull()  # what came before it
            self._add(data)

    def take(self) -> list[str]:
        """What was printed since the last look: the first lines, and how many more there were."""
        with self._lock:
            self._pull()
            self._end_line(b"")
            more = [f"… and {counted(self._more, 'more line')}"] if self._more else []
            found, self._lines, self._more = self._lines + more, [], 0
            return found

    def log(self) -> None:
        """What was printed goes to the log."""
        lines = self.take()
        if lines:
            import structlog

            structlog.get_logger().info("output.caught", lines=lines)

    def _add(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._end_line(line[:_LINE_BYTES])
        self._open = (self._open + rest[:_LINE_BYTES])[:_LINE_BYTES]

    def _end_line(self, end: bytes) -> None:
        line, self._open = (self._open + end)[:_LINE_BYTES].decode("utf-8", "replace").strip(), b""
        if line and len(self._lines) < KEPT_LINES:
            self._lines.append(line)
        elif line:
            self._more += 1

    def _pull(self) -> None:
        for _ in range(_READS if self._pipe is not None else 0):
            try:
                data = os.read(self._pipe or 0, 65536)
            except BlockingIOError:
                return
            self._add(data)

    def _read_on(self, pipe: int) -> None:
        import select

        while True:
            select.select([pipe], [], [])
            with self._lock:
                self._pull()


class Guard:
    """A stdout or stderr of ours: what other threads, coroutines and plugins being loaded write is caught."""

    def __init__(self, inner: Any, caught: Caught) -> None:
        self.inner, self._caught = inner, caught

    @property
    def buffer(self) -> "Guard":
        """The stream of bytes below, guarded too."""
        return Guard(self.inner.buffer, self._caught)

    def write(self, data: Any) -> int:
        """As a stream does."""
        if not _is_strangers():
            written: int = self.inner.write(data)
            return written
        self._caught.add(data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data))
        return len(data)

    def writelines(self, lines: Any) -> None:
        """As a stream does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


_loading = False
_for_good: Caught | None = None  # of a process whose real descriptors are caught


def ours(stream: Any) -> Any:
    """What *stream* guards, for code of ours that writes from other threads or from within an event loop."""
    return stream.inner if isinstance(stream, Guard) else stream


@contextmanager
def strangers_code() -> Iterator[None]:
    """Within, what this thread prints is not ours: plugins are being imported or made."""
    global _loading
    before, _loading = _loading, True
    try:
        yield
    finally:
        _loading = before


@contextmanager
def kept_output() -> Iterator[Caught]:
    """Within, stdout and stderr are ours alone; gives what others print.

    A process's real descriptors stay caught for good: a tool that outlives its deadline may print later.
    """
    global _for_good
    if isinstance(sys.stdout, Guard) and _for_good is not None:
        yield _for_good
        return
    caught = Caught()
    outer = sys.stdout, sys.stderr
    if os.name == "posix" and sys.stdout is not None and sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
        sys.stdout, sys.stderr = _take_descriptors(caught)
        _for_good = caught
        yield caught
        return
    sys.stdout, sys.stderr = Guard(outer[0], caught), Guard(outer[1], caught)
    try:
        yield caught
    finally:
        sys.stdout, sys.stderr = outer


@contextmanager
def typing() -> Iterator[None]:
    """Within, the terminal is as it was: editing a line needs the real descriptors."""
    if _for_good is None:
        yield
        return
    guards, pipes = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    for guard, descriptor in zip(guards, (1, 2), strict=True):
        guard.flush()
        os.dup2(guard.fileno(), descriptor)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    try:
        yield
    finally:
        for descriptor, pipe in zip((1, 2), pipes, strict=True):
            os.dup2(pipe, descriptor)
            os.close(pipe)
        sys.stdout, sys.stderr = guards


def _take_descriptors(caught: Caught) -> tuple[Guard, Guard]:
    import atexit

    guards = []
    reading, writing = os.pipe()
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        copy = open(  # noqa: SIM115, PTH123  # open as long as the process
            os.dup(stream.fileno()),
            "w",
            buffering=1 if descriptor == 2 or stream.isatty() else -1,
            encoding=stream.encoding,
            errors=stream.errors,
        )
        os.dup2(writing, descriptor)
        guards.append(Guard(copy, caught))
    os.close(writing)
    caught.listen(reading)
    atexit.register(_let_go, guards[1].fileno())
    return guards[0], guards[1]


def _let_go(stderr: int) -> None:
    # nobody reads the pipe any more: what is left in buffers must not block the end of the process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(stderr, 2)


def _is_strangers() -> bool:
    if _loading or threading.current_thread() is not threading.main_thread():
        return True
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
