"""From groups of documents to flat batches: prefixes once, documents in rectangles of similar length, targets listed."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from k2core_nano.train.attention import Block

RECTANGLE_TOKENS = 192  # largest rectangle, unless one document is longer


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


def rectangles(lengths: Sequence[int], overhead: int = 48) -> list[tuple[int, int]]:
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


def pack(groups: Sequence[GroupLike], *, overhead: int = 48) -> Batch:
    """Lay groups out as one flat batch.

    Args:
        groups: one or more groups; a first token with a weight needs a prefix to predict it.
        overhead: see `rectangles`.

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
        for first, stop in _thin(rectangles([len(d.ids) for d in documents], overhead), documents):
            length = len(documents[stop - 1].ids)
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


def _thin(runs: list[tuple[int, int]], documents: Sequence[DocumentLike]) -> Iterator[tuple[int, int]]:
    # scores of a rectangle should stay in the second-level cache between product, softmax and product
    for first, stop in runs:
        rows = max(1, RECTANGLE_TOKENS // len(documents[stop - 1].ids))
        for start in range(first, stop, rows):
            yield start, min(start + rows, stop)
