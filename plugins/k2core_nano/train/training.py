"""One optimiser step of the embedded model: documents in, summed gradients, new weights.

Processes each differentiate their own shares of a step (`feeding`); gradients are summed over gloo, so all of them hold
bit-identical weights. Everything that steers training (clock, loss, router load, stop request) is summed with the gradients and
therefore agreed on.

On CUDA there is one process, and masters, model, optimisers and the summed vector lie there; the host waits for it once per
MoE layer of a pass and a few times per step. This is not tested on a GPU, neither that it works nor how fast: the tests train
on the CPU, and on a simulated device that refuses tensors from elsewhere. Runs on CUDA need not repeat bit for bit (some sums
there are atomic).
"""

import argparse
import time
import zlib
from typing import Any

import structlog
import torch
import torch.distributed as dist
from torch import Tensor

from k2core_nano.train.feeders import Feeders
from k2core_nano.train.feeding import Recipe, Source, Stream, Unfed, passes
from k2core_nano.train.geometry import Geometry
from k2core_nano.train.model import NanoModel, token_losses
from k2core_nano.train.optimisers import Optimisers
from k2core_nano.train.packing import moved
from k2core_nano.train.precision import place
from k2core_nano.train.quantise import fake_bfloat16, fake_quantise

log = structlog.get_logger()

FAMILIES = 4096  # slots of per-family losses in the summed vector; a name's slot is a hash: ranks agree


class Trainer:
    """Model, optimisers and counters of one process.

    Args:
        options: the command line of `trainer`, with all its options.
        geometry: of the model; its weights are drawn on the CPU from ``options.seed``, whatever the device.
        stream: where the documents come from.
    """

    def __init__(self, options: argparse.Namespace, geometry: Geometry, stream: Stream) -> None:
        self.options = options
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.model = NanoModel(geometry)
        named = dict(self.model.named_parameters())
        self.names = list(named)
        self.masters = [parameter.detach().to(self.device, copy=True) for parameter in named.values()]  # unrounded, float32
        place(self.model, self.device, getattr(torch, options.precision))
        self.parameters = list(self.model.parameters())
        self.optimisers = Optimisers(dict(zip(self.names, self.masters, strict=True)), options, geometry.qk_nope_head_dim)
        size = sum(p.numel() for p in self.parameters)
        experts = geometry.n_routed_experts * len(self.model.moe_layers)
        # gradients | loss sum, weight sum, document tokens, prefix tokens, seconds, stop | expert loads | family losses
        self.summed = torch.zeros(size + 8 + experts + 2 * FAMILIES, device=self.device)
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
            "main_tokens": 0, "clipped": 0, "base_seconds": 0.0, "base_tokens": 0, "first_losses": [],
        }  # fmt: skip
        self.peaks = torch.zeros(geometry.num_hidden_layers, geometry.num_attention_heads, device=self.device)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        recipe = Recipe.of(options, stream)
        self.source: Source = Unfed(recipe, range(self.rank, recipe.shares, self.world))
        if options.feeders:
            self.source = Feeders(recipe, options.feeders)
        self.stop_requested = False

    def close(self) -> None:
        """End the processes that make batches, if there are any."""
        self.source.close()

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

    def set_weights(self) -> None:
        """Copy the masters, rounded if the rounding phase has begun, into the model.

        A bfloat16 model then rounds the INT4 values once more: a code times its scale can have more digits than it holds.
        """
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
        c = self.counters
        self.summed.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient if parameter.dtype == gradient.dtype else None
        for layer in self.model.moe_layers:
            layer.load.zero_()
        self.peaks.zero_()
        peak = self.peaks if watch_logits else None
        batches = self.source.batches(step=c["step"], phase=c["phase"], main_tokens=c["main_tokens"])
        for batch in passes(batches, self.options.pass_tokens):
            self.numbers[2] += batch.document_tokens
            self.numbers[3] += batch.prefix_tokens
            if not len(batch.target_rows):
                continue
            slots = torch.tensor([self.slot(family) for family in batch.families])[batch.target_families]
            here, slots = batch.to(self.device), moved(slots, self.device)
            losses = token_losses(self.model, here, peak)
            weighted = losses * here.target_weights
            torch.autograd.backward(weighted.sum())
            self.add_rounded_gradients()
            self.numbers[0] += weighted.detach().sum()
            self.numbers[1] += here.target_weights.sum()
            self.family_sums[0].index_add_(0, slots, weighted.detach())
            self.family_sums[1].index_add_(0, slots, here.target_weights)
        for row, layer in zip(self.loads, self.model.moe_layers, strict=True):
            row.copy_(layer.load)

    def add_rounded_gradients(self) -> None:
        """Add the gradients of bfloat16 parameters to the float32 vector (those of float32 ones are summed there at once)."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.dtype != gradient.dtype and parameter.grad is not None:
                gradient.add_(parameter.grad)
                parameter.grad = None

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
            waiting for the other ranks and for feeders) and rate (factor on the learning rates).
        """
        o, c = self.options, self.counters
        progress = self.progress()
        rounding = progress >= 1 - o.rounding_share
        if rounding != c["rounding"]:
            c["rounding"] = rounding
            self.set_weights()
        factor = self.rate()
        fed = self.source.waited_s
        self.accumulate(watch_logits=watch_logits)
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # the clock is read next
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
        waited += self.source.waited_s - fed
        return {"loss": loss, "healthy": healthy, "stop": stop > 0, "wait_s": waited, "rate": factor}

    def smooth(self, loss: float) -> None:
        """Let the running means of the loss, whole and by family, follow this step's."""
        c = self.counters
        c["smooth"] = loss if c["smooth"] is None else 0.97 * c["smooth"] + 0.03 * loss
        sums = self.family_sums.cpu()
        for family, slot in self.family_slots.items():
            weight = float(sums[1, slot])
            if weight:
                value = float(sums[0, slot]) / weight
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
        self.optimisers.step(dict(zip(self.names, self.gradients, strict=True)), factor)
        self.counters["clipped"] += self.optimisers.clip(self.peaks)
        self.set_weights()

    def balance(self, rate: float) -> None:
        """Move every expert's selection bias by `rate` against its load error."""
        for load, layer in zip(self.loads, self.model.moe_layers, strict=True):
            layer.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)
