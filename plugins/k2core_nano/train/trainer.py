"""Train the embedded model from generated documents.

    python -m k2core_nano.train.trainer --out DIR --seconds 5400

Data-parallel processes (one per core) each generate, pack and differentiate their own share of a step; gradients are summed
over gloo, so all of them hold bit-identical weights. Everything that steers training (clock, loss, router load, stop request)
is summed with the gradients and therefore agreed on. The data of a step depend only on (seed, step, rank, phase): resuming
needs no generator state.

Phases: "copy" (induction is learnt from pure copying) until the smoothed loss is below --copy-until or --copy-tokens are used,
then "main", which keeps a share of copying for a while. Rounding: in the last --rounding-share of the budget the forward pass
sees the weights exactly as they will be exported (INT4 routed experts, bfloat16 others) and the gradient at those values
updates the unrounded ones (straight-through).
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed as dist
from attrs import asdict
from torch import Tensor

from k2core_nano.train.geometry import Geometry
from k2core_nano.train.model import NanoModel, token_losses
from k2core_nano.train.muon import Muon, clip_queries_and_keys
from k2core_nano.train.packing import GroupLike, pack
from k2core_nano.train.quantise import fake_bfloat16, fake_quantise

log = structlog.get_logger()

# Large temporary arrays are otherwise mapped and unmapped at every use; so the heap keeps them, in huge pages (11 % faster).
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1",
}  # fmt: skip

Stream = Callable[[int, int, str], Iterator[GroupLike]]
FAMILIES = 4096  # slots of per-family losses in the summed vector; a name's slot is a hash: ranks agree


def document_stream(seed: int, tokens: int, phase: str) -> Iterator[GroupLike]:
    """The generator of the embedded model's training documents."""
    from k2core_nano.train.documents import stream

    return stream(seed, tokens=tokens, phase=phase)


def uses_muon(name: str) -> bool:
    """Whether a parameter is a hidden matrix (embedding, head, norms and router are not)."""
    return not any(part in name for part in ("embed_tokens", "lm_head", "norm", "gate.weight"))


