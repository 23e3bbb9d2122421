"""The feed-forward of a layer, and the seam of the experts: NumPy in and out, PyTorch in between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from k2core.errors import K2Error
from k2core.interfaces import Numerics, Routing
from k2core_torch.computing import computing
from k2core_torch.products import product
from k2core_torch.routed import Elsewhere, TorchExperts
from k2core_torch.seam import CLOSED, states_of
from k2core_torch.tensors import Tensors

Tensor = torch.Tensor


@frozen(eq=False)
class MlpWeights:
    """A gated feed-forward: of a dense layer or the shared expert."""

    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def read(cls, tensors: Tensors, prefix: str, *, is_small: bool) -> "MlpWeights":
        """From the checkpoint."""
        read = tensors.float32 if is_small else tensors.plain
        return cls(*(read(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down")))

    def __call__(self, x: Tensor, numerics: Numerics) -> Tensor:
        """down(silu(gate x) * up x): (tokens, hidden) float32."""
        inner = torch.nn.functional.silu(product(x, self.gate, numerics)) * product(x, self.up, numerics)
        return product(inner, self.down, numerics)


class TorchMoE:
    """Router, shared expert and routed experts of every MoE layer; implements `k2core.interfaces.MoEForward`."""

    def __init__(self, tensors: Tensors, routed: TorchExperts | Elsewhere, numerics: Numerics, *, is_small: bool) -> None:
        self._geometry, self._device, self._numerics = tensors.checkpoint.geometry, tensors.device, numerics
        self._routed, self._is_closed, self._layer_bytes = routed, False, tensors.layer_bytes
        layers = self._geometry.moe_layers
        names = {layer: f"model.layers.{layer}.mlp" for layer in layers}
        self._routers = {layer: tensors.float32(f"{name}.gate.weight") for layer, name in names.items()}
        self._biases = {layer: tensors.float32(f"{name}.gate.e_score_correction_bias") for layer, name in names.items()}
        self._shared = {
            layer: MlpWeights.read(tensors, f"{name}.shared_experts", is_small=is_small) for layer, name in names.items()
        }

    def route(self, layer: int, x: Any) -> Routing:
        """See `k2core.interfaces.MoEForward.route`.

        Raises:
            K2Error: the layer has no experts, or the model is closed.
            ShapeError: x is not (tokens, hidden).
        """
        states = self._given(layer, x)
        with computing(self._device, f"routing {len(states)} tokens", work=self._layer_bytes * len(states)):
            ids, weights = self.choose(layer, torch.from_numpy(states).to(self._device))
            return Routing(expert_ids=ids.to(torch.int32).cpu().numpy(), weights=weights.cpu().numpy())

    def experts(self, layer: int, x: Any, routing: Routing) -> NDArray[np.float32]:
        """See `k2core.interfaces.RoutedExperts.experts`; errors as of `TorchExperts.experts`."""
        self._see_open()
        return self._routed.experts(layer, x, routing)

    def forward(self, layer: int, x: Any) -> NDArray[np.float32]:
        """See `k2core.interfaces.MoEForward.forward`; errors as of `route`."""
        states = self._given(layer, x)
        with computing(self._device, f"the feed-forward of {len(states)} tokens", work=self._layer_bytes * len(states)):
            given = torch.from_numpy(states).to(self._device)
            return self.apply(layer, given, *self.choose(layer, given)).cpu().numpy()

    def choose(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids (tokens, top_k) int64, ties to the lower index, and weights float32."""
        g = self._geometry
        scores = torch.sigmoid(x @ self._routers[layer].t())
        ids = (scores + self._biases[layer]).argsort(dim=-1, descending=True, stable=True)[:, : g.num_experts_per_tok]
        weights = scores.gather(-1, ids)
        if g.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * g.routed_scaling_factor

    def apply(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Routed sum plus the shared expert."""
        return self._routed.sum(layer, x, ids, weights) + self._shared[layer](x, self._numerics)

    def info(self) -> Mapping[str, str]:
        """See `TorchExperts.info`."""
        return self._routed.info()

    def close(self) -> None:
        """Give everything back; another's experts are closed."""
        self._is_closed = True
        for weights in (self._routers, self._biases, self._shared):
            weights.clear()
        self._routed.close()

    def _given(self, layer: int, x: Any) -> NDArray[np.float32]:
        self._see_open()
        return states_of(self._geometry, layer, x)

    def _see_open(self) -> None:
        if self._is_closed:
            raise K2Error(CLOSED)
