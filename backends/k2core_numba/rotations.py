"""Cosines and sines of every position, float64 rounded once, made in fixed blocks as a context grows."""

import numpy as np
from numpy.typing import NDArray

from k2core.model.config import Geometry

BLOCK = 4096  # positions


class Rotations:
    """The two tables of one model.

    Attributes:
        cosine, sine: flat float32 (positions * qk_rope_head_dim / 2).
    """

    def __init__(self, geometry: Geometry) -> None:
        self._frequency, self._multiplier = geometry.inv_freq, geometry.rope_multiplier
        self.positions = 0
        self.cosine: NDArray[np.float32] = np.zeros(0, np.float32)
        self.sine: NDArray[np.float32] = np.zeros(0, np.float32)

    def reach(self, positions: int) -> None:
        """Hold at least this many positions."""
        while self.positions < positions:
            angle = np.outer(np.arange(self.positions, self.positions + BLOCK, dtype=np.float64), self._frequency)
            cosine = (np.cos(angle) * self._multiplier).astype(np.float32)
            sine = (np.sin(angle) * self._multiplier).astype(np.float32)
            self.cosine = np.concatenate([self.cosine, cosine.reshape(-1)])
            self.sine = np.concatenate([self.sine, sine.reshape(-1)])
            self.positions += BLOCK
