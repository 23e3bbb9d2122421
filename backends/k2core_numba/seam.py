"""What comes in through the seam of the experts, checked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.errors import K2Error, ShapeError
from k2core.interfaces import Routing
from k2core.model.config import Geometry
from k2core_numba.packing import round_up


def states_of(geometry: Geometry, layer: int, x: Any) -> NDArray[np.float32]:
    """x as (tokens, hidden) float32.

    Raises:
        K2Error: the layer has no experts.
        ShapeError: x has another shape.
    """
    if layer not in geometry.moe_layers:
        layers = geometry.moe_layers
        raise K2Error(f"layer {layer} has no experts; layers {layers.start} to {layers.stop - 1} have")
    states = np.asarray(x, np.float32)
    if states.ndim != 2 or states.shape[1] != geometry.hidden_size:
        raise ShapeError(f"moe: x is {states.shape}, expected (tokens, {geometry.hidden_size})")
    return states


def routing_of(geometry: Geometry, layer: int, tokens: int, routing: Routing) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Copies of expert ids and weights, (tokens, top_k).

    Raises:
        K2Error: an expert's id does not exist.
        ShapeError: they have another shape.
    """
    ids, weights = np.array(routing.expert_ids), np.array(routing.weights, np.float32)
    expected = (tokens, geometry.num_experts_per_tok)
    if ids.shape != expected or weights.shape != expected:
        raise ShapeError(f"moe_experts: routing has {ids.shape} ids and {weights.shape} weights, expected {expected}")
    if tokens and (ids.min() < 0 or ids.max() >= geometry.n_routed_experts):
        raise K2Error(
            f"moe_experts: expert ids reach from {ids.min()} to {ids.max()}, layer {layer} has {geometry.n_routed_experts}"
        )
    return ids.astype(np.int32), weights


def sum_of(given: Any, tokens: int, hidden: int) -> NDArray[np.float32]:
    """What another backend gave for the sum of a layer's experts, as (tokens, hidden) float32.

    Raises:
        ShapeError: it has another shape.
    """
    total = np.asarray(given, np.float32)
    if total.shape != (tokens, hidden):
        raise ShapeError(f"moe_experts: another backend's experts gave {total.shape}, expected {(tokens, hidden)}")
    return total


def padded(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows filled with zeros to whole vectors."""
    rows = np.zeros((len(states), round_up(states.shape[1])), np.float32)
    rows[:, : states.shape[1]] = states
    return rows
