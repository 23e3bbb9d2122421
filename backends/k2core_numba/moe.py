"""The seam of the experts: `k2core.interfaces.MoEForward` on the kernels that the whole forward uses, with the same bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import K2Error, ShapeError
from k2core.interfaces import Routing
from k2core_numba.packing import round_up
from k2core_numba.runtime import LOCK, kernels, use_threads
from k2core_numba.weights import Weights
from k2core_numba.workspace import make_workspace


class NumbaMoE:
    """Routing and experts of every MoE layer of one model."""

    def __init__(self, weights: Weights, *, threads: int) -> None:
        self._weights: Weights | None = weights
        self._threads, self._kernels = threads, kernels()

    def route(self, layer: int, x: Any) -> Routing:
        """Choose experts for normalised hidden states.

        Args:
            layer: index of the decoder layer.
            x: (tokens, hidden) float32; unchanged.

        Raises:
            K2Error: the layer has no experts.
            ShapeError: x is not (tokens, hidden).
        """
        weights, row, flat, tokens = self._prepare(layer, x)
        shape = (tokens, weights.sizes.top_k)
        ids, shares = np.empty(shape, np.int32), np.empty(shape, np.float32)
        with LOCK:
            threads = use_threads(self._threads)
            work = make_workspace(weights.sizes, tokens, 1)
            self._kernels.route(
                weights.sizes, weights.constants, row, flat, tokens, work, ids.reshape(-1), shares.reshape(-1), 0, threads
            )
        return Routing(expert_ids=ids, weights=shares)

    def experts(self, layer: int, x: Any, routing: Routing) -> NDArray[np.float32]:
        """Weighted sum of the chosen experts, without the shared expert: (tokens, hidden) float32.

        Raises:
            K2Error: the layer has no experts, or an expert's id does not exist.
            ShapeError: x is not (tokens, hidden), or the routing is not (tokens, top_k).
        """
        weights, row, flat, tokens = self._prepare(layer, x)
        ids = np.array(routing.expert_ids, np.int32)
        shares = np.array(routing.weights, np.float32)
        expected = (tokens, weights.sizes.top_k)
        if ids.shape != expected or shares.shape != expected:
            raise ShapeError(f"moe_experts: routing has {ids.shape} ids and {shares.shape} weights, expected {expected}")
        if tokens and (ids.min() < 0 or ids.max() >= weights.sizes.experts):
            raise K2Error(
                f"moe_experts: expert ids reach from {ids.min()} to {ids.max()}, layer {layer} has {weights.sizes.experts}"
            )
        with LOCK:
            threads = use_threads(self._threads)
            work = make_workspace(weights.sizes, tokens, 1)
            self._kernels.experts(weights.sizes, row, flat, tokens, work, ids.reshape(-1), shares.reshape(-1), 0, threads)
        return self._rows(work.routed, weights, tokens)

    def forward(self, layer: int, x: Any) -> NDArray[np.float32]:
        """`experts` on `route`'s choice plus the shared expert: (tokens, hidden) float32."""
        routed = self.experts(layer, x, self.route(layer, x))
        weights, row, flat, tokens = self._prepare(layer, x)
        with LOCK:
            threads = use_threads(self._threads)
            work = make_workspace(weights.sizes, tokens, 1)
            self._kernels.mlp(weights.sizes, row, weights.sizes.shared_inner, flat, tokens, work, threads)
        return self._rows(work.output, weights, tokens) + routed

    def close(self) -> None:
        """Let go of the weights."""
        self._weights = None

    def _prepare(self, layer: int, x: Any) -> tuple[Weights, NDArray[np.int64], NDArray[np.float32], int]:
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
        return self._weights, self._weights.addresses[layer], padded.reshape(-1), len(values)

    def _rows(self, flat: NDArray[np.float32], weights: Weights, tokens: int) -> NDArray[np.float32]:
        stride = round_up(weights.sizes.hidden)
        return flat[: tokens * stride].reshape(tokens, stride)[:, : weights.sizes.hidden].copy()
