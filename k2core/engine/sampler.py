"""From logits to a token id.

The random number of a token is a function of (seed, path, position) alone: Philox4x32-10 (Salmon, Moraes, Dror, Shaw:
"Parallel random numbers: as easy as 1, 2, 3", SC11) keyed by the seed, counting by position and path. Chunking, batching,
prefix hits and drafts therefore never change what is sampled.

With logits divided by the temperature, the set to draw from is the nucleus (the fewest most probable tokens whose
probabilities reach ``top_p``, ties by lowest id) cut by ``min_p`` (tokens at least that probable relative to the best). Both
look at the same full distribution, so their order does not matter.
"""

import math
from typing import Any

import numpy as np
from attrs import field, frozen

from k2core.errors import InputError, K2Error
from k2core.interfaces import Array

# A nucleus is looked for among tokens at least so probable relative to the best: sorting a whole vocabulary is slow, and
# the last floor leaves out only what float64 calls zero.
_FLOORS = (1e-2, 1e-4, 5e-324)


def _validate(options: Any, attribute: Any, value: float) -> None:
    low, high = {"temperature": (0.0, math.inf), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0)}[attribute.name]
    if not low <= value <= high or math.isinf(value):
        allowed = "a finite number >= 0" if attribute.name == "temperature" else "between 0 and 1"
        raise InputError(f"{attribute.name} is {value}, but it must be {allowed}")


@frozen(kw_only=True)
class Sampler:
    """Draws tokens for one turn.

    Attributes:
        temperature: 0 is greedy: the largest logit, ties by lowest id.
        top_p: 1 is off; 0 leaves the best token only.
        min_p: 0 is off.
        seed: any integer; taken modulo 2**64.
        path: which parallel trajectory; taken modulo 2**32.
    """

    temperature: float = field(default=0.0, validator=_validate)
    top_p: float = field(default=1.0, validator=_validate)
    min_p: float = field(default=0.0, validator=_validate)
    seed: int = 0
    path: int = 0

    def sample(self, logits: Array, position: int) -> int:
        """The token that goes to *position* of the sequence.

        Args:
            logits: (vocab,) float32, unchanged; -inf forbids a token.
            position: index of the new token in the sequence, from 0.

        Raises:
            K2Error: a logit is NaN or +inf, or all are -inf.
        """
        best = int(logits.argmax())  # of equals the first; a NaN counts as largest
        top = float(logits[best])
        if not math.isfinite(top):
            raise K2Error(
                f"cannot choose a token at position {position}: the model's largest logit is {top} (token {best}). "
                "The weights or the backend's arithmetic are broken; check with another backend."
            )
        if self.temperature == 0.0:
            return best
        weights = self._weights(logits, top)
        ids = self._allowed(weights)
        sums = np.cumsum(weights if ids is None else weights[ids])
        at = int(np.searchsorted(sums, uniform(self.seed, self.path, position) * sums[-1], side="right"))
        if at == len(sums):  # the product was rounded up to the sum itself
            at = int(np.searchsorted(sums, sums[-1], side="left"))
        return at if ids is None else int(ids[at])

    def allowed(self, logits: Array) -> Array:
        """Ids that can be drawn, ascending: (allowed,) int64."""
        if self.temperature == 0.0:
            return np.array([int(logits.argmax())])
        weights = self._weights(logits, float(logits.max()))
        ids = self._allowed(weights)
        return np.flatnonzero(weights) if ids is None else ids

    def _weights(self, logits: Array, top: float) -> Array:
        """Probabilities relative to the best token's: (vocab,) float64."""
        with np.errstate(over="ignore"):  # a tiny temperature sends the others to -inf, as it should
            scaled = (logits.astype(np.float64) - top) / self.temperature
        return np.exp(scaled)

    def _allowed(self, weights: Array) -> Array | None:
        """Ids of the nucleus cut by min_p, ascending, or None for all."""
        if self.top_p < 1.0:
            return _nucleus(weights, self.top_p * float(weights.sum()), self.min_p)
        return np.flatnonzero(weights >= self.min_p) if self.min_p > 0.0 else None


def _nucleus(weights: Array, mass: float, least: float) -> Array:
    """The fewest ids whose weights, largest first, sum to *mass*; of these the ones of at least *least*; ascending.

    Args:
        weights: (vocab,) float64, the largest is 1.
        mass: at most the sum of the weights.
        least: at most 1; ids below it come last in the order, so they need not be sorted.
    """
    for floor in _FLOORS:
        ids = np.flatnonzero(weights >= max(floor, least))
        kept = weights[ids]
        if floor <= least or float(kept.sum()) >= mass:
            break
    order = np.argsort(-kept, kind="stable")
    count = int(np.searchsorted(np.cumsum(kept[order]), mass, side="left")) + 1
    return np.sort(ids[order[:count]])


def uniform(seed: int, path: int, position: int) -> float:
    """The random number of (seed, path, position): in [0, 1), a multiple of 2**-53."""
    high, low, _, _ = philox(
        (position & 0xFFFFFFFF, position >> 32 & 0xFFFFFFFF, path & 0xFFFFFFFF, 0),
        (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF),
    )
    return (high << 21 | low >> 11) * 2.0**-53


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four 32-bit words from a counter of four and a key of two (constants of the SC11 paper)."""
    a, b, c, d = counter
    left, right = key
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            second >> 32 ^ b ^ left,
            second & 0xFFFFFFFF,
            first >> 32 ^ d ^ right,
            first & 0xFFFFFFFF,
        )
        left = left + 0x9E3779B9 & 0xFFFFFFFF
        right = right + 0xBB67AE85 & 0xFFFFFFFF
    return a, b, c, d
