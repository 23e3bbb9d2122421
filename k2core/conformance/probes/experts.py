"""Routing, experts and the whole feed-forward, by the seam of the experts and in a forward."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from k2core.conformance.cases import Case
from k2core.conformance.judged import Judged
from k2core.conformance.probes.base import (
    LAYER,
    Groups,
    Layer,
    Outputs,
    forward_groups,
    given,
    named,
    one_layer,
    set_matrices,
    set_plain,
)
from k2core.errors import ShapeError
from k2core.interfaces import LoadedModel, Routing, Want
from k2core.model.config import Geometry
from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact
from k2core.oracle.bounds import (
    gamma,
    moe_experts_bound,
    moe_route_bound,
    rms_norm_bound,
    rms_norm_error,
    swiglu_bound,
)
from k2core.oracle.linear import linear
from k2core.oracle.moe_experts import Expert, moe_experts
from k2core.oracle.moe_route import moe_route, sigmoid
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rounding import Rounding
from k2core.oracle.swiglu import swiglu

MLP = f"model.layers.{LAYER}.mlp"
FORWARD = Want(logits="none", hidden=True, routing=True)


class MoeRoute:
    """`moe_route` by the seam."""

    op: ClassVar[str] = "moe_route"
    oracle: ClassVar[str] = named(moe_route)
    bound: ClassVar[str | None] = named(moe_route_bound)

    def layer(self, case: Case) -> Layer:
        """A router over experts that do not matter."""
        layer = one_layer(experts=True, **_sizes(case), **_weighing(case), moe_intermediate_size=32)
        _set_router(layer, case)
        return layer

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Choices and weights."""
        x = states(case)
        return _joined([model.moe.route(LAYER, x[list(group)]) for group in groups])

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """The choice is admissible, and the weights are those of the choice."""
        yield from judge_routing(case, geometry, states(case), 0.0, outputs)


class MoeExperts:
    """`moe_experts` by the seam, on a given routing."""

    op: ClassVar[str] = "moe_experts"
    oracle: ClassVar[str] = named(moe_experts)
    bound: ClassVar[str | None] = named(moe_experts_bound)

    def layer(self, case: Case) -> Layer:
        """The experts."""
        layer = one_layer(experts=True, **_sizes(case), moe_intermediate_size=case["inner"])
        _set_experts(layer, case)
        return layer

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Weighted sums."""
        routing = routing_of(case)
        return {"y": np.concatenate([experts_of(model, case, routing, list(group)) for group in groups])}

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """Sums beside the oracle's."""
        x, routing = states(case), routing_of(case)
        taken = (x, np.asarray(routing.expert_ids, np.int64), routing.weights, partial(_expert, case))
        expected, allowed = moe_experts(*taken), moe_experts_bound(*taken, rounding.experts)
        yield Judged(output="y", got=outputs["y"], expected=expected, allowed=allowed)


