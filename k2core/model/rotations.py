"""Cosines and sines of every position, float64 rounded once, made in fixed blocks as contexts grow."""

import numpy as np
from numpy.typing import NDArray

from k2core.model.config import Geometry

BLOCK = 4096  # positions


class Rotations:
    """The two tables of one model. Memory of positions that nobody reached is not touched, so the system need not give it.

    Attributes:
        cosine, sine: flat float32 (max_position_embeddings * qk_rope_head_dim / 2); valid up to `positions`.
        positions: that can be used.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._frequency, self._multiplier = geometry.inv_freq, geometry.rope_multiplier
        self._most = geometry.max_position_embeddings
        size = self._most * len(self._frequency)
        self.positions = 0
        self.cosine: NDArray[np.float32] = np.empty(size, np.float32)
        self.sine: NDArray[np.float32] = np.empty(size, np.float32)

    def reach(self, positions: int) -> None:
        """Hold at least this many positions, as many as the model has at most."""
        while self.positions < positions:
            end = min(self.positions + BLOCK, self._most)
            angle = np.outer(np.arange(self.positions, end, dtype=np.float64), self._frequency)
            place = slice(self.positions * len(self._frequency), end * len(self._frequency))
            self.cosine[place] = (np.cos(angle) * self._multiplier).reshape(-1)
            self.sine[place] = (np.sin(angle) * self._multiplier).reshape(-1)
            self.positions = end