class Trainer:
    """Model, optimisers and counters of one process."""

    def __init__(self, options: argparse.Namespace, geometry: Geometry, stream: Stream = document_stream) -> None:
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
        groups = self.stream(seed, min(wanted, o.group_tokens), c["phase"])
        piece: list[GroupLike] = [next(self.stream(seed, copies, "copy"))] if copies else []
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
        """One optimiser step over all ranks; what happened, as numbers."""
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
            c["smooth"] = loss if c["smooth"] is None else 0.97 * c["smooth"] + 0.03 * loss
            for family, slot in self.family_slots.items():
                weight = float(self.family_sums[1, slot])
                if weight:
                    value = float(self.family_sums[0, slot]) / weight
                    old = self.family_smooth.get(family, value)
                    self.family_smooth[family] = 0.95 * old + 0.05 * value
        c["step"] += 1
        c["document_tokens"] += int(document_tokens)
        c["prefix_tokens"] += int(prefix_tokens)
        c["seconds"] = seconds
        if c["phase"] == "main":
            c["main_tokens"] += int(document_tokens)
        else:
            c["copy_tokens"] += int(document_tokens)
            if (c["smooth"] or 9.0) < o.copy_until or c["copy_tokens"] >= o.copy_tokens:
                if self.rank == 0:
                    log.info("train.phase", phase="main", step=c["step"], copy_tokens=c["copy_tokens"], smooth=c["smooth"])
                c["phase"], c["smooth"], c["start_step"] = "main", None, c["step"]
                self.family_smooth.clear()
        return {"loss": loss, "healthy": healthy, "stop": stop > 0, "wait_s": waited, "rate": factor}

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

    def save(self, path: Path) -> None:
        """Write a checkpoint that `load` and the exporter read; replaces the file in one move."""
        state = {
            "geometry": asdict(self.model.geometry),
            "options": {k: v for k, v in vars(self.options).items() if isinstance(v, (int, float, str, bool)) or v is None},
            "counters": dict(self.counters),
            "masters": dict(zip(self.names, self.masters, strict=True)),
            "bias": [layer.gate.e_score_correction_bias for layer in self.model.moe_layers],
            "adam": self.adam.state_dict(),
            "muon": self.muon.state_dict(),
            "family_smooth": dict(self.family_smooth),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path, *, restart_schedule: bool) -> None:
        """Continue from a checkpoint; with restart_schedule the budget flags count from here instead of from the very start."""
        state = torch.load(path, weights_only=True)
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(state["masters"][name])
        for layer, bias in zip(self.model.moe_layers, state["bias"], strict=True):
            layer.gate.e_score_correction_bias.copy_(bias)
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
        self.counters.update(state["counters"])
        self.family_smooth = dict(state["family_smooth"])
        self.counters["start_step"] = self.counters["step"]
        if restart_schedule:
            self.counters["base_seconds"] = self.counters["seconds"]
            self.counters["base_tokens"] = self.counters["document_tokens"]
        self.set_weights()

    def run(self, out: Path) -> str:
        """Train until the budget is used or a stop is requested; "done" or "stopped"."""
        o, c = self.options, self.counters
        self.set_weights()
        started = time.monotonic() - c["seconds"]
        logged = saved = archived = c["seconds"]
        since = (c["seconds"], c["document_tokens"], c["prefix_tokens"])
        waited, ending = 0.0, "done"
        while self.progress() < 1:
            due = c["seconds"] - logged >= o.log_every
            result = self.step(started=started, watch_logits=due or c["step"] % 10 == 0)
            waited += result["wait_s"]
            if self.rank == 0 and not result["healthy"]:
                log.warning("train.step_skipped", step=c["step"], loss=result["loss"])
            if due:
                if self.rank == 0:
                    self.report(result, since, waited)
                logged, waited, since = c["seconds"], 0.0, (c["seconds"], c["document_tokens"], c["prefix_tokens"])
            if c["seconds"] - saved >= o.save_every:
                if self.rank == 0:
                    self.save(out / "latest.pt")
                    if c["seconds"] - archived >= o.archive_every:
                        self.save(out / f"at-{int(c['seconds']):06d}.pt")
                        archived = c["seconds"]
                saved = c["seconds"]
            if result["stop"]:
                ending = "stopped"
                break
        if self.rank == 0:
            self.save(out / "latest.pt")
            log.info("train.end", ending=ending, **self.summary())
        return ending

    def summary(self) -> dict[str, Any]:
        """The counters, rounded for a log line."""
        c = self.counters
        return {
            "seconds": round(c["seconds"]), "step": c["step"], "document_tokens": c["document_tokens"],
            "prefix_tokens": c["prefix_tokens"], "smooth": round(c["smooth"] or 0.0, 4), "phase": c["phase"],
        }  # fmt: skip

    def report(self, result: dict[str, Any], since: tuple[float, int, int], waited: float) -> None:
        """One log line."""
        c = self.counters
        span = max(c["seconds"] - since[0], 1e-9)
        log.info(
            "train.progress",
            **self.summary(),
            loss=round(result["loss"], 4),
            tokens_per_s=round((c["document_tokens"] - since[1]) / span),
            prefix_per_s=round((c["prefix_tokens"] - since[2]) / span),
            wait_share=round(waited / span, 3),
            rate=round(result["rate"], 3),
            rounding=c["rounding"],
            load=[round(float(row.max() / row.mean().clamp_min(1e-9)), 2) for row in self.loads],
            peak_logit=round(float(self.peaks.max()), 1),
            clipped=c["clipped"],
            families={name: round(value, 3) for name, value in sorted(self.family_smooth.items())},
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m k2core_nano.train.trainer", description="Train the embedded model.")
    add = p.add_argument
    add("--out", type=Path, required=True, help="folder for checkpoints")
    add("--seconds", type=float, default=0.0, help="budget in seconds of training (0: none)")
    add(
        "--tokens",
        type=int,
        default=0,
        help="budget in document tokens (0: none); the larger used share of the two steers the schedule",
    )
    add("--seed", type=int, default=1)
    add("--processes", type=int, default=2, help="data-parallel processes")
    add("--threads", type=int, default=1, help="threads of each process")
    add("--step-tokens", type=int, default=8192, help="document tokens per optimiser step, all processes together")
    add("--copy-step-tokens", type=int, default=2560, help="the same in the copy phase, which needs steps more than tokens")
    add("--pass-tokens", type=int, default=4096, help="document tokens per forward pass of one process")
    add("--group-tokens", type=int, default=2048, help="document tokens that share one set of tool declarations")
    add("--muon-rate", type=float, default=0.009)
    add("--adam-rate", type=float, default=0.0037)
    add("--weight-decay", type=float, default=0.05)
    add("--warmup-steps", type=int, default=30, help="linear warm-up, also after --resume")
    add("--decay-share", type=float, default=0.45, help="last share of the budget over which the rates fall linearly")
    add("--final-rate", type=float, default=0.02, help="smallest factor on the rates")
    add("--rounding-share", type=float, default=0.2, help="last share of the budget trained on INT4/bfloat16 values")
    add("--balance-rate", type=float, default=0.003)
    add("--logit-limit", type=float, default=100.0, help="largest attention logit before a head is clipped")
    add("--late-balance-rate", type=float, default=0.0005)
    add("--copy-until", type=float, default=0.45, help="smoothed loss that ends the copy phase")
    add("--copy-tokens", type=int, default=2_500_000, help="largest number of tokens in the copy phase")
    add("--copy-mix", type=float, default=0.15, help="share of copy tokens at the start of the main phase")
    add("--copy-mix-tokens", type=int, default=4_000_000, help="main-phase tokens over which that share falls to zero")
    add("--resume", type=Path, help="checkpoint to continue from")
    add("--restart-schedule", action="store_true", help="with --resume: budgets count from the checkpoint on")
    add("--log-every", type=float, default=15.0)
    add("--save-every", type=float, default=180.0)
    add("--archive-every", type=float, default=900.0, help="seconds between checkpoints that are kept under their own name")
    add("--rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--port", type=int, default=0, help=argparse.SUPPRESS)
    return p


def main(arguments: list[str] | None = None, geometry: Geometry | None = None) -> str:
    """Parse the command line, start the other processes, train."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # a sharp softmax leaves tiny probabilities, and arithmetic on denormals halves the speed
    options.out.mkdir(parents=True, exist_ok=True)
    structlog.configure(
        processors=[structlog.processors.TimeStamper("%H:%M:%S"), structlog.processors.JSONRenderer(ensure_ascii=False)],
        logger_factory=structlog.PrintLoggerFactory(),
    )
    children = []
    if options.processes > 1:
        port = options.port or _free_port()
        if options.rank == 0:
            command = [sys.executable, "-m", "k2core_nano.train.trainer", *given, "--port", str(port)]
            children = [
                subprocess.Popen([*command, "--rank", str(rank)], env={**os.environ, **ALLOCATOR})
                for rank in range(1, options.processes)
            ]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", rank=options.rank, world_size=options.processes)
    trainer = Trainer(options, geometry or Geometry())

    def request_stop(*_: object) -> None:
        trainer.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    if options.resume:
        trainer.load(options.resume, restart_schedule=options.restart_schedule)
    if options.rank == 0:
        (options.out / "options.json").write_text(json.dumps({k: str(v) for k, v in vars(options).items()}, indent=1))
        log.info("train.start", parameters=sum(p.numel() for p in trainer.parameters), **trainer.summary())
    ending = trainer.run(options.out)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    for child in children:
        child.wait()
    return ending


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    if "MALLOC_MMAP_MAX_" not in os.environ:  # the C library reads these before any of our code runs
        again = [sys.executable, "-m", "k2core_nano.train.trainer", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **ALLOCATOR})
    main()
