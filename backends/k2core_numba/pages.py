"""The latent cache: pages of 64 positions of all layers, shared between a sequence and its forks until one of them writes.

A value beyond a sequence's length is never weighted, but a weight of zero times infinity would be NaN, so what a sequence
forgot is zeroed before it writes next to it.
"""

from collections.abc import Iterable

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from k2core.errors import CapacityError
from k2core_numba.packing import aligned_zeros

LANES = 16  # positions of a block
LEAST_TABLE = 4  # pages
SPARE_BYTES = 64 << 20  # of pages that nobody holds and that are kept: new memory takes several times as long as zeroing


@define(eq=False)
class Page:
    """Memory of some positions.

    Attributes:
        values: (layers, blocks, width, 16) float32.
        address: of the values.
        owners: sequences that hold it.
        stale: more may be written than its only owner has positions: another one held it, too.
    """

    values: NDArray[np.float32] = field(repr=False)
    address: int
    owners: int = 1
    stale: bool = False


def _no_table() -> NDArray[np.int64]:
    return np.zeros(LEAST_TABLE, np.int64)


@define(eq=False)
class Sequence:
    """Pages of one sequence in order.

    Attributes:
        pages: enough for `length`.
        length: positions in use.
        reserved: up to here positions from `length` on have pages of this sequence alone; 0 where that must be looked up.
        table: int64, the pages' addresses for kernels, and room for more.
        table_address: of `table`.
    """

    pages: list[Page] = field(factory=list)
    length: int = 0
    reserved: int = 0
    table: NDArray[np.int64] = field(factory=_no_table, repr=False)
    table_address: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.table_address = self.table.ctypes.data

    def replace(self, first: int, fresh: list[Page]) -> None:
        """Have the pages *fresh* from the *first*-th on."""
        self.pages[first:] = fresh
        count = len(self.pages)
        if count > len(self.table):
            table = np.zeros(2 * count, np.int64)
            table[:first] = self.table[:first]
            self.table, self.table_address = table, table.ctypes.data
        self.table[first:count] = [page.address for page in fresh]


@define(eq=False)
class PageStore:
    """Makes, shares and drops pages.

    Attributes:
        layers, width: of the model: layers, and latent plus rotated values per position.
        positions: of a page, a multiple of 16.
        used: pages that some sequence holds; one that several hold counts once.
    """

    layers: int
    width: int
    positions: int
    used: int = 0
    _spare: list[Page] = field(factory=list, init=False, repr=False)

    @property
    def page_bytes(self) -> int:
        """Size of one page."""
        return self.layers * self.positions * self.width * 4

    def reserve(self, growth: Iterable[tuple[Sequence, int]]) -> None:
        """Make room in each sequence for so many more positions that it alone may write.

        Raises:
            CapacityError: the machine has no memory for it; nothing has changed then.
        """
        plan: list[tuple[Sequence, int, list[Page]]] = []
        copied: dict[int, int] = {}  # how many holders of a page will have left it
        for sequence, tokens in growth:
            if sequence.length + tokens > sequence.reserved:
                plan.append((sequence, *self._fresh(sequence, tokens, copied)))
        for sequence, first, fresh in plan:
            self._let_go(sequence.pages[first:])
            sequence.replace(first, fresh)
            sequence.reserved = len(sequence.pages) * self.positions
            self.used += len(fresh)

    def fork(self, parent: Sequence, length: int) -> Sequence:
        """A sequence that shares the pages of the first *length* positions."""
        count = -(-length // self.positions)
        for page in parent.pages[:count]:
            page.owners += 1
        if length % self.positions:
            parent.pages[count - 1].stale = True
        parent.reserved = 0
        return Sequence(pages=parent.pages[:count], length=length, table=parent.table[: max(count, LEAST_TABLE)].copy())

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Forget the positions from *length* on."""
        keep = -(-length // self.positions)
        self._let_go(sequence.pages[keep:])
        del sequence.pages[keep:]
        used, sequence.reserved = length % self.positions, keep * self.positions
        if used and sequence.pages[-1].owners > 1:
            sequence.pages[-1].stale, sequence.reserved = True, 0
        elif used:
            self._forget(sequence.pages[-1], used, min(self.positions, used + sequence.length - length))
        sequence.length = length

    def own_bytes(self, sequence: Sequence) -> int:
        """Bytes that only this sequence holds."""
        return sum(page.values.nbytes for page in sequence.pages if page.owners == 1)

    def _fresh(self, sequence: Sequence, tokens: int, copied: dict[int, int]) -> tuple[int, list[Page]]:
        """Which pages to replace from where on, so that *tokens* more positions have their own."""
        first, last = sequence.length // self.positions, (sequence.length + tokens - 1) // self.positions
        fresh: list[Page] = []
        try:
            if first < len(sequence.pages):
                page = sequence.pages[first]
                gone = copied.get(id(page), 0)
                if page.owners - gone > 1:
                    fresh.append(self._copy(page, sequence.length % self.positions))
                    copied[id(page)] = gone + 1
                else:
                    if page.stale and page.owners == 1:
                        self._forget(page, sequence.length % self.positions, self.positions)
                    first += 1
            while first + len(fresh) <= last:
                fresh.append(self._page())
        except MemoryError as error:
            need = (last + 1 - first) * self.page_bytes
            raise CapacityError(
                f"cannot grow a sequence to {sequence.length + tokens} tokens: no memory for {need} bytes"
            ) from error
        return first, fresh

    def _let_go(self, pages: list[Page]) -> None:
        for page in pages:
            page.owners -= 1
            if not page.owners:
                self.used -= 1
                if (len(self._spare) + 1) * self.page_bytes <= SPARE_BYTES:
                    self._spare.append(page)

    def _page(self) -> Page:
        if self._spare:
            page = self._spare.pop()
            page.values.fill(0)
            page.owners, page.stale = 1, False
            return page
        values = aligned_zeros((self.layers, self.positions // LANES, self.width, LANES), np.float32)
        return Page(values, values.ctypes.data)

    def _copy(self, page: Page, used: int) -> Page:
        copy, blocks = self._page(), -(-used // LANES)
        copy.values[:, :blocks] = page.values[:, :blocks]
        self._forget(copy, used, blocks * LANES)
        return copy

    def _forget(self, page: Page, used: int, end: int) -> None:
        """Zero the positions from *used* on, up to *end* or, of a stale page, all."""
        if page.stale:
            end, page.stale = self.positions, False
        block, last = used // LANES, -(-end // LANES)
        if block < last:
            page.values[:, block, :, used % LANES : end - block * LANES] = 0
            page.values[:, block + 1 : last] = 0
