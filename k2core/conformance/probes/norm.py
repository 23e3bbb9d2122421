"""The last norm and the output head, of a layer that adds nothing to its embedding."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from k2core.conformance.cases import Case
from k2core.conformance.judged import Judged, check_real
from k2core.conformance.probes.base import Groups, Layer, Outputs, forward_groups, named, one_layer, set_plain
from k2core.interfaces import LoadedModel, Want
from k2core.model.config import Geometry
from k2core.oracle.bounds import linear_bound, rms_norm_bound
from k2core.oracle.linear import linear
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rounding import Rounding, rounding_error


class RmsNorm:
    """`rms_norm`: embedding rows are the inputs, hidden states the results."""

    op: ClassVar[str] = "rms_norm"
    oracle: ClassVar[str] = named(rms_norm)
    bound: ClassVar[str | None] = named(rms_norm_bound)

    def layer(self, case: Case) -> Layer:
        """Nothing but the last norm."""
        sizes = {"hidden_size": case["hidden"], "vocab_size": case["tokens"], "rms_norm_eps": case["eps"]}
        layer = one_layer(experts=False, **sizes)
        set_plain(layer, "model.embed_tokens.weight", case["x"])
        set_plain(layer, "model.norm.weight", case["gain"])
        return layer

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Hidden states."""
        steps = forward_groups(model, groups, Want(logits="none", hidden=True))
        return {"hidden": np.concatenate([np.asarray(step.hidden) for step in steps])}

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """Hidden states beside the norm of the embedding."""
        expected = rms_norm(case["x"], case["gain"], geometry.rms_norm_eps)
        yield Judged(output="hidden", got=outputs["hidden"], expected=expected, allowed=rms_norm_bound(expected))


class LmHead:
    """`lm_head`: judged on the hidden states that the model itself reports."""

    op: ClassVar[str] = "lm_head"
    oracle: ClassVar[str] = named(linear)
    bound: ClassVar[str | None] = named(linear_bound)

    def layer(self, case: Case) -> Layer:
        """Nothing but norm and head; ids beyond the tokens have rows of zeros."""
        vocab = max(case["vocab"], case["tokens"])
        layer = one_layer(experts=False, hidden_size=case["hidden"], vocab_size=vocab)
        table = np.zeros((vocab, case["hidden"]), np.float32)
        table[: case["tokens"]] = case["x"]
        set_plain(layer, "model.embed_tokens.weight", table)
        head = np.zeros((vocab, case["hidden"]), np.float32)
        head[: case["vocab"]] = case["weight"]
        set_plain(layer, "lm_head.weight", head)
        return layer

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Hidden states and logits."""
        steps = forward_groups(model, groups, Want(logits="all", hidden=True))
        return {
            "hidden": np.concatenate([np.asarray(step.hidden) for step in steps]),
            "logits": np.concatenate([np.asarray(step.logits) for step in steps])[:, : case["vocab"]],
        }

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """Logits beside those of the reported states."""
        hidden = outputs["hidden"]
        check_real("hidden", hidden)
        error = rounding_error(hidden, rounding.dense)
        expected, allowed = linear(hidden, case["weight"]), linear_bound(hidden, case["weight"], error)
        yield Judged(output="logits", got=outputs["logits"], expected=expected, allowed=allowed)
