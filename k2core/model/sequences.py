"""What every backend's forward begins with: which sequences there are, and whether a ragged batch can be run on them.

A backend keeps its own record per sequence; all that is known of it here is its `length`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field

from k2core.errors import CapacityError, K2Error
from k2core.interfaces import SequenceInput, Want
from k2core.model.config import Geometry


class Held(Protocol):
    """A backend's record of one sequence; `length` is its tokens in the cache."""

    length: int


class Records(Protocol):
    """Makes, copies and cuts a backend's records, which are its own kind."""

    def empty(self) -> Any:
        """A record without positions."""
        ...

    def reserve(self, growth: Iterable[tuple[Any, int]]) -> None:
        """Have room for so many more positions in each; where there is no memory, no length has changed."""
        ...

    def copy(self, sequence: Any, length: int) -> Any:
        """A record of the first *length* positions."""
        ...

    def cut(self, sequence: Any, length: int) -> None:
        """Forget the positions from *length* on."""
        ...

    def bytes_of(self, sequence: Any) -> int:
        """Memory of one."""
        ...


Record = TypeVar("Record", bound=Held)


@define(eq=False)
class Batch(Generic[Record]):
    """A batch that can be run.

    Attributes:
        sequences, counts: its sequences, and how many new tokens each gets.
        ids: all new tokens.
        rows: places in *ids* that get a row of logits.
        longest: positions that the longest sequence will have.
    """

    sequences: list[Record]
    counts: list[int]
    ids: list[int]
    rows: list[int]
    longest: int

    def cuts(self) -> Iterator[tuple[Record, slice]]:
        """Each sequence with the place of its new tokens in `ids`."""
        start = 0
        for sequence, count in zip(self.sequences, self.counts, strict=True):
            yield sequence, slice(start, start + count)
            start += count


@define(eq=False)
class Sequences(Generic[Record]):
    """Live sequences of one model by their handles.

    Attributes:
        geometry: of the model.
        live: records by handle.
    """

    geometry: Geometry
    live: dict[int, Record] = field(factory=dict)
    _next: int = 1

    def add(self, record: Record) -> int:
        """A handle for a new sequence."""
        handle = self._next
        self.live[handle] = record
        self._next += 1
        return handle

    def get(self, handle: int) -> Record:
        """A live sequence.

        Raises:
            K2Error: it was freed or never made.
        """
        record = self.live.get(handle)
        if record is None:
            raise K2Error(f"no sequence with handle {handle}: it was freed or never made ({len(self.live)} are live)")
        return record

    def cut(self, handle: int, length: int, what: str) -> Record:
        """A live sequence that has at least *length* tokens, to *what* it there.

        Raises:
            K2Error: an unknown handle, or *length* is negative or more than the sequence has.
        """
        record = self.get(handle)
        if not 0 <= length <= record.length:
            raise K2Error(f"cannot {what} sequence {handle} at {length}: it has {record.length} tokens")
        return record

    def check(self, batch: Sequence[SequenceInput], want: Want) -> Batch[Record]:
        """What to run for *batch*, as `k2core.interfaces.LoadedModel.forward` promises.

        Raises:
            K2Error: nothing to do, an unknown handle, an id outside the vocabulary, an empty input, more rows than tokens, or
                the same handle twice.
            CapacityError: a sequence would outgrow the model's positions.
        """
        if not batch:
            raise K2Error("forward: the batch is empty. Give at least one sequence with new tokens.")
        if len({item.handle for item in batch}) < len(batch):
            raise K2Error("forward: a handle occurs twice in the batch. Join its tokens into one input.")
        most, longest, live = self.geometry.max_position_embeddings, 0, self.live
        sequences: list[Record] = []
        counts: list[int] = []
        ids: list[int] = []
        places: list[int] = []
        for item in batch:
            handle, rows, token_ids = item.handle, item.rows, item.token_ids
            sequence, count = live.get(handle) or self.get(handle), len(token_ids)
            if not count:
                raise K2Error(f"forward: sequence {handle} has no new tokens. Give at least one.")
            if rows is None:
                rows = count if want.logits == "all" else int(want.logits == "last")
            elif not 0 <= rows <= count:
                raise K2Error(
                    f"forward: {rows} rows of sequence {handle} are asked for, its {count} new tokens have from 0 to as many"
                )
            after = sequence.length + count
            if after > most:
                raise CapacityError(f"forward: sequence {handle} would have {after} tokens, the model has {most} positions")
            if after > longest:
                longest = after
            sequences.append(sequence)
            counts.append(count)
            ids.extend(token_ids)
            end = len(ids)
            places += range(end - rows, end)
        if min(ids) < 0 or max(ids) >= self.geometry.vocab_size:
            self._refuse(batch)
        return Batch(sequences, counts, ids, places, longest)

    def _refuse(self, batch: Sequence[SequenceInput]) -> None:
        """Name the token id that is wrong."""
        vocab = self.geometry.vocab_size
        for item in batch:
            for token in item.token_ids:
                if not 0 <= token < vocab:
                    raise K2Error(f"forward: token id {token} of sequence {item.handle} is outside the vocabulary of {vocab}")
