"""A loaded model: sequences of cached latents, and the forward over a ragged batch of new tokens."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from k2core.errors import CapacityError, K2Error
from k2core.interfaces import CacheMemory, Numerics, Routing, SequenceInput, Step, Want
from k2core_numba.memory import free_bytes
from k2core_numba.moe import NumbaMoE
from k2core_numba.packing import round_up
from k2core_numba.pages import PageStore, addresses
from k2core_numba.pages import Sequence as CachedSequence
from k2core_numba.rotations import Rotations
from k2core_numba.runtime import LOCK, kernels, portable, use_threads
from k2core_numba.weights import Weights
from k2core_numba.workspace import make_workspace

CHUNK = 256  # tokens of one compiled call; bits do not depend on it
LEAST_CONTEXT = 1024


class NumbaModel:
    """A checkpoint on the CPU; implements `k2core.interfaces.LoadedModel`."""

    numerics: Numerics = "exact"
    batch_invariant = True
    fork_is_shared = True

    def __init__(self, weights: Weights, *, threads: int = 1) -> None:
        self.geometry = weights.geometry
        self.threads = threads
        self.moe = NumbaMoE(weights, threads=threads)
        self._weights: Weights | None = weights
        self._kernels = kernels()
        self._rotations = Rotations(weights.geometry)
        self._store = PageStore(weights.geometry.num_hidden_layers, weights.geometry.cache_values_per_layer, self._kernels.PAGE)
        self._sequences: dict[int, CachedSequence] = {}
        self._next = 1
        self._tokens, self._context = 0, 0
        self._grow(1, 1)

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        return self._add(CachedSequence())

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008  # frozen record
        """Append tokens to sequences; see `k2core.interfaces.LoadedModel.forward`.

        Raises:
            K2Error: nothing to do, an unknown handle, an id outside the vocabulary, an empty input, more rows than tokens, the
                same handle twice, or a sequence that would outgrow the model's positions; nothing has changed then.
            CapacityError: no memory for the cache; no sequence has grown then.
        """
        weights = self._open()
        sequences = self._check(batch)
        counts = [len(item.token_ids) for item in batch]
        for sequence, count in zip(sequences, counts, strict=True):
            self._store.reserve(sequence, count)
        total = sum(counts)
        self._grow(min(total, CHUNK), max(sequence.length + count for sequence, count in zip(sequences, counts, strict=True)))
        tokens, rows, positions = _flatten(batch, sequences, counts)
        wanted = _wanted(batch, counts, want)
        pages, columns = addresses(sequences)
        if total <= CHUNK:
            step = self._chunk(weights, tokens, rows, positions, pages, columns, wanted, want)
        else:
            cuts = [slice(start, start + CHUNK) for start in range(0, total, CHUNK)]
            parts = [
                self._chunk(weights, tokens[cut], rows[cut], positions[cut], pages, columns, wanted[cut], want) for cut in cuts
            ]
            step = _joined(parts, want)
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.length += count
        return step

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        return self._sequence(handle).length

    def fork(self, handle: int, length: int) -> int:
        """A new sequence that shares the memory of the first *length* tokens until either writes there.

        Raises:
            K2Error: an unknown handle, or *length* is negative or more than the sequence has.
        """
        return self._add(self._store.fork(self._cut(handle, length, "fork"), length))

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens, as if never seen.

        Raises:
            K2Error: an unknown handle, or *length* is negative or more than the sequence has.
        """
        self._store.truncate(self._cut(handle, length, "truncate"), length)

    def free(self, handle: int) -> None:
        """Give the sequence's memory back; the handle is invalid afterwards.

        Raises:
            K2Error: an unknown handle.
        """
        self._store.truncate(self._sequence(handle), 0)
        del self._sequences[handle]

    def bytes_of(self, handle: int) -> int:
        """Cache bytes that only this sequence holds.

        Raises:
            K2Error: an unknown handle.
        """
        return self._store.own_bytes(self._sequence(handle))

    def used_blocks(self) -> int:
        """Pages of live sequences; one that several share counts once."""
        return self._store.used

    def memory(self) -> CacheMemory:
        """Cache memory, as it is now; the machine's files are read for it."""
        self._open()
        return CacheMemory(
            bytes_per_token=self.geometry.cache_values_per_token * 4,
            block_tokens=self._store.positions,
            used_blocks=self._store.used,
            free_bytes=free_bytes(),
        )

    def info(self) -> Mapping[str, str]:
        """What a report should name."""
        weights = self._open()
        return {
            "backend": "numba",
            "numerics": self.numerics,
            "kernel_path": "portable" if portable() else "native",
            "threads": str(self.threads),
            "numba": numba.__version__,
            "weight_bytes": str(weights.size_bytes),
            "cache_bytes_per_token": str(self.geometry.cache_values_per_token * 4),
        }

    def close(self) -> None:
        """Give everything back; the model is unusable afterwards."""
        self._sequences.clear()
        self._weights = None
        self.moe.close()

    def _open(self) -> Weights:
        if self._weights is None:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        return self._weights

    def _add(self, sequence: CachedSequence) -> int:
        self._open()
        handle = self._next
        self._sequences[handle] = sequence
        self._next += 1
        return handle

    def _sequence(self, handle: int) -> CachedSequence:
        self._open()
        sequence = self._sequences.get(handle)
        if sequence is None:
            raise K2Error(f"no sequence with handle {handle}: it was freed or never made ({len(self._sequences)} are live)")
        return sequence

    def _cut(self, handle: int, length: int, what: str) -> CachedSequence:
        sequence = self._sequence(handle)
        if not 0 <= length <= sequence.length:
            raise K2Error(f"cannot {what} sequence {handle} at {length}: it has {sequence.length} tokens")
        return sequence

    def _check(self, batch: Sequence[SequenceInput]) -> list[CachedSequence]:
        if not batch:
            raise K2Error("forward: the batch is empty. Give at least one sequence with new tokens.")
        if len({item.handle for item in batch}) < len(batch):
            raise K2Error("forward: a handle occurs twice in the batch. Join its tokens into one input.")
        sequences = [self._sequence(item.handle) for item in batch]
        vocab, most = self.geometry.vocab_size, self.geometry.max_position_embeddings
        for item, sequence in zip(batch, sequences, strict=True):
            if not len(item.token_ids):
                raise K2Error(f"forward: sequence {item.handle} has no new tokens. Give at least one.")
            least, greatest = min(item.token_ids), max(item.token_ids)
            if least < 0 or greatest >= vocab:
                wrong = least if least < 0 else greatest
                raise K2Error(f"forward: token id {wrong} of sequence {item.handle} is outside the vocabulary of {vocab}")
            if item.rows is not None and not 0 <= item.rows <= len(item.token_ids):
                raise K2Error(
                    f"forward: {item.rows} rows of sequence {item.handle} are asked for, its {len(item.token_ids)} new tokens "
                    "have from 0 to as many"
                )
            if (after := sequence.length + len(item.token_ids)) > most:
                raise CapacityError(
                    f"forward: sequence {item.handle} would have {after} tokens, the model has {most} positions"
                )
        return sequences

    def _grow(self, tokens: int, context: int) -> None:
        if tokens > self._tokens or context > self._context:
            self._tokens = max(self._tokens, tokens)
            while self._context < context:
                self._context = max(LEAST_CONTEXT, 2 * self._context)
            self._work = make_workspace(self._open().sizes, self._tokens, self._context)
        self._rotations.reach(context)

    def _chunk(
        self,
        weights: Weights,
        tokens: NDArray[np.int32],
        rows: NDArray[np.int32],
        positions: NDArray[np.int64],
        pages: NDArray[np.int64],
        columns: int,
        wanted: NDArray[np.bool_],
        want: Want,
    ) -> Step:
        geometry, count = self.geometry, len(tokens)
        hidden, vocab, top_k = round_up(geometry.hidden_size), round_up(geometry.vocab_size), geometry.num_experts_per_tok
        need = np.arange(count) if want.hidden else wanted.nonzero()[0]
        has_logits = bool(wanted.any())
        final = np.empty(len(need) * hidden, np.float32)
        logits = np.empty(len(need) * vocab if has_logits else 0, np.float32)
        choices = len(geometry.moe_layers) * count * top_k
        expert_ids, expert_weights = np.empty(choices, np.int32), np.empty(choices, np.float32)
        chunk = self._kernels.Chunk(tokens, rows, positions, pages, columns, need)
        with LOCK:
            threads = use_threads(self.threads)
            self._kernels.forward(
                weights.sizes, weights.constants, weights.addresses, chunk, self._rotations.cosine, self._rotations.sine,
                self._work, expert_ids, expert_weights, final, logits, has_logits, threads,
            )  # fmt: skip
        table = logits.reshape(-1, vocab)[:, : geometry.vocab_size]
        ids, shares = expert_ids.reshape(-1, count, top_k), expert_weights.reshape(-1, count, top_k)
        return Step(
            logits=table[wanted] if want.hidden and has_logits else table,
            routing=tuple(Routing(expert_ids=i, weights=w) for i, w in zip(ids, shares, strict=True)) if want.routing else None,
            hidden=final.reshape(-1, hidden)[:, : geometry.hidden_size] if want.hidden else None,
        )


