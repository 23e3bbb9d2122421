"""Packed weights, seen column by column through the seam of the experts."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from k2core.conformance.cases import GROUP, Case
from k2core.conformance.judged import Judged
from k2core.conformance.probes.base import LAYER, Groups, Layer, Outputs, named, one_layer, set_expert, set_matrices
from k2core.interfaces import LoadedModel, Routing
from k2core.model.config import Geometry
from k2core.model.int4 import PackedMatrix, dequantise, pack
from k2core.oracle.arrays import exact
from k2core.oracle.bounds import gamma
from k2core.oracle.rounding import Rounding


class Int4Dequant:
    """`int4_dequant`: states with one value each make an expert's down projection appear column by column."""

    op: ClassVar[str] = "int4_dequant"
    oracle: ClassVar[str] = named(dequantise)
    bound: ClassVar[str | None] = None

    def layer(self, case: Case) -> Layer:
        """A gate of 32 and an up projection of 2**-5 on the diagonal: silu(32) / 32 is 1."""
        layer = one_layer(
            experts=True,
            hidden_size=case["hidden"],
            moe_intermediate_size=case["inner"],
            n_routed_experts=case["experts"],
        )
        gate, up = (_diagonal(case["inner"], case["hidden"], *one) for one in ((4, 8.0), (1, 2.0**-5)))
        for expert in range(case["experts"]):
            set_expert(layer, expert, "gate_proj", gate)
            set_expert(layer, expert, "up_proj", up)
        set_matrices(layer, case, "down")
        return layer

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Every expert's down projection."""
        inner = case["inner"]
        x, weights = np.eye(inner, case["hidden"], dtype=np.float32), np.ones((inner, 1), np.float32)
        found = []
        for expert in range(case["experts"]):
            routing = Routing(expert_ids=np.full((inner, 1), expert, np.int32), weights=weights)
            found.append(np.asarray(model.moe.experts(LAYER, x, routing)).T)
        return {"down": np.stack(found)}

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """Weights beside code * scale."""
        expected = np.stack([exact(matrix.dequantise()) for matrix in case["down"]])
        magnitude = np.abs(expected)
        if rounding.experts == "int8":
            largest = magnitude.reshape(*magnitude.shape[:-1], -1, GROUP).max(-1)
            magnitude = magnitude + np.repeat(largest, GROUP, axis=-1)
        yield Judged(output="down", got=outputs["down"], expected=expected, allowed=magnitude * gamma(9))


def _diagonal(rows: int, columns: int, code: int, scale: float) -> PackedMatrix:
    codes = np.zeros((rows, columns), np.int8)
    np.fill_diagonal(codes, code)
    scales = np.full((rows, columns // GROUP), scale, np.float32)
    return PackedMatrix(packed=pack(codes), scale=scales, shape=(rows, columns))
