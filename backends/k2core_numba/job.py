"""The array of numbers and addresses that a compiled forward reads, and the memory that it writes into."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import CapacityError
from k2core.model.rotations import Rotations
from k2core_numba.crew import MOST, crew
from k2core_numba.packing import LINE, aligned_zeros, round_up
from k2core_numba.runtime import kernels
from k2core_numba.weights import Weights
from k2core_numba.workspace import offsets


class Job:
    """A model's job; one forward at a time.

    Attributes:
        words: int64, as `k2core_kernels.numba.forward` names them.
    """

    def __init__(self, weights: Weights, rotations: Rotations) -> None:
        self._names = kernels()
        self._sizes = weights.sizes
        self._kept: list[NDArray[Any]] = [weights.addresses, rotations.cosine, rotations.sine]
        self._tokens, self._shared = 0, (0, False)
        self._memory: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._offsets: NDArray[np.int64] = np.zeros(0, np.int64)
        self.words: NDArray[np.int64] = np.zeros(self._names.PIECES + self._names.PIECE * (MOST + 1), np.int64)
        board = crew()
        self._write(
            SIZES=self._address(np.array(weights.sizes, np.int64)),
            CONSTANTS=self._address(np.array(weights.constants, np.float32)),
            WEIGHTS=weights.addresses.ctypes.data,
            COSINE=rotations.cosine.ctypes.data,
            SINE=rotations.sine.ctypes.data,
            ANGLES=len(rotations.cosine),
            BOARD=board.board if board is not None else 0,
            TOKEN_WORK=_work_of_token(weights.sizes),
            POSITION_WORK=_work_of_position(weights.sizes),
            ROW_WORK=weights.sizes.hidden * weights.sizes.vocab,
        )

    def prepare(self, tokens: int, threads: int, *, by_tokens: bool) -> None:
        """Have memory for a forward of *tokens* tokens.

        Raises:
            CapacityError: the machine has none.
        """
        if tokens <= self._tokens and self._shared == (threads, by_tokens):
            return
        tokens = max(tokens, self._tokens)
        places = offsets(self._sizes, tokens, 1 if by_tokens else threads)
        each = round_up(int(places[-1]), LINE)
        pieces = min(threads, MOST + 1) if by_tokens else 1
        try:
            memory = aligned_zeros((pieces * each,), np.uint8)  # zeros: lanes that nobody writes must be finite
        except MemoryError as error:
            raise CapacityError(f"cannot run {tokens} tokens: no memory for {pieces * each} bytes of workspace") from error
        self._memory, self._offsets = memory, places
        self._tokens, self._shared = tokens, (threads, by_tokens)
        self._write(
            OFFSETS=places.ctypes.data,
            WORK=memory.ctypes.data,
            WORK_BYTES=each,
            THREADS=min(threads, MOST + 1),
            BY_TOKENS=by_tokens,
        )

    def area(self, name: str, size: int) -> NDArray[np.float32]:
        """The first *size* values of an array of the first piece's workspace, until the next `prepare`."""
        place = kernels("layers").Workspace._fields.index(name)
        start = int(self._offsets[place])
        return self._memory[start : start + 4 * size].view(np.float32)

    def _write(self, **values: int) -> None:
        for name, value in values.items():
            self.words[getattr(self._names, name)] = value

    def _address(self, array: NDArray[Any]) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)


def _work_of_token(sizes: Any) -> int:
    """Multiply-adds of a token in all layers, without attention over the cache and without logits."""
    rank, width, heads = sizes.latent_rank, sizes.latent_rank + sizes.rope, sizes.heads
    attention = (
        sizes.hidden * (sizes.query_rank + width)
        + heads * sizes.query_rank * (sizes.nope + sizes.rope)
        + heads * (sizes.nope * rank + rank * sizes.value + sizes.value * sizes.hidden)
    )
    sparse = sizes.experts + 3 * (sizes.shared_inner + sizes.top_k * sizes.inner)
    inner = 3 * sizes.dense_layers * sizes.dense_inner + (sizes.layers - sizes.dense_layers) * sparse
    return int(sizes.layers * attention + sizes.hidden * inner)


def _work_of_position(sizes: Any) -> int:
    """Multiply-adds of attention from a token to one position, in all layers."""
    return int(sizes.layers * sizes.heads * (2 * sizes.latent_rank + sizes.rope))
