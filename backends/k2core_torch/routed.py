"""Routed experts behind the seam: this backend's own, which it may lend, and those of another backend."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from k2core.errors import K2Error
from k2core.interfaces import Numerics, Progress, RoutedExperts, Routing
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core_torch.computing import computing
from k2core_torch.experts import Experts
from k2core_torch.seam import CLOSED, routing_of, states_of, sum_of
from k2core_torch.tensors import SMALL, Tensors

Tensor = torch.Tensor


class TorchExperts:
    """The routed experts alone; implements `k2core.interfaces.RoutedExperts`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        numerics: Numerics,
        way: str,
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._geometry, self._device = checkpoint.geometry, device
        self._is_closed, tensors = False, Tensors(checkpoint, device)
        self._layer_bytes = tensors.layer_bytes
        self._experts = Experts(
            tensors,
            numerics,
            way=way,
            limit=expert_bytes,
            is_small=checkpoint.size_bytes <= SMALL,
            progress=None if checkpoint.size_bytes <= SMALL else progress,
        )

    def experts(self, layer: int, x: Any, routing: Routing) -> NDArray[np.float32]:
        """Weighted sum of the chosen experts: (tokens, hidden) float32.

        Raises:
            K2Error: the layer has no experts, an expert's id does not exist, or the model is closed.
            ShapeError: x is not (tokens, hidden), or the routing is not (tokens, top_k).
        """
        if self._is_closed:
            raise K2Error(CLOSED)
        states = states_of(self._geometry, layer, x)
        ids, weights = routing_of(self._geometry, layer, len(states), routing)
        with computing(self._device, f"the experts of {len(states)} tokens", work=self._layer_bytes * len(states)):
            given = (torch.from_numpy(one).to(self._device) for one in (states, ids, weights))
            return self.sum(layer, *given).cpu().numpy()

    def sum(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The same on tensors of the device."""
        return self._experts.sum(layer, x, ids, weights)

    @property
    def is_fixed(self) -> bool:
        """Whether `sum` is always the same work for as many tokens, whatever they choose, so that it can be recorded."""
        return self._experts.is_fixed

    def info(self) -> Mapping[str, str]:
        """Names the backend, and what its cache of experts did."""
        return {"backend": "torch", "device": self._device, **self._experts.info()}

    def close(self) -> None:
        """Give everything back."""
        self._is_closed = True
        self._experts.close()


class Elsewhere:
    """Routed experts of another backend, as tensors."""

    is_fixed = False

    def __init__(self, geometry: Geometry, device: str, other: RoutedExperts) -> None:
        self._geometry, self._device, self._other = geometry, device, other

    def sum(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Carry states over and sums back."""
        routing = Routing(expert_ids=ids.to(torch.int32).cpu().numpy(), weights=weights.cpu().numpy())
        given = self._other.experts(layer, x.cpu().numpy(), routing)
        return torch.from_numpy(sum_of(given, *x.shape)).to(self._device)

    def experts(self, layer: int, x: Any, routing: Routing) -> NDArray[np.float32]:
        """As the other gives them."""
        states = states_of(self._geometry, layer, x)
        ids, weights = routing_of(self._geometry, layer, len(states), routing)
        given = self._other.experts(layer, states, Routing(expert_ids=ids.astype(np.int32), weights=weights))
        return sum_of(given, *states.shape)

    def info(self) -> Mapping[str, str]:
        """Whose they are."""
        told = self._other.info()
        return {**told, "experts": told.get("backend", "another")}

    def close(self) -> None:
        """Close the other."""
        self._other.close()
