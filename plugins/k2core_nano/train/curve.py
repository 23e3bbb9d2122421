"""The losses of a run's first steps, which anybody can repeat from what training.json says of it.

Batches depend on seed and step alone, so the same options give the same documents everywhere; only the order of sums differs
between machines, and with it the last digits.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from k2core_nano.train.feeding import Stream
from k2core_nano.train.geometry import Geometry
from k2core_nano.train.options import parse
from k2core_nano.train.training import Trainer

FIRST = 100  # steps whose losses are recorded
_ELSEWHERE = {"processes": 1, "feeders": 0, "device": "cpu", "weights": None, "resume": None, "rank": 0, "port": 0}


def record(counters: dict[str, Any], loss: float) -> None:
    """Note the loss of a step that was made, if it is one of the first and all before it are noted."""
    losses = counters["first_losses"]
    if len(losses) < FIRST and counters["step"] == len(losses) + 1:
        losses.append(round(loss, 6))


def repeated(options: Mapping[str, Any], geometry: Geometry, stream: Stream, steps: int = FIRST) -> list[float]:
    """Train from the very beginning with the options that training.json names, in one process on the CPU.

    Args:
        options: as the run had them.
        geometry: of its model.
        stream: where its documents came from.
        steps: how many.

    Returns:
        The loss of each step.
    """
    given = {**options, **_ELSEWHERE, "shares": options.get("shares") or options["processes"]}
    trainer = Trainer(argparse.Namespace(**{**vars(parse(["--out", str(Path())])), **given}), geometry, stream)
    trainer.set_weights()
    return [float(trainer.step(started=0.0, watch_logits=step % 10 == 0)["loss"]) for step in range(steps)]
