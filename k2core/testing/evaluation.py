"""Evaluations for ``k2 eval NAME``: what they are asked and what they answer.

An evaluation is a plugin's callable ``(Plugins, EvaluationRequest) -> EvaluationReport``, registered by `register_evaluations`.
`k2core.testing.shares` has what most of them need to count.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from k2core.numerics import Progress


@frozen(kw_only=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        count: questions per row of the report.
        seed: of the questions.
        model: a registered model or a checkpoint folder.
        backend: a registered backend.
        families: which families; empty for all.
        store: journal file that keeps the runs; None keeps none.
        masks: with and without masks, one after the other, or one of the two alone.
        progress: called with (what, done, total).
    """

    count: int = 20
    seed: int = 0
    model: str = "nano"
    backend: str = "numba"
    families: tuple[str, ...] = ()
    store: Path | None = None
    masks: tuple[bool, ...] = (True, False)
    progress: Progress | None = None


@frozen(kw_only=True)
class EvaluationReport:
    """What came out.

    Attributes:
        rows: one mapping per family and level, JSON values only.
        text: the same as a table for a terminal.
        json: everything, for ``--json``.
    """

    rows: tuple[Mapping[str, Any], ...]
    text: str
    json: Mapping[str, Any]
