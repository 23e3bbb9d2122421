"""The seam of the experts: `k2core.interfaces.MoEForward` on the kernels that the whole forward uses, with the same bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import K2Error, ShapeError
from k2core.interfaces import Routing
from k2core_numba.job import Job
from k2core_numba.packing import round_up
from k2core_numba.rotations import Rotations
from k2core_numba.runtime import LOCK, kernels, use_threads
from k2core_numba.weights import Weights


class NumbaMoE:
    """Routing and experts of every MoE layer of one model."""

    def __init__(self, weights: Weights, rotations: Rotations, *, threads: int) -> None:
        self._weights: Weights | None = weights
        self._threads, self._kernels = threads, kernels()
        self._job = Job(weights, rotations)

    def route(self, layer: int, x: Any) -> Routing:
        """Choose experts for normalised hidden states.

        Args:
            layer: index of the decoder layer.
            x: (tokens, hidden) float32; unchanged.

        Raises:
            K2Error: the layer has no experts.
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
            K2Error: the layer has no experts, or an expert's id does not exist.
            ShapeError: x is not (tokens, hidden), or the routing is not (tokens, top_k).
        """
        weights, flat, tokens = self._prepare(layer, x)
        ids = np.array(routing.expert_ids, np.int32)
        shares = np.array(routing.weights, np.float32)
        expected = (tokens, weights.sizes.top_k)
        if ids.shape != expected or shares.shape != expected:
            raise ShapeError(f"moe_experts: routing has {ids.shape} ids and {shares.shape} weights, expected {expected}")
        if tokens and (ids.min() < 0 or ids.max() >= weights.sizes.experts):
            raise K2Error(
                f"moe_experts: expert ids reach from {ids.min()} to {ids.max()}, layer {layer} has {weights.sizes.experts}"
            )
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

    def close(self) -> None:
        """Let go of the weights."""
        self._weights = None

    def _prepare(self, layer: int, x: Any) -> tuple[Weights, NDArray[np.float32], int]:
        """The weights, x as padded rows one after another, and how many."""
        if self._weights is None:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        geometry = self._weights.geometry
        if layer not in geometry.moe_layers:
            raise K2Error(
                f"layer {layer} has no experts; layers {geometry.moe_layers.start} to {geometry.moe_layers.stop - 1} have"
            )
        values = np.asarray(x)
        if values.ndim != 2 or values.shape[1] != geometry.hidden_size:
            raise ShapeError(f"moe: x is {values.shape}, expected (tokens, {geometry.hidden_size})")
        padded = np.zeros((len(values), round_up(geometry.hidden_size)), np.float32)
        padded[:, : geometry.hidden_size] = values
        self._job.prepare(max(1, len(values)), use_threads(self._threads), by_tokens=False)
        return self._weights, padded.reshape(-1), len(values)

    def _rows(self, flat: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
        return flat.reshape(-1, round_up(weights.sizes.hidden))[:, : weights.sizes.hidden].copy()
