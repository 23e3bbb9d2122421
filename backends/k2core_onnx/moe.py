"""The seam of the experts: NumPy in and out, ONNX Runtime in between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import K2Error, ShapeError
from k2core.interfaces import Numerics, Progress, RoutedExperts, Routing
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core_onnx import experts as graphs
from k2core_onnx.graph import Weights
from k2core_onnx.session import SESSIONS_PER_LAYER, Session, Sessions

Array = NDArray[np.float32]


class OnnxExperts:
    """The routed experts alone; implements `k2core.interfaces.RoutedExperts`.

    Attributes:
        device: where they are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        numerics: Numerics,
        fused: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._geometry, weights, layers = checkpoint.geometry, Weights(checkpoint), checkpoint.geometry.moe_layers
        self.device = device
        sessions, packed = Sessions(device, SESSIONS_PER_LAYER * len(layers)), checkpoint.experts_are_packed
        self._node = "QMoE" if fused else "MatMulNBits" if packed else "Gemm"
        self._sessions: dict[int, Session] = {}
        for layer in layers:
            self._sessions[layer] = sessions.make(graphs.experts(weights, layer, numerics, fused=fused), packs=packed)
            weights.give_back()
            if progress is not None:
                progress("building experts", layer - layers.start + 1, len(layers))

    def experts(self, layer: int, x: Any, routing: Routing) -> Array:
        """Weighted sum of the chosen experts: (tokens, hidden) float32.

        Raises:
            K2Error: the layer has no experts, an expert's id does not exist, or the model is closed.
            ShapeError: x is not (tokens, hidden), or the routing is not (tokens, top_k).
        """
        states = states_of(self._geometry, layer, x)
        ids, weights = routing_of(self._geometry, layer, len(states), routing)
        if layer not in self._sessions:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        (y,) = self._sessions[layer].run(x=states, expert_ids=ids, weights=weights)
        return y

    def bound(self, layer: int, x: Any, ids: Any, weights: Any) -> Any:
        """The same for values on the device, which are not checked."""
        return self._sessions[layer].bound(x=x, expert_ids=ids, weights=weights)[0]

    def info(self) -> Mapping[str, str]:
        """Names the backend, and the node of its products."""
        return {"backend": "onnx", "expert_path": self._node}

    def close(self) -> None:
        """Give everything back."""
        self._sessions.clear()


class OnnxMoE:
    """Router, shared expert and routed experts of every MoE layer; implements `k2core.interfaces.MoEForward`.

    Attributes:
        own: the routed experts, maybe of another backend.
    """

    def __init__(self, weights: Weights, routed: RoutedExperts, sessions: Sessions) -> None:
        self._geometry, self.own = weights.geometry, routed
        self._fronts = {layer: sessions.make(graphs.front(weights, layer)) for layer in self._geometry.moe_layers}

    def route(self, layer: int, x: Any) -> Routing:
        """See `k2core.interfaces.MoEForward.route`.

        Raises:
            K2Error: the layer has no experts, or the model is closed.
            ShapeError: x is not (tokens, hidden).
        """
        return self.begin(layer, self._states(layer, x))[0]

    def experts(self, layer: int, x: Any, routing: Routing) -> Array:
        """See `k2core.interfaces.RoutedExperts.experts`; errors as of `OnnxExperts.experts`."""
        states = self._states(layer, x)
        ids, weights = routing_of(self._geometry, layer, len(states), routing)
        return self.routed(layer, states, Routing(expert_ids=ids, weights=weights))

    def forward(self, layer: int, x: Any) -> Array:
        """See `k2core.interfaces.MoEForward.forward`; errors as of `route`."""
        states = self._states(layer, x)
        routing, shared = self.begin(layer, states)
        return shared + self.routed(layer, states, routing)

    def begin(self, layer: int, x: Array) -> tuple[Routing, Array]:
        """The router's choice and the shared expert's part, for checked states."""
        ids, weights, shared = self._fronts[layer].run(x=x)
        return Routing(expert_ids=ids, weights=weights), shared

    def begin_bound(self, layer: int, x: Any) -> list[Any]:
        """Expert ids, weights and the shared expert's part, for values on the device."""
        return self._fronts[layer].bound(x=x)

    def routed(self, layer: int, x: Array, routing: Routing) -> Array:
        """The routed experts' part, for checked states and a checked choice."""
        return np.asarray(self.own.experts(layer, x, routing), np.float32)

    def info(self) -> Mapping[str, str]:
        """What the experts tell of themselves, and whose they are."""
        told = self.own.info()
        return {**told, "experts": told.get("backend", "another")}

    def close(self) -> None:
        """Give everything back; another's experts are closed."""
        self._fronts.clear()
        self.own.close()

    def _states(self, layer: int, x: Any) -> Array:
        states = states_of(self._geometry, layer, x)
        if layer not in self._fronts:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        return states


def states_of(geometry: Geometry, layer: int, x: Any) -> Array:
    """*x* as contiguous float32, checked."""
    if layer not in geometry.moe_layers:
        layers = geometry.moe_layers
        raise K2Error(f"layer {layer} has no experts; layers {layers.start} to {layers.stop - 1} have")
    states = np.ascontiguousarray(x, np.float32)
    if states.ndim != 2 or states.shape[1] != geometry.hidden_size:
        raise ShapeError(f"moe: x is {states.shape}, expected (tokens, {geometry.hidden_size})")
    return states


def routing_of(geometry: Geometry, layer: int, tokens: int, routing: Routing) -> tuple[NDArray[np.int32], Array]:
    """Ids and weights, checked."""
    ids = np.asarray(routing.expert_ids)
    weights = np.ascontiguousarray(routing.weights, np.float32)
    expected = (tokens, geometry.num_experts_per_tok)
    if ids.shape != expected or weights.shape != expected:
        raise ShapeError(f"moe_experts: routing has {ids.shape} ids and {weights.shape} weights, expected {expected}")
    if tokens and (ids.min() < 0 or ids.max() >= geometry.n_routed_experts):
        raise K2Error(
            f"moe_experts: expert ids reach from {ids.min()} to {ids.max()}, layer {layer} has {geometry.n_routed_experts}"
        )
    return np.ascontiguousarray(ids, np.int32), weights
