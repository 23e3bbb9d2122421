"""A forward that stops at every MoE layer, so that the routed experts may lie anywhere: in a cache, or on another backend."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.interfaces import RoutedExperts, Routing
from k2core_numba.experts import NumbaExperts
from k2core_numba.job import Job
from k2core_numba.packing import round_up
from k2core_numba.runtime import LOCK, kernels
from k2core_numba.seam import sum_of


class LayeredForward:
    """Runs compiled stretches of layers with experts in between; the bits are those of the forward in one call."""

    def __init__(self, job: Job, geometry: Any, experts: RoutedExperts) -> None:
        self._job, self._geometry, self._experts, self._kernels = job, geometry, experts, kernels()

    def run(
        self,
        ids: NDArray[np.int64],
        tables: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        final: NDArray[np.float32],
        logits: NDArray[np.float32],
        chosen: NDArray[np.int32],
        shares: NDArray[np.float32],
    ) -> None:
        """As `k2core_kernels.numba.forward.forward`; chosen and shares are (MoE layers, tokens, top_k)."""
        g, stride, layer = self._geometry, round_up(self._geometry.hidden_size), -1
        normed, routed = (self._job.area(name, len(ids) * stride).reshape(-1, stride) for name in ("normed", "routed"))
        arguments = (ids, tables, positions, rows, final, logits, chosen.reshape(-1), shares.reshape(-1))
        while True:
            with LOCK:
                layer = self._kernels.resume(self._job.words, layer, *arguments)
            if layer < 0:
                return
            place = layer - g.moe_layers.start
            if isinstance(self._experts, NumbaExperts):
                self._experts.sum_into(routed, layer, normed, chosen[place], shares[place])
            else:
                routing = Routing(expert_ids=chosen[place].copy(), weights=shares[place].copy())
                routed[:, g.hidden_size :] = 0
                given = self._experts.experts(layer, normed[:, : g.hidden_size].copy(), routing)
                routed[:, : g.hidden_size] = sum_of(given, len(ids), g.hidden_size)
