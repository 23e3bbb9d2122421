"""The run: step after step until the budget is used, with log lines and checkpoints on the way."""

import time
from pathlib import Path
from typing import Any

import structlog

from k2core_nano.train.checkpoints import save
from k2core_nano.train.curve import record
from k2core_nano.train.training import Trainer

log = structlog.get_logger()


def run(trainer: Trainer, out: Path) -> str:
    """Train until the budget is used or a stop is requested.

    Args:
        out: folder of the checkpoints, which rank 0 writes: latest.pt, and at-SECONDS.pt now and then.

    Returns:
        "done" or "stopped".
    """
    o, c = trainer.options, trainer.counters
    trainer.set_weights()
    started = time.monotonic() - c["seconds"]
    logged = saved = archived = c["seconds"]
    since = (c["seconds"], c["document_tokens"], c["prefix_tokens"])
    waited, ending = 0.0, "done"
    while trainer.progress() < 1:
        due = c["seconds"] - logged >= o.log_every
        result = trainer.step(started=started, watch_logits=due or c["step"] % 10 == 0)
        record(c, result["loss"])
        waited += result["wait_s"]
        if trainer.rank == 0 and not result["healthy"]:
            log.warning("train.step_skipped", step=c["step"], loss=result["loss"])
        if due:
            if trainer.rank == 0:
                report(trainer, result, since, waited)
            logged, waited, since = c["seconds"], 0.0, (c["seconds"], c["document_tokens"], c["prefix_tokens"])
        if c["seconds"] - saved >= o.save_every:
            if trainer.rank == 0:
                save(trainer, out / "latest.pt")
                if c["seconds"] - archived >= o.archive_every:
                    save(trainer, out / f"at-{int(c['seconds']):06d}.pt")
                    archived = c["seconds"]
            saved = c["seconds"]
        if result["stop"]:
            ending = "stopped"
            break
    if trainer.rank == 0:
        save(trainer, out / "latest.pt")
        log.info("train.end", ending=ending, **summary(trainer))
    return ending


def summary(trainer: Trainer) -> dict[str, Any]:
    """The counters, rounded for a log line."""
    c = trainer.counters
    return {
        "seconds": round(c["seconds"]), "step": c["step"], "document_tokens": c["document_tokens"],
        "prefix_tokens": c["prefix_tokens"], "smooth": round(c["smooth"] or 0.0, 4), "phase": c["phase"],
    }  # fmt: skip


def report(trainer: Trainer, result: dict[str, Any], since: tuple[float, int, int], waited: float) -> None:
    """One log line.

    Args:
        result: of the last step.
        since: seconds, document tokens and prefix tokens at the last report.
        waited: seconds spent waiting for other ranks and for feeders since then.
    """
    c = trainer.counters
    span = max(c["seconds"] - since[0], 1e-9)
    log.info(
        "train.progress",
        **summary(trainer),
        loss=round(result["loss"], 4),
        tokens_per_s=round((c["document_tokens"] - since[1]) / span),
        prefix_per_s=round((c["prefix_tokens"] - since[2]) / span),
        wait_share=round(waited / span, 3),
        rate=round(result["rate"], 3),
        rounding=c["rounding"],
        load=[round(float(row.max() / row.mean().clamp_min(1e-9)), 2) for row in trainer.loads],
        peak_logit=round(float(trainer.peaks.max()), 1),
        clipped=c["clipped"],
        families={name: round(value, 3) for name, value in sorted(trainer.family_smooth.items())},
    )
