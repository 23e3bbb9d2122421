"""Routed experts out of a cache that may be smaller than the model, with the bits of the forward that has all of them.

Where all experts that some tokens chose fit, the kernel takes the tokens at once; else it takes pairs of a token and an expert,
as many experts at a time as fit. A pair's result does not depend on who else is there, and a token's sum runs over its slots in
order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from k2core.errors import K2Error
from k2core.interfaces import Routing
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.rotations import Rotations
from k2core_numba.expert_cache import ExpertCache
from k2core_numba.job import Job
from k2core_numba.runtime import LOCK, kernels, use_threads
from k2core_numba.seam import padded, routing_of, states_of
from k2core_numba.weights import Weights, expert_columns, sizes_of


class NumbaExperts:
    """The routed experts of every MoE layer; implements `k2core.interfaces.RoutedExperts`."""

    def __init__(self, checkpoint: Checkpoint, limit: int | None, *, threads: int) -> None:
        """See `ExpertCache`."""
        self.geometry, self._threads, self._kernels = checkpoint.geometry, threads, kernels()
        self._cache: ExpertCache | None = ExpertCache(checkpoint, limit)
        self._tokens_job = _job(self.geometry, self._cache, self.geometry.num_experts_per_tok)
        self._pairs_job = _job(self.geometry, self._cache, 1)
        self._place_of = np.zeros(self.geometry.n_routed_experts, np.int32)

    def experts(self, layer: int, x: Any, routing: Routing) -> NDArray[np.float32]:
        """Weighted sum of the chosen experts: (tokens, hidden) float32.

        Raises:
            K2Error: the layer has no experts, an expert's id does not exist, or the model is closed.
            ShapeError: x is not (tokens, hidden), or the routing is not (tokens, top_k).
            CheckpointError: an expert that is read now has a scale that is not finite.
        """
        if self._cache is None:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        states = states_of(self.geometry, layer, x)
        ids, weights = routing_of(self.geometry, layer, len(states), routing)
        flat = padded(states)
        y = np.zeros_like(flat)
        if len(flat):
            self.sum_into(y, layer, flat, ids, weights)
        return y[:, : self.geometry.hidden_size].copy()

    def sum_into(
        self, y: NDArray[np.float32], layer: int, x: NDArray[np.float32], ids: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> None:
        """The same for what was checked: x and y (tokens, padded hidden), ids and weights (tokens, top_k), tokens >= 1."""
        cache = self._cache
        assert cache is not None  # the model that calls is open
        found = sorted(set(ids.reshape(-1).tolist()))
        if len(found) <= cache.slots:
            self._place_of[found] = cache.places(layer, found)
            self._run(self._tokens_job, x, self._place_of[ids], weights, y)
            return
        parts = np.empty((ids.size, x.shape[1]), np.float32)  # each slot's own, unweighted
        flat = ids.reshape(-1)
        for first in range(0, len(found), cache.slots):
            group = found[first : first + cache.slots]
            self._place_of[group] = cache.places(layer, group)
            pairs = np.flatnonzero((flat >= group[0]) & (flat <= group[-1]))
            some = np.empty((len(pairs), x.shape[1]), np.float32)
            ones = np.ones((len(pairs), 1), np.float32)
            self._run(self._pairs_job, x[pairs // ids.shape[1]], self._place_of[flat[pairs]], ones, some)
            parts[pairs] = some
        y[:] = 0
        for slot in range(ids.shape[1]):  # in the kernel's order
            y += weights[:, slot, None] * parts[slot :: ids.shape[1]]

    def _run(self, job: Job, x: NDArray[np.float32], places: NDArray[np.int32], weights: Any, y: NDArray[np.float32]) -> None:
        job.prepare(len(x), use_threads(self._threads), by_tokens=False)
        with LOCK:
            self._kernels.experts(
                job.words, 0, x.reshape(-1), len(x), places.reshape(-1), weights.reshape(-1), y.reshape(-1)
            )  # fmt: skip

    def info(self) -> Mapping[str, str]:
        """Names the backend, and how its cache of experts did."""
        cache = self._cache
        told = {"backend": "numba"}
        if cache is not None:
            told |= {
                "expert_hits": str(cache.hits),
                "expert_misses": str(cache.misses),
                "expert_bytes": str(cache.slots * cache.expert_bytes),
            }
        return told

    def close(self) -> None:
        """Give everything back."""
        self._cache = None


def _job(geometry: Geometry, cache: ExpertCache, top_k: int) -> Job:
    """A job of one layer whose experts are the cache's slots and whose tokens choose *top_k* each."""
    columns = kernels("layers")
    addresses = np.zeros((2, columns.COLUMNS), np.int64)
    for column, array in zip(expert_columns(columns), cache.arrays, strict=True):
        addresses[0, column] = array.ctypes.data
    names = columns.Sizes._fields  # what experts do not use is 1: the workspace has no room for it then
    own = {"experts": cache.slots, "hidden": geometry.hidden_size, "inner": geometry.moe_intermediate_size, "top_k": top_k}
    sizes = columns.Sizes(**{**dict.fromkeys(names, 1), **own, "dense_layers": 0, "group": sizes_of(geometry).group})
    constants = columns.Constants(*[np.float32(1)] * 4, True)
    weights = Weights(geometry=geometry, sizes=sizes, constants=constants, addresses=addresses, arrays=cache.arrays)
    return Job(weights, Rotations(evolve(geometry, max_position_embeddings=1)))
