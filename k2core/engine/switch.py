"""Another model under a running conversation: the same tokens scored on both, before anything moves.

The cache of the one cannot be read by the other, so it is computed again from token ids. The last of them are scored on both:
what differs is reported, and beyond its limit (`k2core.engine.limits`) the switch is refused and everything stays as it was.
"""

from collections.abc import Sequence

import numpy as np
import structlog
from attrs import frozen

from k2core.engine.limits import Limit, Measure, limit_of, median_of, row_errors
from k2core.engine.options import whole
from k2core.errors import InputError, K2Error, said
from k2core.interfaces import Array, LoadedModel, SequenceInput, Want

log = structlog.get_logger()
CHUNK = 512  # tokens per forward while a cache is computed again


@frozen(kw_only=True)
class SwitchReport:
    """How two models score the same tokens.

    Attributes:
        tokens: positions that were compared.
        context: tokens before and with them.
        max_delta: largest difference of two logits.
        error: median over positions of the normalised mean square error of the logits.
        mean_kl, max_kl: of the second's next-token distribution from the first's, nats per position.
        flips: positions with another most probable token.
        clear_flips: of these, where the first's lead over its second choice exceeds twice the limit of `max_delta`.
        limit: the most that `max_delta` or `error` may be.
        measure: which of the two, see `k2core.engine.limits.Limit`.
    """

    tokens: int
    context: int
    max_delta: float
    error: float
    mean_kl: float
    max_kl: float
    flips: int
    clear_flips: int
    limit: float
    measure: Measure = "delta"

    @property
    def is_within(self) -> bool:
        """Whether the switch may be made."""
        if self.measure == "error":
            return self.error <= self.limit
        return self.max_delta <= self.limit and not self.clear_flips

    def __str__(self) -> str:
        told, limit = f"max |Δlogit| {self.max_delta:.2e}", Limit(most=self.limit, measure=self.measure)
        rest = f"KL mean {self.mean_kl:.1e} max {self.max_kl:.1e}, {self.flips} argmax flips"
        if self.measure == "error":
            return f"{self.tokens} tokens: median error {self.error:.1e} ({limit}), {told}, {rest}"
        return f"{self.tokens} tokens: {told} ({limit}), {rest}, {self.clear_flips} of them clear"


class SwitchRefused(K2Error):
    """Two models differ by more than their contract allows; `report` has the figures."""

    def __init__(self, message: str, report: SwitchReport) -> None:
        super().__init__(message)
        self.report = report


def closed_aloud(model: LoadedModel) -> None:
    """Close a model that nobody waits for any more; where that fails, it is logged."""
    try:
        model.close()
    except Exception as error:  # a stranger's backend may raise anything
        log.warning("model.close_failed", reason=said(error))


def score(model: LoadedModel, token_ids: Sequence[int], last: int, *, held: int | None = None) -> Array:
    """Logits behind each of the last *last* tokens: (last, vocab) float32. Nothing of it stays in the cache.

    Args:
        model: scores.
        token_ids: the whole context.
        last: how many of them.
        held: a live sequence of the model that holds *token_ids*; None computes them.
    """
    cut = len(token_ids) - last
    handle = model.new_sequence() if held is None else model.fork(held, cut)
    try:
        for start in range(0, cut if held is None else 0, CHUNK):
            model.forward([SequenceInput(handle=handle, token_ids=token_ids[start : min(start + CHUNK, cut)], rows=0)])
        rows = []
        for start in range(cut, len(token_ids), CHUNK):
            chunk = token_ids[start : start + CHUNK]
            rows.append(model.forward([SequenceInput(handle=handle, token_ids=chunk)], Want(logits="all")).logits)
        return np.concatenate(rows)
    finally:
        model.free(handle)


def compare(old: Array, new: Array, *, context: int, limit: Limit) -> SwitchReport:
    """The report on two scores of the same tokens.

    Args:
        old, new: (tokens, vocab) float32.
        context: tokens before and with them.
        limit: see `SwitchReport`.
    """
    first, second = (np.asarray(one, np.float64) for one in (old, new))
    left, right = _log_probabilities(first), _log_probabilities(second)
    divergence = np.maximum((np.exp(left) * (left - right)).sum(1), 0.0)
    flipped = first.argmax(1) != second.argmax(1)
    top = np.partition(first, -2, axis=1)[:, -2:]
    clear = flipped & (top[:, 1] - top[:, 0] > 2 * limit.most) & (limit.measure == "delta")
    return SwitchReport(
        tokens=len(first),
        context=context,
        max_delta=_finite_max(np.abs(first - second)),
        error=median_of(row_errors(first, second)),
        mean_kl=float(divergence.mean()),
        max_kl=_finite_max(divergence),
        flips=int(flipped.sum()),
        clear_flips=int(clear.sum()),
        limit=limit.most,
        measure=limit.measure,
    )


def judge(
    old: LoadedModel, new: LoadedModel, token_ids: Sequence[int], *, check: int, limit: float | None, held: int | None = None
) -> SwitchReport:
    """Score the last *check* of *token_ids* on both models; *held* is a live sequence of the old one that holds them all.

    Raises:
        InputError: *check* is no whole number from 1 on, or see `limit_of`.
        SwitchRefused: they differ by more than the limit.
    """
    if whole("check", check) < 1:
        raise InputError(f"cannot switch after checking {check} tokens; check at least 1")
    allowed = limit_of(old, new, limit)
    last = min(check, len(token_ids))
    scores = score(old, token_ids, last, held=held), score(new, token_ids, last)
    report = compare(*scores, context=len(token_ids), limit=allowed)
    if not report.is_within:
        raise SwitchRefused(f"the switch is refused, the models differ: {report}", report)
    return report


def _log_probabilities(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _finite_max(values: Array) -> float:
    """The largest value; infinite where one is no number, so that no limit allows it."""
    return float(values.max()) if np.isfinite(values).all() else float("inf")
