"""One new token of each of some sequences, in forwards of a few fixed shapes, which a CUDA graph may repeat.

Both sizes of a shape, sequences and pages, are powers of two; what is over pads. All that changes from one forward to the next
is one small tensor, so that a recorded graph is told everything by one copy.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from attrs import define, field

from k2core.errors import K2Error
from k2core.model.sequences import Batch
from k2core_torch.caching import LEAST
from k2core_torch.computing import is_memory
from k2core_torch.paged import Paged, Pages, Places

Tensor = torch.Tensor
RECORDING = Lock()  # CUDA records one graph at a time in a process
LEAST_WIDTH = 4  # pages of a shape
TOKEN, POSITION, LENGTH, TABLE = range(4)  # columns of what a shape is given; the table goes on to the end


@define(eq=False)
class Shape:
    """One of the shapes.

    Attributes:
        given: (sequences, 3 + pages) int32: token id, position, length with the new token, page numbers.
        graph: recorded; None before the first time, and where nothing is recorded.
        outcome: what the graph writes.
    """

    given: Tensor
    graph: Any = None
    outcome: Any = None


Compute = Callable[[Tensor, Tensor, Places], Any]


@define(eq=False)
class Decoder:
    """Forwards of fixed shapes.

    Attributes:
        compute: the forward of ids (sequences,), positions (sequences,) and places; reads nothing back from the device.
        pages: the cache.
        device: of all tensors.
        records: on CUDA, each shape is recorded when it first occurs, and replayed from then on.
    """

    compute: Compute
    pages: Paged
    device: str
    records: bool
    _shapes: dict[tuple[int, int], Shape] = field(factory=dict, init=False)
    _pool: Any = field(default=None, init=False)  # memory that all graphs share; it ends with the last of them
    _stream: Any = field(default=None, init=False)  # on which all are recorded: each stream has memory of its own

    def __attrs_post_init__(self) -> None:
        self.pages.moves = self.clear  # graphs hold the addresses of pages

    def run(self, new: Batch[Pages]) -> Any:
        """What `compute` gives, the rows of padding at the end; valid until the next run.

        Raises:
            K2Error: the device does not take the recording.
        """
        rows, width = _power(len(new.ids)), max(LEAST_WIDTH, _power(max(len(one.numbers) for one in new.sequences)))
        shape = self._shapes.get((rows, width))
        if shape is None:
            given = torch.zeros((rows, TABLE + width), dtype=torch.int32, device=self.device)
            self._shapes[rows, width] = shape = Shape(given)
        lines = [
            [token, one.length, one.length + 1, *one.numbers, *[0] * (width - len(one.numbers))]
            for token, one in zip(new.ids, new.sequences, strict=True)
        ]
        lines += [[0] * (TABLE + width)] * (rows - len(lines))
        shape.given.copy_(torch.tensor(lines, dtype=torch.int32))
        if not self.records:
            return self._once(shape.given)
        if shape.graph is None:
            self._record(shape)
        shape.graph.replay()
        return shape.outcome

    def clear(self) -> None:
        """Let go of everything that was recorded."""
        self._shapes.clear()
        self._pool = None

    def _once(self, given: Tensor) -> Any:
        positions, table = given[:, POSITION].to(torch.int64), given[:, TABLE:].contiguous()
        page = table.gather(1, (positions // LEAST)[:, None])[:, 0].to(torch.int64)
        places = Places(written=page * LEAST + positions % LEAST, few=None, table=table, lengths=given[:, LENGTH].contiguous())
        return self.compute(given[:, TOKEN].to(torch.int64), positions, places)

    def _record(self, shape: Shape) -> None:
        """Run once, so that kernels are compiled and libraries set up, then record; both write what the replay writes.

        Raises:
            K2Error: as of `run`; nothing that was recorded is kept then.
        """
        with RECORDING:
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._once(shape.given)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    shape.outcome = self._once(shape.given)
            except RuntimeError as error:
                self.clear()
                if is_memory(error):
                    raise
                raise K2Error(
                    f"the torch backend cannot record a CUDA graph of {len(shape.given)} sequences: "
                    f"{' '.join(str(error).split())[:200]}. K2CORE_TORCH_PATH=kernels goes without."
                ) from error
            shape.graph = graph


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
