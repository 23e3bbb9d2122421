"""A loaded model: sequences of cached latents, and the forward over a ragged batch of new tokens."""

from collections.abc import Mapping, Sequence

import numba
import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from k2core.errors import K2Error
from k2core.interfaces import CacheMemory, Numerics, RoutedExperts, Routing, SequenceInput, Step, Want
from k2core.model.free_memory import free_bytes
from k2core.model.rotations import Rotations
from k2core.model.sequences import Batch, Sequences
from k2core_numba.crew import crew
from k2core_numba.job import Job
from k2core_numba.layered import LayeredForward
from k2core_numba.moe import NumbaMoE
from k2core_numba.packing import round_up
from k2core_numba.pages import PageStore
from k2core_numba.pages import Sequence as CachedSequence
from k2core_numba.runtime import LOCK, kernels, portable, use_threads
from k2core_numba.weights import Weights

CHUNK = 256  # tokens of one compiled call; bits do not depend on it
CACHED_BYTES = 32 << 20  # of weights that every core can read from a cache, its own or one that several have together


class NumbaModel:
    """A checkpoint on the CPU; implements `k2core.interfaces.LoadedModel`.

    Attributes:
        threads: that a forward may use; bits do not depend on it.
        by_tokens: threads take tokens each, which pays where the weights are in caches; else they share every op that is large.
    """

    numerics: Numerics = "exact"
    batch_invariant = True
    fork_is_shared = True

    def __init__(self, weights: Weights, *, threads: int = 1, routed: RoutedExperts | None = None) -> None:
        """A model.

        Args:
            weights: with routed experts where *routed* is None.
            threads: see above.
            routed: where the routed experts lie instead; the model closes them.
        """
        geometry = weights.geometry
        self.geometry = geometry
        self.threads = threads
        self._weights: Weights | None = weights
        self._kernels, self._crew = kernels(), crew()
        self.by_tokens = self._crew is not None and weights.size_bytes <= CACHED_BYTES and routed is None
        self._rotations = Rotations(geometry)
        self._job = Job(weights, self._rotations)
        self.moe = NumbaMoE(weights, self._rotations, threads=threads, routed=routed)
        self._layered = None if routed is None else LayeredForward(self._job, geometry, routed)
        page = kernels("mla_attention").PAGE
        self._store = PageStore(geometry.num_hidden_layers, geometry.cache_values_per_layer, page)
        self._sequences: Sequences[CachedSequence] = Sequences(geometry)

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        return self._add(CachedSequence())

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008  # frozen record
        """Append tokens to sequences; see `k2core.interfaces.LoadedModel.forward`.

        Raises:
            K2Error: nothing to do, an unknown handle, an id outside the vocabulary, an empty input, more rows than tokens, the
                same handle twice, or a sequence that would outgrow the model's positions; nothing has changed then.
            CapacityError: no memory for the cache or for the work; nothing has changed then.
            CheckpointError: an expert that is read now is damaged; nothing has changed then.
        """
        self._open()
        threads = self._gather(batch)
        new = self._sequences.check(batch, want)
        total = len(new.ids)
        self._job.prepare(min(total, CHUNK), threads, by_tokens=self.by_tokens)
        self._rotations.reach(new.longest)
        self._store.reserve(zip(new.sequences, new.counts, strict=True))
        arrays, rows = _arrays(new), np.array(range(total) if want.hidden else new.rows, np.int64)
        for sequence, count in zip(new.sequences, new.counts, strict=True):
            sequence.length += count
        try:
            step = self._run(*arrays, rows, want, has_logits=bool(new.rows))
        except BaseException:  # experts that are read late, or another backend's, may fail behind layers that have written
            for sequence, count in zip(new.sequences, new.counts, strict=True):
                self._store.truncate(sequence, sequence.length - count)
            raise
        return evolve(step, logits=step.logits[new.rows]) if want.hidden and new.rows else step

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        return self._live().get(handle).length

    def fork(self, handle: int, length: int) -> int:
        """A new sequence that shares the memory of the first *length* tokens until either writes there.

        Raises:
            K2Error: an unknown handle, or *length* is negative or more than the sequence has.
        """
        return self._add(self._store.fork(self._live().cut(handle, length, "fork"), length))

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens, as if never seen.

        Raises:
            K2Error: an unknown handle, or *length* is negative or more than the sequence has.
        """
        self._store.truncate(self._live().cut(handle, length, "truncate"), length)

    def free(self, handle: int) -> None:
        """Give the sequence's memory back; the handle is invalid afterwards.

        Raises:
            K2Error: an unknown handle.
        """
        self._store.truncate(self._live().get(handle), 0)
        del self._sequences.live[handle]

    def bytes_of(self, handle: int) -> int:
        """Cache bytes that only this sequence holds.

        Raises:
            K2Error: an unknown handle.
        """
        return self._store.own_bytes(self._live().get(handle))

    def used_blocks(self) -> int:
        """Pages of live sequences; one that several share counts once."""
        return self._store.used

    def memory(self) -> CacheMemory:
        """Cache memory, as it is now; the machine's files are read for it."""
        self._open()
        return CacheMemory(
            bytes_per_token=self.geometry.cache_values_per_token * 4,
            block_tokens=self._store.positions,
            free_bytes=free_bytes(),
        )

    def info(self) -> Mapping[str, str]:
        """What a report should name."""
        weights = self._open()
        return {
            **self.moe.info(),
            "backend": "numba",
            "numerics": self.numerics,
            "kernel_path": "portable" if portable() else "native",
            "threads": str(self.threads),
            "numba": numba.__version__,
            "weight_bytes": str(weights.size_bytes),
            "cache_bytes_per_token": str(self.geometry.cache_values_per_token * 4),
        }

    def close(self) -> None:
        """Give everything back; the model is unusable afterwards. Closing twice is fine."""
        for handle in list(self._sequences.live):
            self.free(handle)
        self._weights = None
        self.moe.close()

    def _open(self) -> Weights:
        if self._weights is None:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        return self._weights

    def _live(self) -> Sequences[CachedSequence]:
        self._open()
        return self._sequences

    def _add(self, sequence: CachedSequence) -> int:
        self._open()
        return self._sequences.add(sequence)

    def _gather(self, batch: Sequence[SequenceInput]) -> int:
        """Wake who will help, while the forward is prepared; returns how many threads there are to use."""
        if not self.by_tokens:
            return use_threads(self.threads)
        most = min(self.threads, max(len(batch), len(batch[0].token_ids))) if batch else 1
        if self._crew is not None and most > 1:
            self._crew.hire(self.threads - 1)
            self._crew.wake(most - 1)
        return self.threads

    def _run(
        self,
        ids: NDArray[np.int64],
        tables: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        want: Want,
        *,
        has_logits: bool,
    ) -> Step:
        """All tokens, a chunk at a time."""
        if len(ids) <= CHUNK:
            return self._chunk(ids, tables, positions, rows, want, has_logits=has_logits)
        parts = []
        for start in range(0, len(ids), CHUNK):
            cut = slice(start, start + CHUNK)
            wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + CHUNK)] - start
            parts.append(self._chunk(ids[cut], tables[cut], positions[cut], wanted, want, has_logits=has_logits))
        return _joined(parts, want)

    def _chunk(
        self,
        ids: NDArray[np.int64],
        tables: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        want: Want,
        *,
        has_logits: bool,
    ) -> Step:
        geometry, count, wanted = self.geometry, len(ids), len(rows)
        hidden, vocab, top_k = round_up(geometry.hidden_size), round_up(geometry.vocab_size), geometry.num_experts_per_tok
        layers = len(geometry.moe_layers)
        final, logits = np.empty((wanted, hidden), np.float32), np.empty((wanted if has_logits else 0, vocab), np.float32)
        chosen, shares = np.empty((layers, count, top_k), np.int32), np.empty((layers, count, top_k), np.float32)
        given = (ids, tables, positions, rows, final.reshape(-1), logits.reshape(-1))
        if self._layered is not None:
            self._layered.run(*given, chosen, shares)
        else:
            with LOCK:
                self._kernels.forward(self._job.words, *given, chosen.reshape(-1), shares.reshape(-1))
        return Step(
            logits=logits[:, : geometry.vocab_size],
            routing=tuple(Routing(expert_ids=i, weights=w) for i, w in zip(chosen, shares, strict=True))
            if want.routing
            else None,
            hidden=final[:, : geometry.hidden_size] if want.hidden else None,
        )


def _joined(parts: list[Step], want: Want) -> Step:
    routing = None
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


def _arrays(new: Batch[CachedSequence]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of all new tokens: ids, addresses of the sequences' page tables, and positions."""
    ids = np.array(new.ids, np.int64)
    if len(new.sequences) == 1:
        start = new.sequences[0].length
        return ids, np.full(len(ids), new.sequences[0].table_address, np.int64), np.arange(start, start + len(ids))
    addresses = np.array([sequence.table_address for sequence in new.sequences], np.int64)
    starts = [sequence.length for sequence in new.sequences]
    if len(ids) == len(starts):  # one each: decoding
        return ids, addresses, np.array(starts, np.int64)
    runs = [np.arange(start, start + count) for start, count in zip(starts, new.counts, strict=True)]
    return ids, np.repeat(addresses, new.counts), np.concatenate(runs)