class MoeForward:
    """`moe_forward` by the seam, and in a forward whose attention adds nothing."""

    op: ClassVar[str] = "moe_forward"
    oracle: ClassVar[str] = named(moe_experts)
    bound: ClassVar[str | None] = named(moe_experts_bound)

    def layer(self, case: Case) -> Layer:
        """Nothing but the feed-forward."""
        layer = one_layer(
            experts=True,
            **_sizes(case),
            **_weighing(case),
            moe_intermediate_size=case["inner"],
            n_shared_experts=case["shared"],
            vocab_size=case["tokens"],
            rms_norm_eps=case["eps"],
        )
        _set_router(layer, case)
        _set_experts(layer, case)
        for name in ("gate", "up", "down"):
            set_plain(layer, f"{MLP}.shared_experts.{name}_proj.weight", case[f"shared_{name}"])
        set_plain(layer, "model.embed_tokens.weight", case["x"])
        set_plain(layer, f"model.layers.{LAYER}.post_attention_layernorm.weight", case["post_norm"])
        set_plain(layer, "model.norm.weight", case["final_norm"])
        return layer

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Choice, weights and sum by the seam, on the oracle's normalised states as float32."""
        x = self.states(case)
        outputs = _joined([model.moe.route(LAYER, x[list(group)]) for group in groups])
        return outputs | {"y": np.concatenate([np.asarray(model.moe.forward(LAYER, x[list(group)])) for group in groups])}

    def run_forward(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Choice, weights and hidden states of a forward."""
        steps = forward_groups(model, groups, FORWARD)
        outputs = _joined([step.routing[0] for step in steps if step.routing is not None])
        return outputs | {"hidden": np.concatenate([np.asarray(step.hidden) for step in steps])}

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """The choice is admissible; sums beside the oracle's on that choice."""
        yield from judge_routing(case, geometry, self.states(case), 0.0, outputs)
        expected, allowed = self._sum(case, geometry, self.states(case), 0.0, outputs, rounding)
        yield Judged(output="y", got=outputs["y"], expected=expected, allowed=allowed)

    def judge_forward(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """The same in a forward: norm, feed-forward, residual, norm."""
        x, eps, final = exact(case["x"]), geometry.rms_norm_eps, case["final_norm"]
        normed = rms_norm(x, case["post_norm"], eps)
        error = rms_norm_bound(normed)
        yield from judge_routing(case, geometry, normed, error, outputs)
        added, added_error = self._sum(case, geometry, normed, error, outputs, rounding)
        behind = x + added
        error = added_error + (np.abs(behind) + added_error) * gamma(2)
        expected, allowed = rms_norm(behind, final, eps), rms_norm_error(behind, final, eps, error)
        yield Judged(output="hidden", got=outputs["hidden"], expected=expected, allowed=allowed)

    def states(self, case: Case) -> NDArray[np.float32]:
        """Normalised states, float32 for the seam."""
        return rms_norm(case["x"], case["post_norm"], case["eps"]).astype(np.float32)

    def _sum(
        self, case: Case, geometry: Geometry, x: AnyFloat, x_error: AnyFloat | float, outputs: Outputs, rounding: Rounding
    ) -> tuple[Float64, Float64]:
        ids = np.asarray(outputs["expert_ids"], np.int64)
        weights, weights_error = weights_of(case, geometry, x, x_error, ids)
        gate, up, down = (case[f"shared_{name}"] for name in ("gate", "up", "down"))
        routed = moe_experts(x, ids, weights, partial(_expert, case))
        total = routed + swiglu(x, gate, up, down)
        error = moe_experts_bound(x, ids, weights, partial(_expert, case), rounding.experts, x_error, weights_error)
        error = error + swiglu_bound(x, gate, up, down, rounding.dense, x_error)
        return total, error + (np.abs(routed) + np.abs(total) + error) * gamma(2)


def experts_of(model: LoadedModel, case: Case, routing: Routing, tokens: list[int]) -> NDArray[Any]:
    """The seam's weighted sums for some tokens of a case."""
    part = Routing(expert_ids=routing.expert_ids[tokens], weights=routing.weights[tokens])
    return np.asarray(model.moe.experts(LAYER, states(case)[tokens], part))


def states(case: Case) -> NDArray[np.float32]:
    """Hidden states for the seam."""
    return given(case, "x", "tokens", "hidden").astype(np.float32)


def routing_of(case: Case) -> Routing:
    """The routing that a case gives.

    Raises:
        ShapeError: it is no choice of experts.
    """
    ids = given(case, "expert_ids", "tokens", "top_k")
    if ids.dtype.kind != "i" or not 0 <= ids.min() <= ids.max() < case["experts"]:
        raise ShapeError(f"expert_ids: got {ids.min()} to {ids.max()}, expected indices of {case['experts']} experts")
    return Routing(expert_ids=ids, weights=given(case, "weights", "tokens", "top_k"))


def judge_routing(case: Case, geometry: Geometry, x: AnyFloat, x_error: AnyFloat | float, outputs: Outputs) -> Iterator[Judged]:
    """A choice may leave out no expert that is better beyond both errors; its weights have the router's bound."""
    experts, top_k = case["experts"], case["top_k"]
    ids = np.asarray(outputs["expert_ids"])
    if ids.shape != (len(x), top_k) or ids.dtype.kind != "i":
        raise ShapeError(f"expert_ids: got an array {ids.shape} of {ids.dtype}, expected {(len(x), top_k)} of whole numbers")
    ids = ids.astype(np.int64)
    distinct = np.array([len(set(row)) for row in ids.tolist()]) == top_k
    if not distinct.all() or ids.min() < 0 or ids.max() >= experts:
        wrong = np.full((1, 1), np.nan)  # no choice at all
        yield Judged(output="expert_ids", got=wrong, expected=np.zeros((1, 1)), allowed=np.zeros((1, 1)))
        return
    scores = sigmoid(linear(x, case["router"]))
    weights, weights_error = weights_of(case, geometry, x, x_error, ids)
    error, _ = moe_route_bound(x, case["router"], scores, weights, factor=geometry.routed_scaling_factor, x_error=x_error)
    biased = scores + exact(case["bias"])
    left_out = np.ones(biased.shape, bool)
    np.put_along_axis(left_out, ids, False, -1)
    rivals = np.where(left_out, biased, -np.inf)
    best = rivals.argmax(-1)[:, None]
    chosen, chosen_error = (np.take_along_axis(one, ids, -1) for one in (biased, error))
    short = np.maximum(rivals.max(-1, keepdims=True) - chosen, 0.0)  # by how much a chosen one is worse than one left out
    allowed = chosen_error + np.take_along_axis(error, best, -1)
    yield Judged(output="expert_ids", got=short, expected=np.zeros(ids.shape), allowed=allowed)
    yield Judged(output="weights", got=outputs["weights"], expected=weights, allowed=weights_error)


def weights_of(case: Case, geometry: Geometry, x: AnyFloat, x_error: AnyFloat | float, ids: Int64) -> tuple[Float64, Float64]:
    """The router's weights of a given choice, and how far they may be off."""
    scores = sigmoid(linear(x, case["router"]))
    weights = np.take_along_axis(scores, ids, -1)
    if geometry.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    weights = weights * geometry.routed_scaling_factor
    factor = geometry.routed_scaling_factor
    return weights, moe_route_bound(x, case["router"], scores, weights, factor=factor, x_error=x_error)[1]


def _sizes(case: Case) -> dict[str, Any]:
    return {"hidden_size": case["hidden"], "n_routed_experts": case["experts"], "num_experts_per_tok": case["top_k"]}


def _weighing(case: Case) -> dict[str, Any]:
    return {"norm_topk_prob": case["normalise"], "routed_scaling_factor": case["factor"]}


def _set_router(layer: Layer, case: Case) -> None:
    set_plain(layer, f"{MLP}.gate.weight", case["router"])
    set_plain(layer, f"{MLP}.gate.e_score_correction_bias", case["bias"])


def _set_experts(layer: Layer, case: Case) -> None:
    for name in ("gate", "up", "down"):
        set_matrices(layer, case, name)


def _expert(case: Case, index: int) -> Expert:
    gate, up, down = (case[name][index].dequantise() for name in ("gate", "up", "down"))
    return gate, up, down


def _joined(routings: list[Routing]) -> dict[str, NDArray[Any]]:
    return {
        "expert_ids": np.concatenate([np.asarray(one.expert_ids) for one in routings]),
        "weights": np.concatenate([np.asarray(one.weights) for one in routings]),
    }
