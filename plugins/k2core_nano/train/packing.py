"""From groups of documents to flat batches: prefixes once, documents in rectangles of similar length, targets listed.

A CPU wants rectangles whose scores stay in its cache. A GPU wants few and large ones, since each costs some thirty kernels per
layer; there the bound on scores keeps the largest temporary array small.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from k2core_nano.train.attention import Block

RECTANGLE_TOKENS = 192  # largest rectangle, unless one document is longer
OVERHEAD = 48  # tokens of padding that one more rectangle is worth
TENSORS = ("ids", "positions", "valid", "target_rows", "target_ids", "target_weights", "target_families")


class DocumentLike(Protocol):
    """What packing needs of a training document."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""

    @property
    def weights(self) -> list[int]:
        """Loss weight of each token as a target; 0 is no loss."""

    @property
    def family(self) -> str:
        """Name under which its loss is reported."""


class GroupLike(Protocol):
    """Documents that follow one shared prefix."""

    @property
    def prefix(self) -> list[int]:
        """Token ids before every document; no loss."""

    @property
    def documents(self) -> Sequence[DocumentLike]:
        """The documents."""


@frozen(kw_only=True)
class Batch:
    """One forward pass. Padding stands at the end of rows; nothing attends to it and it is no target."""

    ids: Tensor = field(eq=False)  # (tokens,) int64
    positions: Tensor = field(eq=False)  # (tokens,) int64
    valid: Tensor = field(eq=False)  # (tokens,) bool, False at padding
    blocks: tuple[Block, ...]
    target_rows: Tensor = field(eq=False)  # (targets,) int64, the row that predicts each target
    target_ids: Tensor = field(eq=False)  # (targets,) int64
    target_weights: Tensor = field(eq=False)  # (targets,) float32
    target_families: Tensor = field(eq=False)  # (targets,) int64, index into `families`
    families: tuple[str, ...]
    prefix_tokens: int
    document_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device` (itself where they are there)."""
        changes: dict[str, Any] = {name: moved(getattr(self, name), device) for name in TENSORS}
        return evolve(self, **changes)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, for CUDA through pinned memory, so that work queued there is not waited for (untested)."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in their order: fewer and larger passes.

    Args:
        batches: one or more, on the same device.

    Returns:
        The batch; its losses are those of the parts, one after another.
    """
    if len(batches) == 1:
        return batches[0]
    families: dict[str, int] = {}
    blocks: list[Block] = []
    rows: list[Tensor] = []
    target_families: list[Tensor] = []
    offset = 0
    for batch in batches:
        blocks += [evolve(b, start=b.start + offset, prefix_start=b.prefix_start + offset) for b in batch.blocks]
        rows.append(batch.target_rows + offset)
        places = torch.tensor([families.setdefault(family, len(families)) for family in batch.families], dtype=torch.long)
        target_families.append(places.to(batch.ids.device)[batch.target_families])
        offset += len(batch.ids)
    return Batch(
        ids=torch.cat([batch.ids for batch in batches]),
        positions=torch.cat([batch.positions for batch in batches]),
        valid=torch.cat([batch.valid for batch in batches]),
        blocks=tuple(blocks),
        target_rows=torch.cat(rows),
        target_ids=torch.cat([batch.target_ids for batch in batches]),
        target_weights=torch.cat([batch.target_weights for batch in batches]),
        target_families=torch.cat(target_families),
        families=tuple(families),
        prefix_tokens=sum(batch.prefix_tokens for batch in batches),
        document_tokens=sum(batch.document_tokens for batch in batches),
    )


def rectangles(lengths: Sequence[int], overhead: int = OVERHEAD) -> list[tuple[int, int]]:
    """Cut ascending lengths into runs that are padded to their last member.

    Args:
        lengths: ascending.
        overhead: tokens of padding that one more rectangle is worth (its fixed cost).

    Returns:
        (first, after last) index pairs with the least padding + overhead.
    """
    best = [0.0] + [float("inf")] * len(lengths)
    cut = [0] * (len(lengths) + 1)
    for stop in range(1, len(lengths) + 1):
        padded, total = lengths[stop - 1], 0
        for first in range(stop - 1, -1, -1):
            total += lengths[first]
            cost = best[first] + padded * (stop - first) - total + overhead
            if cost < best[stop]:
                best[stop], cut[stop] = cost, first
            if padded * (stop - first) - total > best[stop]:
                break
    runs: list[tuple[int, int]] = []
    stop = len(lengths)
    while stop:
        runs.append((cut[stop], stop))
        stop = cut[stop]
    return runs[::-1]


def pack(
    groups: Sequence[GroupLike], *, overhead: int = OVERHEAD, rectangle_tokens: int = RECTANGLE_TOKENS, score_limit: int = 0
) -> Batch:
    """Lay groups out as one flat batch.

    Args:
        groups: one or more groups; a first token with a weight needs a prefix to predict it.
        overhead: see `rectangles`.
        rectangle_tokens: largest rectangle, padding included, unless one document is longer.
        score_limit: largest rows * length * (prefix + length) of a rectangle, that is of one head's scores, unless one
            document has more; 0 is no limit.

    Returns:
        The batch. Training on it equals training on every prefix + document as a sequence of its own.
    """
    ids: list[int] = []
    positions: list[int] = []
    valid: list[bool] = []
    blocks: list[Block] = []
    rows: list[int] = []
    targets: list[int] = []
    weights: list[int] = []
    families: dict[str, int] = {}
    target_families: list[int] = []
    prefix_tokens = document_tokens = 0
    for group in groups:
        shared, shared_start = len(group.prefix), len(ids)
        if shared:
            blocks.append(Block(start=shared_start, rows=1, length=shared))
            ids += group.prefix
            positions += range(shared)
            valid += [True] * shared
            prefix_tokens += shared
        documents = sorted((d for d in group.documents if d.ids), key=lambda d: len(d.ids))
        lengths = [len(d.ids) for d in documents]
        for first, stop in _thin(rectangles(lengths, overhead), lengths, shared, rectangle_tokens, score_limit):
            length = lengths[stop - 1]
            blocks.append(
                Block(start=len(ids), rows=stop - first, length=length, prefix_start=shared_start, prefix_length=shared)
            )
            for document in documents[first:stop]:
                start, size = len(ids), len(document.ids)
                ids += document.ids + [0] * (length - size)
                positions += range(shared, shared + length)
                valid += [True] * size + [False] * (length - size)
                document_tokens += size
                family = families.setdefault(document.family, len(families))
                for index, weight in enumerate(document.weights):
                    if weight and (index or shared):
                        rows.append(start + index - 1 if index else shared_start + shared - 1)
                        targets.append(document.ids[index])
                        weights.append(weight)
                        target_families.append(family)
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        valid=torch.tensor(valid),
        blocks=tuple(blocks),
        target_rows=torch.tensor(rows, dtype=torch.long),
        target_ids=torch.tensor(targets, dtype=torch.long),
        target_weights=torch.tensor(weights, dtype=torch.float32),
        target_families=torch.tensor(target_families, dtype=torch.long),
        families=tuple(families),
        prefix_tokens=prefix_tokens,
        document_tokens=document_tokens,
    )


def _thin(
    runs: list[tuple[int, int]], lengths: Sequence[int], shared: int, rectangle_tokens: int, score_limit: int
) -> Iterator[tuple[int, int]]:
    # on a CPU, scores of a rectangle should stay in the second-level cache between product, softmax and product
    for first, stop in runs:
        length = lengths[stop - 1]
        rows = max(1, rectangle_tokens // length)
        if score_limit:
            rows = max(1, min(rows, score_limit // (length * (shared + length))))
        for start in range(first, stop, rows):
            yield start, min(start + rows, stop)
