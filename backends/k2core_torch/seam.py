"""What crosses the seam of the experts, checked: NumPy on the CPU, with the errors that the protocol promises."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import K2Error, ShapeError
from k2core.interfaces import Routing
from k2core.model.config import Geometry

CLOSED = "cannot run a model that was closed. Load the checkpoint again."


def states_of(geometry: Geometry, layer: int, x: Any) -> NDArray[np.float32]:
    """A copy of *x* as contiguous float32.

    Raises:
        K2Error: the layer has no experts.
        ShapeError: x is not (tokens, hidden).
    """
    if layer not in geometry.moe_layers:
        layers = geometry.moe_layers
        raise K2Error(f"layer {layer} has no experts; layers {layers.start} to {layers.stop - 1} have")
    states = np.array(x, np.float32, order="C")
    if states.ndim != 2 or states.shape[1] != geometry.hidden_size:
        raise ShapeError(f"moe: x is {states.shape}, expected (tokens, {geometry.hidden_size})")
    return states


def routing_of(geometry: Geometry, layer: int, tokens: int, routing: Routing) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Copies of expert ids and weights, (tokens, top_k).

    Raises:
        K2Error: an expert's id does not exist.
        ShapeError: they have another shape.
    """
    ids, weights = np.array(routing.expert_ids, np.int64), np.array(routing.weights, np.float32)
    expected = (tokens, geometry.num_experts_per_tok)
    if ids.shape != expected or weights.shape != expected:
        raise ShapeError(f"moe_experts: routing has {ids.shape} ids and {weights.shape} weights, expected {expected}")
    if tokens and (ids.min() < 0 or ids.max() >= geometry.n_routed_experts):
        raise K2Error(
            f"moe_experts: expert ids reach from {ids.min()} to {ids.max()}, layer {layer} has {geometry.n_routed_experts}"
        )
    return ids, weights


def sum_of(given: Any, tokens: int, hidden: int) -> NDArray[np.float32]:
    """A copy of what another backend gave for the sum of a layer's experts, as contiguous float32, checked."""
    total = np.array(given, np.float32, order="C")  # a copy: PyTorch warns of arrays that nobody may write to
    if total.shape != (tokens, hidden):
        raise ShapeError(f"moe_experts: another backend's experts gave {total.shape}, expected {(tokens, hidden)}")
    return total
