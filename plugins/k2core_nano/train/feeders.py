"""Worker processes that make the shares of coming steps, so that a GPU does not wait for Python.

The trainer's thread takes shares in order; a second thread of the trainer receives what is made and hands out what comes next,
as far ahead as it is known what that contains (`Plan`). A made share is kept under everything that it depends on (`Share`), so
nothing that was made for another phase can be taken for it.

Workers ignore SIGINT and SIGTERM, because only the trainer decides when its last step ends. They end with it: closed by
`Feeders.close`, which also runs when the interpreter exits after an error, and at the end of their pipe however it died.
"""

import atexit
import io
import multiprocessing
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from k2core.errors import K2Error
from k2core_nano.train.feeding import Recipe, Share
from k2core_nano.train.packing import Batch


class Plan:
    """Which shares come next from a step on, in one phase.

    While copying is still mixed into the main phase, a step's share of it is known once all shares before it are counted.

    Args:
        recipe: of the shares.
        step: the first step.
        phase: "copy" or "main".
        main_tokens: document tokens of the main phase before that step.
    """

    def __init__(self, recipe: Recipe, *, step: int, phase: str, main_tokens: int) -> None:
        self.recipe = recipe
        self.step = step
        self.phase = phase
        self.main_tokens = main_tokens  # those counted: never more than there are
        self.uncounted = 0  # shares given out

    def advance(self) -> list[Share]:
        """All shares of the next step, or none while it is not known what they contain."""
        copies = self.recipe.copies(self.phase, self.main_tokens)
        if copies and self.uncounted:
            return []
        step, self.step = self.step, self.step + 1
        self.uncounted += self.recipe.shares
        return [Share(step=step, phase=self.phase, index=index, copies=copies) for index in range(self.recipe.shares)]

    def count(self, document_tokens: int) -> None:
        """A share was made and has so many document tokens."""
        self.uncounted -= 1
        if self.phase == "main":
            self.main_tokens += document_tokens


class Feeders:
    """A `feeding.Source` of all shares of a step, made ahead by workers, which start when the first batch is asked for.

    Args:
        recipe: of the shares.
        count: number of workers.
    """

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.recipe = recipe
        self.count = count
        self.ahead = 2 * (recipe.shares + count)  # shares that are made, or being made, before they are asked for
        self.waited_s = 0.0
        self.processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._closed = False
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        # guards everything below
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._plan: Plan | None = None
        self._planned: set[Share] = set()
        self._queue: deque[Share] = deque()
        self._made: dict[Share, list[Batch]] = {}
        self._failure = ""

    def batches(self, *, step: int, phase: str, main_tokens: int) -> Iterator[Batch]:
        """See `feeding.Source`: the shares of the step in order, after waiting for those that are not made yet.

        Raises:
            K2Error: a worker ended.
        """
        if not self.processes:
            self._start()
        copies = self.recipe.copies(phase, main_tokens)
        shares = [Share(step=step, phase=phase, index=index, copies=copies) for index in range(self.recipe.shares)]
        with self._changed:
            if not self._planned.issuperset(shares):  # the first step of a run or of a phase
                self._plan = Plan(self.recipe, step=step, phase=phase, main_tokens=main_tokens)
                self._planned.clear()
                self._queue.clear()
                self._made.clear()
                self._hand_out()
        for share in shares:
            yield from self._take(share)

    def close(self) -> None:
        """End the workers at once, whatever they are making; they hold nothing that would be lost."""
        self._closed = True
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        if self._receiver.is_alive():
            self._receiver.join()  # it ends at the end of the first pipe
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        atexit.unregister(self.close)

    def _start(self) -> None:
        atexit.register(self.close)  # after multiprocessing's own, so before it: that one would wait for the workers
        context = multiprocessing.get_context("spawn")
        for _ in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self.recipe), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._connections.append(ours)
        self._idle = list(self._connections)
        self._receiver.start()

    def _take(self, share: Share) -> list[Batch]:
        started = time.monotonic()
        with self._changed:
            while share not in self._made:
                if self._failure:
                    raise K2Error(
                        f"cannot make the batches of step {share.step}: {self._failure} (its own error stands above, if it had "
                        "one). Resume from the last checkpoint, with fewer --feeders if memory ran out."
                    )
                self._changed.wait()
            self._planned.discard(share)
            batches = self._made.pop(share)
            self._hand_out()
        self.waited_s += time.monotonic() - started
        return batches

    def _hand_out(self) -> None:
        # called with the lock held
        while self._plan is not None and len(self._planned) < self.ahead and (shares := self._plan.advance()):
            self._planned.update(shares)
            self._queue.extend(shares)
        while self._idle and self._queue:
            with suppress(OSError):  # a feeder that ended; the receiver says so
                self._idle.pop().send(self._queue.popleft())

    def _receive(self) -> None:
        ended = None
        try:
            while ended is None:
                for connection in wait(self._connections):
                    assert isinstance(connection, Connection)
                    try:
                        share, batches = pickle.loads(connection.recv_bytes())
                    except (EOFError, OSError):
                        ended = self.processes[self._connections.index(connection)]
                        break
                    self._keep(connection, share, batches)
        finally:  # nobody may wait for this thread any longer, whatever ended it
            if ended is not None and not self._closed:
                ended.join(timeout=10)  # its pipe ends before its exit code is there
            with self._changed:
                self._failure = "the receiver failed" if ended is None else f"a feeder ended with exit code {ended.exitcode}"
                self._changed.notify_all()

    def _keep(self, connection: Connection, share: Share, batches: list[Batch]) -> None:
        with self._changed:
            self._idle.append(connection)
            if self._plan is not None and share in self._planned and share not in self._made:
                self._made[share] = batches
                self._plan.count(sum(batch.document_tokens for batch in batches))
            self._hand_out()
            self._changed.notify_all()


def _work(connection: Connection, recipe: Recipe) -> None:
    """Make shares for as long as somebody asks for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            share = connection.recv()
        except (EOFError, OSError):
            return
        made = _pickled((share, list(recipe.make(share))))
        try:
            connection.send_bytes(made)
        except OSError:
            return


class _Pickler(pickle.Pickler):
    """Sends tensors as arrays; torch's own way is a file descriptor for each."""

    def reducer_override(self, value: Any) -> Any:
        return (_tensor, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)


def _pickled(value: tuple[Share, Sequence[Batch]]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()
