"""A `LoadedModel` without weights: deterministic, batch-invariant, counting what it computes."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from attrs import define, field

from k2core.errors import K2Error
from k2core.interfaces import CacheMemory, MoEForward, Numerics, SequenceInput, Step, Want

Next = Callable[[Sequence[int]], int]
_MASK = (1 << 64) - 1


@define(kw_only=True)
class _Sequence:
    ids: list[int] = field(factory=list)
    states: list[int] = field(factory=lambda: [0])  # a hash of every prefix, the empty one first


class HashModel:
    """Logits are a hash of the ids before them, or point at what a function of these ids says.

    It holds to everything `LoadedModel` promises, refusals included, so that engines and caches can be tested without a
    backend. There are no experts: it has no routing and no MoE seam.

    Attributes:
        computed: tokens that went through `forward` so far.
        forwards: calls of `forward` so far.
        live: handles that are not freed.
    """

    numerics: Numerics = "exact"
    batch_invariant = True

    def __init__(
        self,
        *,
        vocab: int = 320,
        positions: int = 1 << 20,
        next_token: Next | None = None,
        fork_is_shared: bool = False,
        bytes_per_token: int = 100,
        block_tokens: int = 16,
        free_bytes: int | None = None,
    ) -> None:
        """A model.

        Args:
            vocab: size of the vocabulary.
            positions: the longest sequence it takes.
            next_token: gives the id whose logit is 1 (all others are 0); None hashes the ids into logits in [0, 8).
            fork_is_shared: what it says of its forks.
            bytes_per_token: cache bytes per token that it reports.
            block_tokens: positions per block that it reports.
            free_bytes: free memory that it reports.
        """
        self.geometry = SimpleNamespace(vocab_size=vocab, max_position_embeddings=positions)
        self.fork_is_shared = fork_is_shared
        self.computed = 0
        self.forwards = 0
        self._next = next_token
        self._bytes, self._block, self._free = bytes_per_token, block_tokens, free_bytes
        self._sequences: dict[int, _Sequence] = {}
        self._handles = 0
        self._ramp = np.arange(1, vocab + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    @property
    def moe(self) -> MoEForward:
        """There is none.

        Raises:
            K2Error: always.
        """
        raise K2Error("HashModel has no experts; use a checkpoint from k2core.testing for the MoE seam")

    @property
    def live(self) -> tuple[int, ...]:
        """Handles that are not freed."""
        return tuple(self._sequences)

    def ids_of(self, handle: int) -> tuple[int, ...]:
        """The tokens in a sequence's cache."""
        return tuple(self._get(handle).ids)

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        self._handles += 1
        self._sequences[self._handles] = _Sequence()
        return self._handles

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008 - a frozen record
        """See `LoadedModel.forward`; routing is never given, hidden is one column: the hash's top bits."""
        handles = [one.handle for one in batch]
        if len(set(handles)) != len(handles):
            raise K2Error(f"cannot forward: a handle stands twice in the batch {handles}")
        vocab, most = self.geometry.vocab_size, self.geometry.max_position_embeddings
        for one in batch:
            sequence = self._get(one.handle)
            if not len(one.token_ids):
                raise K2Error(f"cannot forward: no tokens for sequence {one.handle}")
            if min(one.token_ids) < 0 or max(one.token_ids) >= vocab:
                raise K2Error(f"cannot forward: an id of sequence {one.handle} is outside the vocabulary of {vocab}")
            if one.rows is not None and not 0 <= one.rows <= len(one.token_ids):
                raise K2Error(f"cannot forward: {one.rows} rows of {len(one.token_ids)} tokens of sequence {one.handle}")
            if len(sequence.ids) + len(one.token_ids) > most:
                raise K2Error(f"cannot forward: sequence {one.handle} would grow beyond {most} positions")
        rows: list[Any] = []
        hidden: list[float] = []
        for one in batch:
            sequence = self._sequences[one.handle]
            count = len(one.token_ids)
            first = count - ({"last": 1, "all": count, "none": 0}[want.logits] if one.rows is None else one.rows)
            for place, token in enumerate(one.token_ids):
                state = (sequence.states[-1] * 6364136223846793005 + int(token) + 1442695040888963407) & _MASK
                sequence.ids.append(int(token))
                sequence.states.append(state)
                hidden.append(state >> 40)
                if place >= first:
                    rows.append(self._row(sequence))
        self.forwards += 1
        self.computed += len(hidden)
        logits = np.stack(rows) if rows else np.zeros((0, vocab), np.float32)
        return Step(logits=logits, hidden=np.array(hidden, np.float32)[:, None] if want.hidden else None)

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        return len(self._get(handle).ids)

    def fork(self, handle: int, length: int) -> int:
        """A new sequence that holds the first *length* tokens."""
        parent = self._get(handle, length)
        child = self.new_sequence()
        self._sequences[child] = _Sequence(ids=parent.ids[:length], states=parent.states[: length + 1])
        return child

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens."""
        sequence = self._get(handle, length)
        del sequence.ids[length:], sequence.states[length + 1 :]

    def free(self, handle: int) -> None:
        """The handle is invalid afterwards."""
        self._get(handle)
        del self._sequences[handle]

    def bytes_of(self, handle: int) -> int:
        """Cache bytes as if every token had its own."""
        return self.length(handle) * self._bytes

    def used_blocks(self) -> int:
        """Blocks as if every sequence had its own."""
        return sum(-(-len(one.ids) // self._block) for one in self._sequences.values())

    def memory(self) -> CacheMemory:
        """What it was told to report."""
        return CacheMemory(bytes_per_token=self._bytes, block_tokens=self._block, free_bytes=self._free)

    def info(self) -> Mapping[str, str]:
        """Names the stand-in."""
        return {"kernel": "hash"}

    def close(self) -> None:
        """Free every sequence."""
        self._sequences.clear()

    def _get(self, handle: int, length: int = 0) -> _Sequence:
        if handle not in self._sequences:
            raise K2Error(f"no live sequence {handle}")
        sequence = self._sequences[handle]
        if not 0 <= length <= len(sequence.ids):
            raise K2Error(f"sequence {handle} has {len(sequence.ids)} tokens, not {length}")
        return sequence

    def _row(self, sequence: _Sequence) -> Any:
        if self._next is not None:
            row = np.zeros(self.geometry.vocab_size, np.float32)
            row[self._next(sequence.ids)] = 1.0
            return row
        mixed = self._ramp ^ np.uint64(sequence.states[-1])
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
        return ((mixed >> np.uint64(40)) * 2.0**-21).astype(np.float32)
