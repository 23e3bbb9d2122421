"""The seam of the experts: `k2core.interfaces.MoEForward` on the kernels that the whole forward uses, with the same bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import K2Error
from k2core.interfaces import RoutedExperts, Routing
from k2core.model.rotations import Rotations
from k2core_numba.job import Job
from k2core_numba.packing import round_up
from k2core_numba.runtime import LOCK, kernels, use_threads
from k2core_numba.seam import padded, routing_of, states_of, sum_of
from k2core_numba.weights import Weights


class NumbaMoE:
    """Routing and experts of every MoE layer of one model."""

    def __init__(self, weights: Weights, rotations: Rotations, *, threads: int, routed: RoutedExperts | None = None) -> None:
        """A seam.

        Args:
            weights: of the model; with experts where *routed* is None.
            rotations: of the model.
            threads: that may help.
            routed: where the routed experts lie instead.
        """
        self._weights: Weights | None = weights
        self._routed, self._threads, self._kernels = routed, threads, kernels()
        self._job = Job(weights, rotations)

    def route(self, layer: int, x: Any) -> Routing:
        """Choose experts for normalised hidden states.

        Args:
            layer: index of the decoder layer.
            x: (tokens, hidden) float32; unchanged.

        Raises:
            K2Error: the layer has no experts, or the model is closed.
            ShapeError: x is not (tokens, hidden).
        """
        weights, flat, tokens = self._prepare(layer, x)
        shape = (tokens, weights.sizes.top_k)
        ids, shares = np.empty(shape, np.int32), np.empty(shape, np.float32)
        with LOCK:
            self._kernels.route(self._job.words, layer, flat, tokens, ids.reshape(-1), shares.reshape(-1))
        return Routing(expert_ids=ids, weights=shares)

    def experts(self, layer: int, x: Any, routing: Routing) -> NDArray[np.float32]:
        """Weighted sum of the chosen experts, without the shared expert: (tokens, hidden) float32.

        Raises:
            K2Error: the layer has no experts, an expert's id does not exist, or the model is closed.
            ShapeError: x is not (tokens, hidden), or the routing is not (tokens, top_k).
        """
        weights, flat, tokens = self._prepare(layer, x)
        ids, shares = routing_of(weights.geometry, layer, tokens, routing)
        if self._routed is not None:
            given = self._routed.experts(layer, np.array(x, np.float32), Routing(expert_ids=ids, weights=shares))
            return sum_of(given, tokens, weights.geometry.hidden_size)
        y = np.empty_like(flat)
        with LOCK:
            self._kernels.experts(self._job.words, layer, flat, tokens, ids.reshape(-1), shares.reshape(-1), y)
        return self._rows(y, weights)

    def forward(self, layer: int, x: Any) -> NDArray[np.float32]:
        """`experts` on `route`'s choice plus the shared expert: (tokens, hidden) float32."""
        routed = self.experts(layer, x, self.route(layer, x))
        weights, flat, tokens = self._prepare(layer, x)
        y = np.empty_like(flat)
        with LOCK:
            self._kernels.shared_expert(self._job.words, layer, flat, tokens, y)
        return self._rows(y, weights) + routed

    def info(self) -> Mapping[str, str]:
        """Where the routed experts lie."""
        if self._routed is None:
            return {"backend": "numba"}
        told = self._routed.info()
        return {**told, "experts": told.get("backend", "another")}

    def close(self) -> None:
        """Let go of the weights; experts that lie elsewhere are closed."""
        self._weights = None
        if self._routed is not None:
            self._routed.close()

    def _prepare(self, layer: int, x: Any) -> tuple[Weights, NDArray[np.float32], int]:
        """The weights, x as padded rows one after another, and how many."""
        if self._weights is None:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        states = states_of(self._weights.geometry, layer, x)
        self._job.prepare(max(1, len(states)), use_threads(self._threads), by_tokens=False)
        return self._weights, padded(states).reshape(-1), len(states)

    def _rows(self, flat: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
        return flat.reshape(-1, round_up(weights.sizes.hidden))[:, : weights.sizes.hidden].copy()
