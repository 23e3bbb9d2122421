"""The latent cache: pages of 64 positions of all layers, shared between a sequence and its forks until one of them writes.

A value beyond a sequence's length is never weighted, but a weight of zero times infinity would be NaN, so what a sequence
forgot is zeroed before it writes next to it.
"""

from typing import Any

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from k2core.errors import CapacityError

LANES = 16  # positions of a block


@define(eq=False)
class Page:
    """Memory of some positions: (layers, blocks, width, 16) float32, and how many sequences hold it."""

    values: NDArray[np.float32] = field(repr=False)
    address: int
    owners: int = 1


@define(eq=False)
class Sequence:
    """Pages of one sequence in order, and the number of positions in use."""

    pages: list[Page] = field(factory=list)
    length: int = 0


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

    @property
    def page_bytes(self) -> int:
        """Size of one page."""
        return self.layers * self.positions * self.width * 4

    def reserve(self, sequence: Sequence, tokens: int) -> None:
        """Make room for *tokens* more positions that this sequence alone may write.

        Raises:
            CapacityError: the machine has no memory for it; nothing has changed then.
        """
        first, last = sequence.length // self.positions, (sequence.length + tokens - 1) // self.positions
        kept = sequence.pages[first : first + 1]  # the page that the next position falls into, if there is one
        fresh: list[Page] = []
        try:
            if kept and kept[0].owners > 1:
                fresh.append(self._copy(kept[0], sequence.length % self.positions))
                kept = []
            while first + len(kept) + len(fresh) <= last:
                fresh.append(self._page())
        except MemoryError as error:
            need = (last + 1 - first) * self.page_bytes
            raise CapacityError(
                f"cannot grow a sequence to {sequence.length + tokens} tokens: no memory for {need} bytes"
            ) from error
        first += len(kept)
        self._let_go(sequence.pages[first:])
        sequence.pages[first:] = fresh
        self.used += len(fresh)

    def fork(self, parent: Sequence, length: int) -> Sequence:
        """A sequence that shares the pages of the first *length* positions."""
        pages = parent.pages[: -(-length // self.positions)]
        for page in pages:
            page.owners += 1
        return Sequence(pages=pages, length=length)

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Forget the positions from *length* on."""
        keep = -(-length // self.positions)
        self._let_go(sequence.pages[keep:])
        del sequence.pages[keep:]
        used = length % self.positions
        if used and length < sequence.length and sequence.pages[-1].owners == 1:
            self._forget(sequence.pages[-1], used)
        sequence.length = length

    def own_bytes(self, sequence: Sequence) -> int:
        """Bytes that only this sequence holds."""
        return sum(page.values.nbytes for page in sequence.pages if page.owners == 1)

    def _let_go(self, pages: list[Page]) -> None:
        for page in pages:
            page.owners -= 1
            self.used -= page.owners == 0

    def _page(self) -> Page:
        values = np.zeros((self.layers, self.positions // LANES, self.width, LANES), np.float32)
        return Page(values, values.ctypes.data)

    def _copy(self, page: Page, used: int) -> Page:
        values = page.values.copy()
        copy = Page(values, values.ctypes.data)
        self._forget(copy, used)
        return copy

    def _forget(self, page: Page, used: int) -> None:
        block = used // LANES
        page.values[:, block, :, used % LANES :] = 0
        page.values[:, block + 1 :] = 0


def addresses(sequences: list[Sequence]) -> tuple[NDArray[np.int64], int]:
    """Page addresses of several sequences for a kernel.

    Returns:
        flat int64 (sequences * columns), missing pages 0, and columns.
    """
    columns = max(len(sequence.pages) for sequence in sequences)
    table: Any = np.zeros((len(sequences), columns), np.int64)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence.pages)] = [page.address for page in sequence.pages]
    return table.reshape(-1), columns
