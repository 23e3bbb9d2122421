"""Threads that help the one that runs a forward, one crew for all models of the process.

A helper is a Python thread that enters compiled code and stays there: it sleeps in a semaphore of the system and needs no
interpreter to begin, so it can be woken while the forward is still being prepared, which hides the time that waking takes
(25 to 50 us on a virtual machine). How pieces of work are shared: `k2core_kernels.numba.crew`.

It helps under `runtime.LOCK` only, since the thread that holds it publishes the jobs, and it never enters a parallel region.
"""

import contextlib
import ctypes
import os
import threading
from typing import Any

import numpy as np

from k2core_numba.runtime import kernels

MOST = 128  # helpers
_lock = threading.Lock()
_crews: "list[Crew | None]" = []  # the one of this process, once somebody asked; None where there can be none


class Crew:
    """Helpers of this process. They live as long as it does.

    Attributes:
        board: address of the board.
    """

    def __init__(self, library: Any) -> None:
        """A crew without helpers.

        Raises:
            OSError: the system has no semaphores of this kind.
        """
        layout, self._kernels = kernels("crew"), kernels()
        words = (layout.HELPERS + MOST * layout.HELPER + layout.LINE) // 8
        self._memory = np.zeros(words, np.int64)
        self.board = -(-self._memory.ctypes.data // layout.LINE) * layout.LINE
        for place, name in ((layout.POST, "sem_post"), (layout.WAIT, "sem_wait"), (layout.YIELD, "sched_yield")):
            self._write(place, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        if hasattr(library, "sched_getcpu") and hasattr(os, "sched_setaffinity"):
            self._write(layout.CORE, ctypes.cast(library.sched_getcpu, ctypes.c_void_p).value)
        for helper in range(MOST):
            place = self.board + layout.HELPERS + helper * layout.HELPER + layout.LINE
            if library.sem_init(ctypes.c_void_p(place), 0, 0) != 0:
                raise OSError("sem_init failed")
        self._threads: list[int] = []  # of the system
        self._core = -1

    def hire(self, helpers: int) -> None:
        """Have at least this many helpers, `MOST` at most."""
        if helpers <= len(self._threads):
            return
        with _lock:
            while len(self._threads) < min(helpers, MOST):
                ready = threading.Event()
                threading.Thread(target=self._serve, args=(ready,), name="k2core-helper", daemon=True).start()
                ready.wait()
                self._core = -1

    def wake(self, helpers: int) -> None:
        """Wake helpers for a job that will be published soon; they look for it for about 300 us."""
        core = self._kernels.wake(self.board, min(helpers, len(self._threads)))
        if core != self._core:
            self._core = core
            self._leave(core)

    def _leave(self, core: int) -> None:
        """Keep helpers off the core of the thread that they help: the scheduler wakes them there where both ran in turn, and
        they get the core only once the work is done (measured on Linux 6.18: no gain at all for seconds)."""
        with contextlib.suppress(OSError):  # a sandbox may forbid it; helpers run where the scheduler wants them then
            others = os.sched_getaffinity(0) - {core}
            for thread in self._threads if others else ():
                os.sched_setaffinity(thread, others)

    def _serve(self, ready: threading.Event) -> None:
        helper = len(self._threads)
        self._threads.append(threading.get_native_id())
        ready.set()
        self._kernels.serve(self.board, helper)

    def _write(self, place: int, value: int | None) -> None:
        assert value is not None
        self._memory[(self.board + place - self._memory.ctypes.data) // 8] = value


def crew() -> Crew | None:
    """The crew of this process; None where the system has no semaphores that compiled code can wait for."""
    with _lock:
        if not _crews:
            try:
                _crews.append(Crew(ctypes.CDLL(None)))
            except (AttributeError, OSError, TypeError):  # no such function, or no library of this name
                _crews.append(None)
        return _crews[0]


def _forget() -> None:
    """In a forked process there are no helpers: their threads stayed behind."""
    global _lock
    _lock = threading.Lock()
    _crews.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
