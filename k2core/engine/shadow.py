"""Two backends side by side: one answers, the other computes the same, and the first divergence is found.

What the shadow does never changes an answer. Where it fails, that is logged once and it is left alone from then on.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog
from attrs import evolve, frozen

from k2core.engine.limits import Limit, Measure, limit_of, median_of, row_errors
from k2core.engine.switch import closed_aloud
from k2core.errors import ShapeError, said
from k2core.interfaces import Array, CacheMemory, LoadedModel, MoEForward, SequenceInput, Step, Want

log = structlog.get_logger()
WINDOW = 64  # rows compared last, whose median error is judged
LEAST = 5  # of them at least are beyond it before that is called a divergence


@frozen(kw_only=True)
class Divergence:
    """Where two models part.

    Attributes:
        handle, position: the sequence, and the place of the token whose logits differ.
        delta: largest difference of two logits there.
        error: normalised mean square error of the logits there, where that is what is judged.
        best, other_best: the most probable token of each.
        margin: by how much the first's best leads.
    """

    handle: int
    position: int
    delta: float
    best: int
    other_best: int
    margin: float
    error: float = 0.0


@frozen(kw_only=True)
class ShadowReport:
    """How two models compared so far.

    Attributes:
        backend: the shadow's name.
        rows: of logits that were compared.
        max_delta: largest difference of two logits.
        error: median over the last rows of the normalised mean square error, where that is what is judged.
        limit: beyond it, they diverge.
        measure: what is held against it, see `k2core.engine.limits.Limit`.
        first: the first divergence; by ``error``, the first row beyond the limit among the last ones, where most of them are.
        failure: why the shadow was left alone.
    """

    backend: str
    rows: int
    max_delta: float
    limit: float
    error: float = 0.0
    measure: Measure = "delta"
    first: Divergence | None = None
    failure: str = ""

    def __str__(self) -> str:
        if self.failure:
            return f"{self.backend} was left alone after {self.rows} rows: {self.failure}"
        by_error, limit = self.measure == "error", Limit(most=self.limit, measure=self.measure)
        most, rows = f"max |Δlogit| {self.max_delta:.2e}", f"{self.rows} row{'' if self.rows == 1 else 's'}"
        if self.first is not None:
            there = f"error {self.first.error:.1e}" if by_error else f"|Δlogit| {self.first.delta:.2e}"
            return (
                f"{self.backend} diverges first at position {self.first.position}: {there} ({limit}), "
                f"best token {self.first.best} against {self.first.other_best}; {rows}, {most}"
            )
        if not by_error:
            return f"{self.backend} agrees on {rows}, {most} ({limit})"
        verb = "agrees on" if self.error <= self.limit else "is beyond its limit so far, on"
        return f"{self.backend} {verb} {rows}, median error {self.error:.1e} ({limit}), {most}"


class ShadowModel:
    """A `LoadedModel` that is *model* for everyone, with another one beside it; it owns both."""

    def __init__(self, model: LoadedModel, other: LoadedModel, backend: str, *, limit: float | None = None) -> None:
        """Two models of one checkpoint.

        Args:
            model: answers.
            other: is compared.
            backend: the other's backend.
            limit: largest difference of two logits; None is what the contract says.

        Raises:
            InputError: the numerics are two and no limit is given, or it is no positive number; both models are closed then.
        """
        try:
            allowed = limit_of(model, other, limit)
        except BaseException:
            model.close()
            closed_aloud(other)
            raise
        self._model, self._other, self._limit = model, other, allowed
        self._errors: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[Divergence | None] = deque(maxlen=WINDOW)  # of these rows, what is beyond the limit
        self.geometry, self.numerics = model.geometry, model.numerics
        self.batch_invariant, self.fork_is_shared = model.batch_invariant, model.fork_is_shared
        self._handles: dict[int, int] = {}
        self._report = ShadowReport(backend=backend, rows=0, max_delta=0.0, limit=allowed.most, measure=allowed.measure)

    @property
    def moe(self) -> MoEForward:
        """The first's."""
        return self._model.moe

    @property
    def report(self) -> ShadowReport:
        """As it stands."""
        return self._report

    def new_sequence(self) -> int:
        """An empty sequence of both."""
        return self._paired(self._model.new_sequence(), self._other.new_sequence)

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008  # frozen record
        """The first's step; the other's logits are compared with it."""
        starts = [self._model.length(one.handle) for one in batch] if not self._report.failure else []
        step = self._model.forward(batch, want)
        if not self._report.failure:
            self._compare(batch, starts, want, step)
        return step

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        return self._model.length(handle)

    def fork(self, handle: int, length: int) -> int:
        """A new sequence of both."""
        return self._paired(self._model.fork(handle, length), lambda: self._other.fork(self._handles[handle], length))

    def truncate(self, handle: int, length: int) -> None:
        """Forget the rest on both."""
        self._model.truncate(handle, length)
        self._beside(lambda: self._other.truncate(self._handles[handle], length))

    def free(self, handle: int) -> None:
        """Give both sequences back."""
        self._model.free(handle)
        self._beside(lambda: self._other.free(self._handles.pop(handle)))

    def bytes_of(self, handle: int) -> int:
        """Cache bytes that freeing would give back, of the first."""
        return self._model.bytes_of(handle)

    def memory(self) -> CacheMemory:
        """The first's blocks; a token takes what it takes of both."""
        own, other = self._model.memory(), self._other.memory()
        known = [one.free_bytes for one in (own, other) if one.free_bytes is not None]
        return CacheMemory(
            bytes_per_token=own.bytes_per_token + other.bytes_per_token,
            block_tokens=own.block_tokens,
            free_bytes=min(known, default=None),
        )

    def used_blocks(self) -> int:
        """The first's."""
        return self._model.used_blocks()

    def info(self) -> Mapping[str, str]:
        """The first's, and who its shadow is."""
        return {**self._model.info(), "shadow": self._report.backend}

    def close(self) -> None:
        """Close both; the second's failure is logged."""
        try:
            self._model.close()
        finally:
            closed_aloud(self._other)

    def _compare(self, batch: Sequence[SequenceInput], starts: Sequence[int], want: Want, step: Step) -> None:
        def beside() -> None:
            same = [SequenceInput(handle=self._handles[one.handle], token_ids=one.token_ids, rows=one.rows) for one in batch]
            other = self._other.forward(same, Want(logits=want.logits))
            self._judge(_places(batch, starts, want), np.asarray(step.logits), np.asarray(other.logits))

        self._beside(beside)

    def _judge(self, places: Sequence[tuple[int, int]], own: Array, other: Array) -> None:
        if not len(places):
            return
        if other.shape != own.shape:
            raise ShapeError(f"its logits are {other.shape}, expected {own.shape}")
        deltas = np.abs(own.astype(np.float64) - other).max(1)
        deltas = np.where(np.isfinite(deltas), deltas, np.inf)
        errors = row_errors(own, other) if self._limit.measure == "error" else np.zeros(len(places))
        self._errors.extend(errors)
        first = self._report.first
        for row in range(len(places)) if first is None else ():
            first = self._first(places[row], float(deltas[row]), float(errors[row]), own[row], other[row])
            if first is not None:
                log.info(  # people are told by the report
                    "model.diverged", shadow=self._report.backend, position=first.position, delta=first.delta,
                    error=first.error, limit=self._limit.most, measure=self._limit.measure, best=first.best,
                    shadow_best=first.other_best, margin=first.margin,
                )  # fmt: skip
                break
        self._report = evolve(
            self._report,
            rows=self._report.rows + len(places),
            max_delta=max(self._report.max_delta, float(deltas.max())),
            error=median_of(np.array(self._errors)),
            first=first,
        )

    def _first(self, place: tuple[int, int], delta: float, error: float, own: Array, other: Array) -> Divergence | None:
        """The first divergence, where this row is it, or makes it one of too many."""
        by_error, found = self._limit.measure == "error", None
        if (error if by_error else delta) > self._limit.most:
            ranked = np.partition(own, -2)
            found = Divergence(
                handle=place[0],
                position=place[1],
                delta=delta,
                best=int(own.argmax()),
                other_best=int(other.argmax()),
                margin=float(ranked[-1] - ranked[-2]),
                error=error,
            )
        if not by_error or error == np.inf:
            return found
        self._recent.append(found)
        beyond = [one for one in self._recent if one is not None]
        return beyond[0] if len(beyond) >= max(LEAST, len(self._recent) // 2 + 1) else None

    def _paired(self, handle: int, other: Callable[[], int]) -> int:
        def beside() -> None:
            self._handles[handle] = other()

        self._beside(beside)
        return handle

    def _beside(self, action: Callable[[], object]) -> None:
        """Do something on the other model; its failure is not the first's."""
        if self._report.failure:
            return
        try:
            action()
        except Exception as error:  # a stranger's backend may raise anything
            self._report = evolve(self._report, failure=said(error))
            log.info("model.shadow_failed", shadow=self._report.backend, reason=self._report.failure)


def _places(batch: Sequence[SequenceInput], starts: Sequence[int], want: Want) -> list[tuple[int, int]]:
    """Handle and position of every row of logits."""
    found = []
    for one, start in zip(batch, starts, strict=True):
        count = len(one.token_ids)
        rows = one.rows if one.rows is not None else {"last": 1, "all": count, "none": 0}[want.logits]
        found += [(one.handle, start + place) for place in range(count - rows, count)]
    return found
