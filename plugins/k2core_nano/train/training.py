"""One optimiser step of the embedded model: documents in, summed gradients, new weights.

Processes each generate, pack and differentiate their own share of a step; gradients are summed over gloo, so all of them hold
bit-identical weights. Everything that steers training (clock, loss, router load, stop request) is summed with the gradients and
therefore agreed on. The data of a step depend only on (seed, step, rank, phase): resuming needs no generator state.
"""

import argparse
import time
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import structlog
import torch
import torch.distributed as dist
from torch import Tensor

from k2core_nano.train.geometry import Geometry
from k2core_nano.train.model import NanoModel, token_losses
from k2core_nano.train.muon import Muon, clip_queries_and_keys
from k2core_nano.train.packing import GroupLike, pack
from k2core_nano.train.quantise import fake_bfloat16, fake_quantise

log = structlog.get_logger()

FAMILIES = 4096  # slots of per-family losses in the summed vector; a name's slot is a hash: ranks agree


class Stream(Protocol):
    """Where training documents come from."""

    def __call__(self, seed: int, *, tokens: int, phase: str) -> Iterator[GroupLike]:
        """Groups of about `tokens` document tokens without end, the same for the same arguments; phase: "copy" or "main"."""


def uses_muon(name: str) -> bool:
    """Whether a parameter is a hidden matrix (embedding, head, norms and router are not)."""
    return not any(part in name for part in ("embed_tokens", "lm_head", "norm", "gate.weight"))


