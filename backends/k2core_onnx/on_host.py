"""The forward with NumPy arrays that ONNX Runtime's CPU provider reads where they lie; each sequence has two that double."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from k2core.interfaces import Routing, Step, Want
from k2core.model.sequences import Batch
from k2core_onnx.cache import Latents
from k2core_onnx.parts import Parts, Piece, pieces_of

Array = NDArray[np.float32]


class OnHost:
    """Implements `k2core_onnx.parts.Flow`."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._geometry = parts, parts.geometry

    def empty(self) -> Latents:
        """No position."""
        g = self._geometry
        return Latents.empty(g.num_hidden_layers, g.kv_lora_rank, g.qk_rope_head_dim)

    def reserve(self, growth: Iterable[tuple[Latents, int]]) -> None:
        """Have room for so many more positions in each."""
        for sequence, count in growth:
            sequence.reserve(sequence.length + count)

    def copy(self, sequence: Latents, length: int) -> Latents:
        """A copy of the first *length* positions."""
        return sequence.copy(length)

    def cut(self, sequence: Latents, length: int) -> None:
        """Forget the positions from *length* on."""
        sequence.length = length

    def bytes_of(self, sequence: Latents) -> int:
        """Memory of both arrays."""
        return sequence.size_bytes

    def run(self, new: Batch[Latents], want: Want) -> Step:
        """One forward."""
        parts = self._parts
        x = np.ascontiguousarray(parts.embedding[new.ids].astype(np.float32))
        routing: list[Routing] = []
        pieces = list(pieces_of(new, self._geometry, parts.rotations))
        for layer in range(self._geometry.num_hidden_layers):
            x, normed = self._attend(layer, x, pieces)
            if layer in parts.dense:
                x += parts.dense[layer].run(x=normed)[0]
                continue
            chosen, shared = parts.moe.begin(layer, normed)
            x += shared
            x += parts.moe.routed(layer, normed, chosen)
            routing.append(chosen)
        rows = np.array(new.rows, np.int64)
        if not want.hidden:  # then nothing else needs the last norm
            x, rows = x[rows], np.arange(len(rows))
        hidden, logits = parts.head.run(x=x, rows=rows) if len(x) else (x, np.empty((0, self._geometry.vocab_size), np.float32))
        return Step(
            logits=logits,
            routing=tuple(routing) if want.routing else None,
            hidden=hidden if want.hidden else None,
        )

    def _attend(self, layer: int, x: Array, pieces: list[Piece]) -> tuple[Array, Array]:
        """States with attention added, and these behind the next norm; new latents are in their caches."""
        attention, done = self._parts.attention[layer], []
        for piece in pieces:
            latents, keys = piece.sequence.latents[layer], piece.sequence.keys[layer]
            y, normed, latents[piece.start : piece.end], keys[piece.start : piece.end] = attention.run(
                x=x[piece.cut], cosine=piece.cosine, sine=piece.sine, mask=piece.mask, latents=latents[: piece.start],
                keys=keys[: piece.start],
            )  # fmt: skip
            done.append((y, normed))
        if len(done) == 1:
            return done[0]
        return np.concatenate([y for y, _ in done]), np.concatenate([normed for _, normed in done])