def _flatten(
    batch: Sequence[SequenceInput], sequences: list[CachedSequence], counts: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Token ids, rows of the batch and positions of all new tokens."""
    if len(batch) == 1:
        count, start = counts[0], sequences[0].length
        tokens = np.array(batch[0].token_ids, np.int32)
        return tokens, np.zeros(count, np.int32), np.arange(start, start + count)
    tokens = np.fromiter((token for item in batch for token in item.token_ids), np.int32, sum(counts))
    starts = [np.arange(sequence.length, sequence.length + count) for sequence, count in zip(sequences, counts, strict=True)]
    return tokens, np.repeat(np.arange(len(batch), dtype=np.int32), counts), np.concatenate(starts)


def _wanted(batch: Sequence[SequenceInput], counts: list[int], want: Want) -> NDArray[np.bool_]:
    """Which new tokens' logits are wanted."""
    wanted = np.zeros(sum(counts), np.bool_)
    for item, count, end in zip(batch, counts, accumulate(counts), strict=True):
        rows = item.rows if item.rows is not None else {"last": 1, "all": count, "none": 0}[want.logits]
        wanted[end - rows : end] = True
    return wanted


def _joined(parts: list[Step], want: Want) -> Step:
    routing: Any = None
    if want.routing:
        layers = zip(*(part.routing or () for part in parts), strict=True)
        routing = tuple(
            Routing(
                expert_ids=np.concatenate([piece.expert_ids for piece in pieces]),
                weights=np.concatenate([piece.weights for piece in pieces]),
            )
            for pieces in layers
        )
    return Step(
        logits=np.concatenate([part.logits for part in parts]),
        routing=routing,
        hidden=np.concatenate([part.hidden for part in parts]) if want.hidden else None,
    )
