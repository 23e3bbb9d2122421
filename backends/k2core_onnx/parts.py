"""What a forward goes through, and the pieces in which new tokens do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.interfaces import Step, Want
from k2core.model.config import Geometry
from k2core.model.rotations import Rotations
from k2core.model.sequences import Batch, Records
from k2core_onnx.moe import OnnxMoE
from k2core_onnx.session import Session

Array = NDArray[np.float32]
SCORES = 1 << 24  # of attention held at once: longer prompts are computed in pieces


@frozen(kw_only=True, eq=False)
class Parts:
    """A model's sessions and tables.

    Attributes:
        embedding: (vocab, hidden) as stored.
        attention: by layer; dense: of the layers without experts; head: see `k2core_onnx.halves`.
        moe: of the other layers.
    """

    geometry: Geometry
    embedding: NDArray[Any]
    attention: Sequence[Session]
    dense: Mapping[int, Session]
    head: Session
    moe: OnnxMoE
    rotations: Rotations


class Flow(Records, Protocol):
    """Where states and caches lie, and how a forward goes through the parts."""

    def run(self, new: Batch[Any], want: Want) -> Step:
        """One forward; lengths are not changed."""
        ...


@frozen(kw_only=True)
class Piece:
    """New tokens of one sequence that one run of attention takes.

    Attributes:
        sequence: its record.
        cut: their place in the batch.
        start, end: their positions in the sequence.
        cosine, sine: (tokens, rope / 2) of these.
        mask: (tokens, tokens), minus infinity where a token comes later.
    """

    sequence: Any = field(eq=False)
    cut: slice
    start: int
    end: int
    cosine: Array = field(eq=False)
    sine: Array = field(eq=False)
    mask: Array = field(eq=False)


def pieces_of(new: Batch[Any], geometry: Geometry, rotations: Rotations) -> Iterator[Piece]:
    """Each sequence's new tokens, in pieces of which the scores are not too many."""
    half = geometry.qk_rope_head_dim // 2
    rotations.reach(new.longest)
    cosines, sines = (one.reshape(-1, half) for one in (rotations.cosine, rotations.sine))
    for sequence, cut in new.cuts():
        start = sequence.length
        step = max(1, SCORES // (geometry.num_attention_heads * (start + cut.stop - cut.start)))
        for at in range(cut.start, cut.stop, step):
            count = min(step, cut.stop - at)
            end = start + count
            mask = np.triu(np.full((count, count), -np.inf, np.float32), 1)
            yield Piece(
                sequence=sequence, cut=slice(at, at + count), start=start, end=end,
                cosine=cosines[start:end], sine=sines[start:end], mask=mask,
            )  # fmt: skip
            start = end
