"""The latent cache of the kernels' way: pages of 64 positions, one tensor of pages per layer for all sequences.

Page 0 is nobody's: what pads a batch is written there.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from attrs import define, field, frozen

from k2core.interfaces import Numerics
from k2core.model.config import Geometry
from k2core.model.sequences import Batch
from k2core_torch.attention import AttentionWeights
from k2core_torch.attention_fast import attend_fast, attend_paged
from k2core_torch.caching import LEAST, Attention, cache_type
from k2core_torch.computing import is_memory

Tensor = torch.Tensor
FEW = 8  # new tokens of one sequence that the kernel for decoding takes
FIRST = 16  # pages that are there from the beginning


@define(eq=False)
class Pages:
    """One sequence.

    Attributes:
        numbers: of its pages, in order.
        length: positions in use.
    """

    numbers: list[int] = field(factory=list)
    length: int = 0


@frozen(eq=False)
class Places:
    """Where the new tokens of a forward go, and what they look at.

    Attributes:
        written: (tokens,) int64: positions in the row of all pages.
        few: the tokens that the kernel takes, each a row; None is all.
        table: (rows, pages) int32; lengths: (rows,) int32: see `k2core_kernels.triton.mla_decode`.
        long: of the other sequences their tokens, their pages and how many positions they have.
    """

    written: Tensor
    few: Tensor | None
    table: Tensor
    lengths: Tensor
    long: list[tuple[slice, Tensor, int]] = field(factory=list)


class Paged:
    """Pages of all sequences of a model; implements `k2core_torch.caching.Cache`.

    Attributes:
        layers: tensors (pages, 64, rank + rope) float32, or bfloat16 in ``w4a16``.
        grown: how often they were replaced by larger ones.
    """

    def __init__(self, geometry: Geometry, numerics: Numerics, *, device: str) -> None:
        self._geometry, self._numerics, self._device = geometry, numerics, device
        shape = (FIRST, LEAST, geometry.cache_values_per_layer)
        self.layers = [torch.zeros(shape, dtype=cache_type(numerics), device=device) for _ in range(geometry.num_hidden_layers)]
        self.moves: Callable[[], None] = lambda: None  # told before tensors are replaced: who keeps their addresses lets go
        self.grown, self._count, self._free = 0, FIRST, list(range(FIRST - 1, 0, -1))

    def empty(self) -> Pages:
        """No page."""
        return Pages()

    def reserve(self, growth: Iterable[tuple[Pages, int]]) -> None:
        """Have pages for so many more positions in each."""
        needs = [(one, max(0, pages_for(one.length + count) - len(one.numbers))) for one, count in growth]
        self._have(sum(need for _, need in needs))
        for sequence, need in needs:
            sequence.numbers += [self._free.pop() for _ in range(need)]

    def copy(self, sequence: Pages, length: int) -> Pages:
        """The first *length* positions on pages of their own."""
        count = pages_for(length)
        self._have(count)
        copied = Pages([self._free.pop() for _ in range(count)], length)
        try:
            source, target = self._on_device(sequence.numbers[:count]), self._on_device(copied.numbers)
            for layer in self.layers:
                layer[target] = layer[source]
        except BaseException:
            self.drop(copied)
            raise
        return copied

    def cut(self, sequence: Pages, length: int) -> None:
        """Forget the positions from *length* on, and give back pages without any."""
        keep = pages_for(length)
        self._free += sequence.numbers[keep:]
        del sequence.numbers[keep:]
        sequence.length = length

    def drop(self, sequence: Pages) -> None:
        """Give back all its pages."""
        self.cut(sequence, 0)

    def bytes_of(self, sequence: Pages) -> int:
        """Memory of its pages."""
        return len(sequence.numbers) * self._page_bytes

    def blocks_of(self, sequence: Pages) -> int:
        """How many pages it has."""
        return len(sequence.numbers)

    def spare_bytes(self) -> int:
        """Memory of free pages."""
        return len(self._free) * self._page_bytes

    def clear(self) -> None:
        """Give every page back to the device."""
        self.layers.clear()

    def attention(self, new: Batch[Pages]) -> Attention:
        """Of one forward."""
        return partial(self.attend, self._places(new))

    def attend(
        self, places: Places, layer: int, query: Tensor, turned: Tensor, rows: Tensor, weights: AttentionWeights
    ) -> Tensor:
        """As of `Attention`; reads nothing back from the device."""
        g, numerics, pages = self._geometry, self._numerics, self.layers[layer]
        pages.view(-1, pages.shape[2]).index_copy_(0, places.written, rows.to(pages.dtype))
        given = (weights, g, numerics)
        if places.few is None:
            return attend_paged(query, turned, pages, places.table, places.lengths, *given)
        attended = query.new_empty((len(query), g.num_attention_heads * g.v_head_dim))
        if len(places.few):
            few = places.few
            attended[few] = attend_paged(query[few], turned[few], pages, places.table, places.lengths, *given)
        for cut, numbers, end in places.long:
            cache = pages[numbers].flatten(0, 1)[:end]
            attended[cut] = attend_fast(query[cut], turned[cut], cache, *given)
        return attended

    def _places(self, new: Batch[Pages]) -> Places:
        written: list[int] = []
        few: list[int] = []
        tables: list[list[int]] = []
        lengths: list[int] = []
        long: list[tuple[slice, Tensor, int]] = []
        for sequence, cut in new.cuts():
            end = sequence.length + cut.stop - cut.start
            written += [
                sequence.numbers[position // LEAST] * LEAST + position % LEAST for position in range(sequence.length, end)
            ]
            if end - sequence.length > FEW:
                long.append((cut, self._on_device(sequence.numbers), end))
                continue
            few += range(cut.start, cut.stop)
            tables += [sequence.numbers] * (cut.stop - cut.start)
            lengths += range(sequence.length + 1, end + 1)
        most = max(map(len, tables), default=0)
        table = torch.tensor([one + [0] * (most - len(one)) for one in tables], dtype=torch.int32, device=self._device)
        return Places(
            written=self._on_device(written),
            few=self._on_device(few) if long else None,
            table=table,
            lengths=torch.tensor(lengths, dtype=torch.int32, device=self._device),
            long=long,
        )

    @property
    def _page_bytes(self) -> int:
        return sum(layer[0].nbytes for layer in self.layers)

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def _have(self, pages: int) -> None:
        """See that so many are free; where there is no memory for twice as many as there were, just these are added."""
        if pages <= len(self._free):
            return
        least = self._count + pages - len(self._free)
        self.grown += 1
        self.moves()
        try:
            self._grow(max(2 * self._count, least))
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error) or least >= 2 * self._count:
                raise
            self._grow(least)

    def _grow(self, count: int) -> None:
        """Have so many pages: layer after layer is replaced, so that only one is there twice."""
        for place, layer in enumerate(self.layers):
            if len(layer) < count:  # may be so after a growth that failed for a later layer
                larger = layer.new_zeros((count, *layer.shape[1:]))
                larger[: len(layer)] = layer
                self.layers[place] = larger
        self._free[:0] = range(count - 1, self._count - 1, -1)
        self._count = count


def pages_for(positions: int) -> int:
    """How many pages hold them."""
    return -(-positions // LEAST)
