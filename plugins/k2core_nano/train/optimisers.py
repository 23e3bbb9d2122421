"""What changes the masters: AdamW, and for the matrices of the hidden layers MuonClip or, to compare, AdamW too.

muonclip - matrices by Muon at --muon-rate, heads with too large attention logits clipped (QK-clip).
adamw    - matrices by AdamW at --adam-rate with --weight-decay, their gradients scaled to norm 1 at most; no QK-clip.

Embedding, head, norm gains and router are the same with both: AdamW at --adam-rate without decay, gradients scaled to norm 1.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

from k2core_nano.train.muon import Muon, clip_queries_and_keys


def is_matrix(name: str) -> bool:
    """Whether a parameter is a hidden matrix (embedding, head, norms and router are not)."""
    return not any(part in name for part in ("embed_tokens", "lm_head", "norm", "gate.weight"))


class Optimisers:
    """The optimisers of one set of masters, with their state.

    Args:
        masters: parameter name -> float32 weights, which are changed in place.
        options: of `trainer`.
        nope: rows of a head's query and key that are not rotated.
    """

    def __init__(self, masters: dict[str, Tensor], options: argparse.Namespace, nope: int) -> None:
        self.masters = masters
        self.options = options
        self.nope = nope
        self.matrices = [name for name in masters if is_matrix(name)]
        self.others = [name for name in masters if not is_matrix(name)]
        muon = options.optimizer == "muonclip"
        groups: list[dict[str, Any]] = [{"params": [masters[name] for name in self.others]}]
        if not muon:
            groups.append({"params": [masters[name] for name in self.matrices], "weight_decay": options.weight_decay})
        self.adam = torch.optim.AdamW(groups, lr=options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
        self.muon = Muon([masters[n] for n in self.matrices], weight_decay=options.weight_decay) if muon else None

    def step(self, gradients: dict[str, Tensor], factor: float) -> None:
        """One update.

        Args:
            gradients: parameter name -> float32 mean gradient, which may be scaled in place.
            factor: on the learning rates.
        """
        for entry in self.adam.param_groups:
            entry["lr"] = self.options.adam_rate * factor
        for names in (self.others,) if self.muon else (self.others, self.matrices):
            for name in names:
                self.masters[name].grad = gradients[name]
            torch.nn.utils.clip_grad_norm_([self.masters[name] for name in names], 1.0)
        self.adam.step()
        if self.muon:
            self.muon.step([gradients[name] for name in self.matrices], self.options.muon_rate * factor)

    def clip(self, peaks: Tensor) -> int:
        """Bring attention logits back to --logit-limit; only with muonclip.

        Args:
            peaks: (layers, heads) float32, each head's largest logit; 0 where it was not measured.

        Returns:
            How many heads were clipped.
        """
        if self.muon is None:
            return 0
        limit, clipped = self.options.logit_limit, 0
        for index, largest in enumerate(peaks.amax(1).tolist()):
            if largest > limit:
                base = f"model.layers.{index}.self_attn"
                query, key_value = self.masters[f"{base}.q_b_proj.weight"], self.masters[f"{base}.kv_b_proj.weight"]
                clipped += clip_queries_and_keys(query, key_value, peaks[index], limit, self.nope)
        return clipped

    def state_dict(self) -> dict[str, Any]:
        """{"adam": state, "muon": state, or None with adamw}."""
        return {"adam": self.adam.state_dict(), "muon": self.muon.state_dict() if self.muon else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, of the same choice of optimiser."""
        self.adam.load_state_dict(state["adam"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])
