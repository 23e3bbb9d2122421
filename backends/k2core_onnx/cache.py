"""Latents and rotated keys of one sequence, per layer two arrays that double as they grow."""

import numpy as np
from attrs import define
from numpy.typing import NDArray

LEAST = 64  # positions
Array = NDArray[np.float32]


@define(eq=False)
class Latents:
    """The cache of one sequence.

    Attributes:
        latents: (layers, capacity, rank) float32.
        keys: (layers, capacity, rope) float32.
        length: positions in use.
    """

    latents: Array
    keys: Array
    length: int = 0

    @classmethod
    def empty(cls, layers: int, rank: int, rope: int) -> "Latents":
        """No position."""
        return cls(np.empty((layers, 0, rank), np.float32), np.empty((layers, 0, rope), np.float32))

    @property
    def size_bytes(self) -> int:
        """Memory of both arrays."""
        return self.latents.nbytes + self.keys.nbytes

    def reserve(self, positions: int) -> None:
        """Have room for so many positions."""
        capacity = self.latents.shape[1]
        if positions > capacity:
            room = max(LEAST, positions, 2 * capacity)
            self.latents, self.keys = (_grown(one, room, self.length) for one in (self.latents, self.keys))

    def copy(self, length: int) -> "Latents":
        """The first *length* positions, with some room to grow."""
        room = -(-length // LEAST) * LEAST
        return Latents(_grown(self.latents, room, length), _grown(self.keys, room, length), length)


def _grown(values: Array, room: int, length: int) -> Array:
    grown = np.empty((values.shape[0], room, values.shape[2]), np.float32)
    grown[:, :length] = values[:, :length]
    return grown
