"""The forward with states and caches that stay on the device from session to session, by IO binding.

Nothing that lies there is ever written again: a longer cache is another value, so that a fork has its parent's. States of
several sequences, and those for experts of another backend, pass by the host.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from attrs import define

from k2core.interfaces import Routing, Step, Want
from k2core.model.sequences import Batch
from k2core_onnx.graph import Graph
from k2core_onnx.moe import OnnxExperts
from k2core_onnx.parts import Parts, Piece, pieces_of
from k2core_onnx.session import Sessions, on_host

INT64 = onnx.TensorProto.INT64
Value = Any  # an OrtValue on the device, or an array on the host


@define(eq=False)
class Cached:
    """The cache of one sequence.

    Attributes:
        latents, keys: of each layer, (length or more, rank) and (length or more, rope) float32.
        length: positions.
    """

    latents: list[Value]
    keys: list[Value]
    length: int = 0


class OnDevice:
    """Implements `k2core_onnx.parts.Flow`."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        g = parts.geometry
        self._parts, self._geometry, self._device = parts, g, sessions.device
        self._sum = {count: sessions.make(sum_of(count, g.hidden_size)) for count in (2, 3)}
        self._first = {width: sessions.make(first_of(width)) for width in (g.kv_lora_rank, g.qk_rope_head_dim)}
        self._none = [sessions.place(np.empty((0, width), np.float32)) for width in (g.kv_lora_rank, g.qk_rope_head_dim)]

    def empty(self) -> Cached:
        """No position."""
        latents, keys = ([one] * self._geometry.num_hidden_layers for one in self._none)
        return Cached(latents, keys)

    def reserve(self, growth: Iterable[tuple[Cached, int]]) -> None:
        """Nothing: values come with what is in them."""

    def copy(self, sequence: Cached, length: int) -> Cached:
        """The same values where they are not longer."""
        latents, keys = ([self._cut(one, length) for one in values] for values in (sequence.latents, sequence.keys))
        return Cached(latents, keys, length)

    def cut(self, sequence: Cached, length: int) -> None:
        """Forget the positions from *length* on; they are cut off when a forward comes to them."""
        sequence.length = length

    def bytes_of(self, sequence: Cached) -> int:
        """Memory of all values, those that forks have too included."""
        return sequence.length * self._geometry.cache_values_per_token * 4

    def run(self, new: Batch[Cached], want: Want) -> Step:
        """One forward; sequences have their new values when all of it is done."""
        parts, grown = self._parts, {id(one): self.copy(one, one.length) for one in new.sequences}
        x: Value = np.ascontiguousarray(parts.embedding[new.ids].astype(np.float32))
        routing: list[tuple[Value, Value]] = []
        pieces = list(pieces_of(new, self._geometry, parts.rotations))
        for layer in range(self._geometry.num_hidden_layers):
            x, normed = self._attend(layer, x, pieces, grown)
            if layer in parts.dense:
                (x,) = self._sum[2].bound(a=x, b=parts.dense[layer].bound(x=normed)[0])
                continue
            ids, shares, shared = parts.moe.begin_bound(layer, normed)
            (x,) = self._sum[3].bound(a=x, b=shared, c=self._routed(layer, normed, ids, shares))
            routing.append((ids, shares))
        step = self._step(x, routing, new, want)
        for one in new.sequences:
            one.latents, one.keys = grown[id(one)].latents, grown[id(one)].keys
        return step

    def _step(self, x: Value, routing: list[tuple[Value, Value]], new: Batch[Cached], want: Want) -> Step:
        logits, hidden = np.empty((0, self._geometry.vocab_size), np.float32), None
        if new.rows or want.hidden:
            states, found = self._parts.head.bound(x=x, rows=np.array(new.rows, np.int64))
            logits, hidden = on_host(found), on_host(states) if want.hidden else None
        chosen = (Routing(expert_ids=on_host(ids), weights=on_host(shares)) for ids, shares in routing)
        return Step(logits=logits, routing=tuple(chosen) if want.routing else None, hidden=hidden)

    def _attend(self, layer: int, x: Value, pieces: list[Piece], grown: dict[int, Cached]) -> tuple[Value, Value]:
        """States with attention added, and these behind the next norm."""
        attention, done = self._parts.attention[layer], []
        states = x if len(pieces) == 1 else on_host(x)
        for piece in pieces:
            held = grown[id(piece.sequence)]
            y, normed, held.latents[layer], held.keys[layer] = attention.bound(
                x=states if len(pieces) == 1 else states[piece.cut], cosine=piece.cosine, sine=piece.sine, mask=piece.mask,
                latents=held.latents[layer], keys=held.keys[layer],
            )  # fmt: skip
            done.append((y, normed))
        if len(done) == 1:
            return done[0]
        return np.concatenate([on_host(y) for y, _ in done]), np.concatenate([on_host(normed) for _, normed in done])

    def _routed(self, layer: int, x: Value, ids: Value, shares: Value) -> Value:
        own = self._parts.moe.own
        if isinstance(own, OnnxExperts) and own.device == self._device:
            return own.bound(layer, x, ids, shares)
        return self._parts.moe.routed(layer, on_host(x), Routing(expert_ids=on_host(ids), weights=on_host(shares)))

    def _cut(self, value: Value, length: int) -> Value:
        rows, width = value.shape()
        return value if rows == length else self._first[width].bound(x=value, count=np.array([length], np.int64))[0]


def sum_of(count: int, hidden: int) -> Graph:
    """a + b, or a + b + c, of states (tokens, hidden)."""
    graph, shape = Graph(f"sum_of_{count}"), ("tokens", hidden)
    graph.output(graph.call("Sum", *(graph.input(name, shape) for name in "abc"[:count])), "y", shape)
    return graph


def first_of(width: int) -> Graph:
    """The first *count* (1,) int64 rows of x (rows, width)."""
    graph = Graph(f"first_of_{width}")
    x, count = graph.input("x", ("rows", width)), graph.input("count", (1,), INT64)
    graph.output(graph.call("Slice", x, graph.constant([0]), count, graph.constant([0])), "y", ("count", width))
    return graph