class Trainer:
    """Model, optimisers and counters of one process.

    Args:
        options: the command line of `trainer`, with all its options.
        geometry: of the model; its weights are drawn from ``options.seed``.
        stream: where the documents come from.
    """

    def __init__(self, options: argparse.Namespace, geometry: Geometry, stream: Stream) -> None:
        self.options = options
        self.stream = stream
        torch.manual_seed(options.seed)
        self.model = NanoModel(geometry)
        named = list(self.model.named_parameters())
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.masters = [parameter.detach().clone() for parameter in self.parameters]  # unrounded weights
        chosen = [uses_muon(name) for name in self.names]
        self.matrix_index = [i for i, yes in enumerate(chosen) if yes]
        self.other_index = [i for i, yes in enumerate(chosen) if not yes]
        self.muon = Muon([self.masters[i] for i in self.matrix_index], weight_decay=options.weight_decay)
        self.adam = torch.optim.AdamW(
            [self.masters[i] for i in self.other_index], lr=options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
        )
        size = sum(p.numel() for p in self.parameters)
        experts = geometry.n_routed_experts * len(self.model.moe_layers)
        # gradients | loss sum, weight sum, document tokens, prefix tokens, seconds, stop | expert loads | family losses
        self.summed = torch.zeros(size + 8 + experts + 2 * FAMILIES)
        self.gradients: list[Tensor] = []
        offset = 0
        for parameter in self.parameters:
            self.gradients.append(self.summed[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()
        self.numbers = self.summed[offset : offset + 8]
        self.loads = self.summed[offset + 8 : offset + 8 + experts].view(len(self.model.moe_layers), -1)
        self.family_sums = self.summed[offset + 8 + experts :].view(2, FAMILIES)
        self.family_slots: dict[str, int] = {}
        self.family_smooth: dict[str, float] = {}
        self.counters: dict[str, Any] = {
            "step": 0, "document_tokens": 0, "prefix_tokens": 0, "seconds": 0.0, "phase": "copy", "copy_tokens": 0,
            "smooth": None, "rounding": False, "start_step": 0,
            "main_tokens": 0, "clipped": 0, "base_seconds": 0.0, "base_tokens": 0,
        }  # fmt: skip
        self.peaks = torch.zeros(geometry.num_hidden_layers, geometry.num_attention_heads)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.stop_requested = False

    def progress(self) -> float:
        """Share of the budget that is used, in 0..1 and beyond."""
        o, c = self.options, self.counters
        shares = [0.0]
        if o.seconds:
            shares.append((c["seconds"] - c["base_seconds"]) / o.seconds)
        if o.tokens:
            shares.append((c["document_tokens"] - c["base_tokens"]) / o.tokens)
        return max(shares)

    def rate(self) -> float:
        """Factor on both learning rates: linear warm-up after a start or resume, constant, linear decay to --final-rate."""
        o = self.options
        warm = min(1.0, (self.counters["step"] - self.counters["start_step"] + 1) / max(1, o.warmup_steps))
        left = max(0.0, 1 - self.progress()) / o.decay_share if o.decay_share else 1.0
        return float(warm * max(o.final_rate, min(1.0, left)))

    def groups(self) -> Iterator[list[GroupLike]]:
        """This rank's share of the current step, in pieces of about --pass-tokens document tokens."""
        o, c = self.options, self.counters
        wanted = (o.copy_step_tokens if c["phase"] == "copy" else o.step_tokens) // self.world
        seed = ((o.seed * 1_000_003 + c["step"]) * 64 + self.rank) * 2 + (c["phase"] == "main")
        copies = 0
        if c["phase"] == "main":
            copies = int(wanted * o.copy_mix * max(0.0, 1 - c["main_tokens"] / o.copy_mix_tokens))
        groups = self.stream(seed, tokens=min(wanted, o.group_tokens), phase=c["phase"])
        piece: list[GroupLike] = [next(self.stream(seed, tokens=copies, phase="copy"))] if copies else []
        held = total = sum(len(d.ids) for group in piece for d in group.documents)
        while total < wanted:
            group = next(groups)
            size = sum(len(d.ids) for d in group.documents)
            piece.append(group)
            held, total = held + size, total + size
            if held >= o.pass_tokens:
                yield piece
                piece, held = [], 0
        if piece:
            yield piece

    def set_weights(self) -> None:
        """Copy the masters, rounded if the rounding phase has begun, into the model."""
        with torch.no_grad():
            for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
                if not self.counters["rounding"]:
                    parameter.copy_(master)
                elif ".experts." in name:
                    parameter.copy_(fake_quantise(master))
                else:
                    parameter.copy_(fake_bfloat16(master))

    def accumulate(self, *, watch_logits: bool) -> None:
        """Fill the summed vector with this rank's gradients and numbers."""
        self.summed.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        for layer in self.model.moe_layers:
            layer.load.zero_()
        self.peaks.zero_()
        peak = self.peaks if watch_logits else None
        for piece in self.groups():
            batch = pack(piece)
            self.numbers[2] += batch.document_tokens
            self.numbers[3] += batch.prefix_tokens
            if not len(batch.target_rows):
                continue
            losses = token_losses(self.model, batch, peak)
            weighted = losses * batch.target_weights
            torch.autograd.backward(weighted.sum())
            self.numbers[0] += weighted.detach().sum()
            self.numbers[1] += batch.target_weights.sum()
            slots = torch.tensor([self.slot(family) for family in batch.families])[batch.target_families]
            self.family_sums[0].index_add_(0, slots, weighted.detach())
            self.family_sums[1].index_add_(0, slots, batch.target_weights)
        for row, layer in zip(self.loads, self.model.moe_layers, strict=True):
            row.copy_(layer.load)

    def slot(self, family: str) -> int:
        """A family's place in the summed vector."""
        return self.family_slots.setdefault(family, zlib.crc32(family.encode()) % FAMILIES)

    def step(self, *, started: float, watch_logits: bool) -> dict[str, Any]:
        """One optimiser step over all ranks.

        A step whose loss is not a number or beyond 10,000 changes no weight.

        Args:
            started: `time.monotonic` at second 0 of the training.
            watch_logits: whether to measure the largest attention logits, which are then kept below the limit.

        Returns:
            loss (mean over the weighted targets of all ranks), healthy, stop (some rank was asked to), wait_s (seconds spent
            waiting for the other ranks) and rate (factor on the learning rates).
        """
        o, c = self.options, self.counters
        progress = self.progress()
        rounding = progress >= 1 - o.rounding_share
        if rounding != c["rounding"]:
            c["rounding"] = rounding
            self.set_weights()
        factor = self.rate()
        self.accumulate(watch_logits=watch_logits)
        if self.rank == 0:
            self.numbers[4] = time.monotonic() - started
        self.numbers[5] = float(self.stop_requested)
        waited = time.monotonic()
        if self.world > 1:
            dist.all_reduce(self.summed)
        waited = time.monotonic() - waited
        if watch_logits and self.world > 1:
            dist.all_reduce(self.peaks, dist.ReduceOp.MAX)
        loss_sum, weight_sum, document_tokens, prefix_tokens, seconds, stop = self.numbers[:6].tolist()
        loss = loss_sum / max(weight_sum, 1.0)
        healthy = loss == loss and abs(loss) < 1e4
        if healthy:
            self.update(factor, weight_sum)
            self.balance(o.late_balance_rate if progress > 0.7 else o.balance_rate)
            self.smooth(loss)
        c["prefix_tokens"] += int(prefix_tokens)
        c["seconds"] = seconds
        self.advance(int(document_tokens))
        return {"loss": loss, "healthy": healthy, "stop": stop > 0, "wait_s": waited, "rate": factor}

    def smooth(self, loss: float) -> None:
        """Let the running means of the loss, whole and by family, follow this step's."""
        c = self.counters
        c["smooth"] = loss if c["smooth"] is None else 0.97 * c["smooth"] + 0.03 * loss
        for family, slot in self.family_slots.items():
            weight = float(self.family_sums[1, slot])
            if weight:
                value = float(self.family_sums[0, slot]) / weight
                old = self.family_smooth.get(family, value)
                self.family_smooth[family] = 0.95 * old + 0.05 * value

    def advance(self, tokens: int) -> None:
        """Count a step over `tokens` document tokens; the copy phase ends when it has learnt enough or used its share."""
        o, c = self.options, self.counters
        c["step"] += 1
        c["document_tokens"] += tokens
        c["main_tokens" if c["phase"] == "main" else "copy_tokens"] += tokens
        if c["phase"] == "copy" and ((c["smooth"] or 9.0) < o.copy_until or c["copy_tokens"] >= o.copy_tokens):
            if self.rank == 0:
                log.info("train.phase", phase="main", step=c["step"], copy_tokens=c["copy_tokens"], smooth=c["smooth"])
            c["phase"], c["smooth"], c["start_step"] = "main", None, c["step"]
            self.family_smooth.clear()

    def update(self, factor: float, weight_sum: float) -> None:
        """Optimiser step on the masters from the summed gradients."""
        for gradient in self.gradients:
            gradient.div_(weight_sum)
        for i in self.other_index:
            self.masters[i].grad = self.gradients[i]
        torch.nn.utils.clip_grad_norm_([self.masters[i] for i in self.other_index], 1.0)
        for entry in self.adam.param_groups:
            entry["lr"] = self.options.adam_rate * factor
        self.adam.step()
        self.muon.step([self.gradients[i] for i in self.matrix_index], self.options.muon_rate * factor)
        for index in range(len(self.peaks)):
            self.clip(index)
        self.set_weights()

    def clip(self, index: int) -> None:
        """Keep the attention logits of one layer below --logit-limit."""
        if float(self.peaks[index].max()) > self.options.logit_limit:
            base = f"model.layers.{index}.self_attn"
            query = self.masters[self.names.index(f"{base}.q_b_proj.weight")]
            key_value = self.masters[self.names.index(f"{base}.kv_b_proj.weight")]
            nope = self.model.geometry.qk_nope_head_dim
            limit = self.options.logit_limit
            self.counters["clipped"] += clip_queries_and_keys(query, key_value, self.peaks[index], limit, nope)

    def balance(self, rate: float) -> None:
        """Move every expert's selection bias by `rate` against its load error."""
        for load, layer in zip(self.loads, self.model.moe_layers, strict=True):
            layer.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)
