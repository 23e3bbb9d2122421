"""Attention with its cache, behind the residual and the last norm; and rotations alone, seen in the shares they decide."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from k2core.conformance.cases import Case
from k2core.conformance.judged import Judged
from k2core.conformance.probes.base import LAYER, Groups, Layer, Outputs, named, one_layer, set_plain, yarn
from k2core.errors import ShapeError
from k2core.interfaces import LoadedModel, SequenceInput, Want
from k2core.model.config import Geometry
from k2core.oracle.arrays import AnyFloat, exact
from k2core.oracle.attention_bound import attention_bound
from k2core.oracle.bounds import gamma, rms_norm_bound, rms_norm_error
from k2core.oracle.forward import attention_name, attention_of
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rope_yarn import rope_yarn
from k2core.oracle.rounding import Rounding

HIDDEN = Want(logits="none", hidden=True)


class MlaAttention:
    """`mla_attention`: token t is row t of the embedding; a group of indices is a piece of the one sequence."""

    op: ClassVar[str] = "mla_attention"
    oracle: ClassVar[str] = named(attention_of)
    bound: ClassVar[str | None] = named(attention_bound)

    def layer(self, case: Case) -> Layer:
        """Nothing but attention."""
        layer = one_layer(
            experts=False,
            hidden_size=case["hidden"],
            vocab_size=case["tokens"],
            num_attention_heads=case["heads"],
            num_key_value_heads=case["heads"],
            q_lora_rank=case["query_rank"],
            kv_lora_rank=case["rank"],
            qk_nope_head_dim=case["nope"],
            qk_rope_head_dim=case["rope"],
            v_head_dim=case["value"],
            rms_norm_eps=case["eps"],
            latent_norm_eps=case["latent_eps"],
            **yarn(case),
        )
        set_plain(layer, "model.embed_tokens.weight", case["x"])
        set_plain(layer, f"model.layers.{LAYER}.input_layernorm.weight", case["input_norm"])
        set_plain(layer, "model.norm.weight", case["final_norm"])
        for name in ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"):
            set_plain(layer, attention_name(LAYER, name), case[name])
        return layer

    def ids(self, case: Case) -> list[int]:
        """The sequence."""
        return list(range(case["tokens"]))

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Hidden states of the sequence, one piece after the other."""
        ids, handle = self.ids(case), model.new_sequence()
        try:
            pieces = [
                np.asarray(model.forward([SequenceInput(handle=handle, token_ids=[ids[i] for i in group])], HIDDEN).hidden)
                for group in groups
            ]
        finally:
            model.free(handle)
        return {"hidden": np.concatenate(pieces)}

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """Hidden states beside the oracle's."""
        yield judged(geometry, self.layer(case).tensors, self.ids(case), outputs["hidden"], rounding)


class RopeYarn(MlaAttention):
    """`rope_yarn`: every token is a unit vector of its own, so that queries, keys and values can be given one by one."""

    op: ClassVar[str] = "rope_yarn"
    oracle: ClassVar[str] = named(rope_yarn)

    def layer(self, case: Case) -> Layer:
        """Scores are of rotated parts alone; what a token attends to is read off the coordinates of its state."""
        tokens, rope, hidden, nope = case["tokens"], case["rope"], case["hidden"], 4
        if tokens >= hidden:
            raise ShapeError(f"{tokens} tokens and one before them are more than hidden states have places ({hidden})")
        layer = one_layer(
            experts=False,
            hidden_size=hidden,
            vocab_size=tokens + 1,
            q_lora_rank=hidden,
            kv_lora_rank=hidden,
            qk_nope_head_dim=nope,
            qk_rope_head_dim=rope,
            v_head_dim=hidden,
            max_position_embeddings=4096,
            **yarn(case),
        )
        root = hidden**-0.5
        one, zero = np.eye(hidden), np.zeros((hidden, hidden))
        query, key = np.zeros((nope + rope, hidden)), np.zeros((hidden + rope, hidden))
        query[nope:, :tokens] = exact(case["query"]).T * root
        key[:hidden], key[hidden:, :tokens] = one, exact(case["key"]).T * root
        set_plain(layer, "model.embed_tokens.weight", one[: tokens + 1])
        for name in ("input_layernorm.weight", "self_attn.q_a_layernorm.weight", "self_attn.kv_a_layernorm.weight"):
            set_plain(layer, f"model.layers.{LAYER}.{name}", np.ones(hidden))
        set_plain(layer, "model.norm.weight", np.ones(hidden))
        set_plain(layer, attention_name(LAYER, "q_a_proj"), one)
        set_plain(layer, attention_name(LAYER, "q_b_proj"), query)
        set_plain(layer, attention_name(LAYER, "kv_a_proj_with_mqa"), key)
        set_plain(layer, attention_name(LAYER, "kv_b_proj"), np.concatenate([zero[:nope], one]))
        set_plain(layer, attention_name(LAYER, "o_proj"), one)
        return layer

    def ids(self, case: Case) -> list[int]:
        """As many tokens without query and key as the offset says, then the tokens."""
        return [case["tokens"]] * case["offset"] + list(range(case["tokens"]))

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """Hidden states of all tokens."""
        return super().run(model, case, [range(case["offset"] + case["tokens"])])


def judged(geometry: Geometry, tensors: dict[str, Any], ids: list[int], got: AnyFloat, rounding: Rounding) -> Judged:
    """Hidden states behind one layer's attention, the residual and the last norm, beside the oracle's."""

    def weight(name: str) -> AnyFloat:
        values: AnyFloat = tensors[attention_name(LAYER, name)]
        return values

    eps, final = geometry.rms_norm_eps, tensors["model.norm.weight"]
    x = exact(tensors["model.embed_tokens.weight"])[ids]
    normed = rms_norm(x, tensors[f"model.layers.{LAYER}.input_layernorm.weight"], eps)
    error = attention_bound(geometry, weight, normed, rms_norm_bound(normed), rounding)
    behind = x + attention_of(geometry, weight, normed)
    error = error + (np.abs(behind) + error) * gamma(2)
    expected, allowed = rms_norm(behind, final, eps), rms_norm_error(behind, final, eps, error)
    return Judged(output="hidden", got=got, expected=expected, allowed=allowed)
