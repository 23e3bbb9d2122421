"""What a step trains on: its shares, each generated and packed on its own, by whichever process.

A share's documents depend on the recipe (seed, sizes, number of shares), the step, the phase and the share's number; in the
main phase also on how much copying is still mixed in, which the documents before it decide. So resuming needs no generator
state, and a run is the same whether its shares are made here, in other ranks or ahead by `feeders`.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from attrs import frozen

from k2core_nano.train.options import MOST_SHARES
from k2core_nano.train.packing import Batch, GroupLike, joined, pack


class Stream(Protocol):
    """Where training documents come from."""

    def __call__(self, seed: int, *, tokens: int, phase: str) -> Iterator[GroupLike]:
        """Groups of about `tokens` document tokens without end, the same for the same arguments; phase: "copy" or "main"."""


class Source(Protocol):
    """Where a process gets its batches from."""

    waited_s: float  # seconds spent waiting for batches, since the start

    def batches(self, *, step: int, phase: str, main_tokens: int) -> Iterator[Batch]:
        """This process's batches of a step, share after share, on the CPU.

        Args:
            step: its number.
            phase: "copy" or "main".
            main_tokens: document tokens of the main phase before it, all shares together.
        """

    def close(self) -> None:
        """End what was started; may be called twice."""


@frozen(kw_only=True)
class Share:
    """A part of a step that is generated on its own."""

    step: int
    phase: str
    index: int  # below the recipe's number of shares
    copies: int  # tokens of copying in the main phase


@frozen(kw_only=True)
class Recipe:
    """Everything that shares are made by; the options of the command line under their names. Can be sent to a process."""

    stream: Stream
    seed: int
    shares: int
    step_tokens: int
    copy_step_tokens: int
    pass_tokens: int
    group_tokens: int
    copy_mix: float
    copy_mix_tokens: int
    padding_overhead: int
    rectangle_tokens: int
    score_limit: int

    @classmethod
    def of(cls, options: argparse.Namespace, stream: Stream) -> "Recipe":
        """The recipe that the options of `trainer` ask for."""
        named = {name: getattr(options, name) for name in cls.__annotations__ if name != "stream"}
        return cls(stream=stream, **named)

    def wanted(self, phase: str) -> int:
        """Document tokens of a share, about."""
        return (self.copy_step_tokens if phase == "copy" else self.step_tokens) // self.shares

    def copies(self, phase: str, main_tokens: int) -> int:
        """How many tokens of a share are copying, after so many document tokens of the main phase; none in the copy phase."""
        if phase == "copy":
            return 0
        return int(self.wanted(phase) * self.copy_mix * max(0.0, 1 - main_tokens / self.copy_mix_tokens))

    def make(self, share: Share) -> Iterator[Batch]:
        """The share's batches, of about --pass-tokens document tokens each."""
        for groups in self.groups(share):
            yield pack(
                groups,
                overhead=self.padding_overhead,
                rectangle_tokens=self.rectangle_tokens,
                score_limit=self.score_limit,
            )

    def groups(self, share: Share) -> Iterator[Sequence[GroupLike]]:
        """The share's groups of documents, in pieces of about --pass-tokens document tokens."""
        wanted = self.wanted(share.phase)
        seed = ((self.seed * 1_000_003 + share.step) * MOST_SHARES + share.index) * 2 + (share.phase == "main")
        groups = self.stream(seed, tokens=min(wanted, self.group_tokens), phase=share.phase)
        piece: list[GroupLike] = [next(self.stream(seed, tokens=share.copies, phase="copy"))] if share.copies else []
        held = total = sum(len(d.ids) for group in piece for d in group.documents)
        while total < wanted:
            group = next(groups)
            size = sum(len(d.ids) for d in group.documents)
            piece.append(group)
            held, total = held + size, total + size
            if held >= self.pass_tokens:
                yield piece
                piece, held = [], 0
        if piece:
            yield piece


class Unfed:
    """Shares made by the process that trains on them, when it needs them.

    Args:
        recipe: of the shares.
        indexes: the numbers of the shares this process makes, the same in every step.
    """

    def __init__(self, recipe: Recipe, indexes: Sequence[int]) -> None:
        self.recipe = recipe
        self.indexes = indexes
        self.waited_s = 0.0

    def batches(self, *, step: int, phase: str, main_tokens: int) -> Iterator[Batch]:
        """See `Source`; a batch is made when it is asked for."""
        copies = self.recipe.copies(phase, main_tokens)
        for index in self.indexes:
            yield from self.recipe.make(Share(step=step, phase=phase, index=index, copies=copies))

    def close(self) -> None:
        """Nothing was started."""


def passes(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """Consecutive batches, joined until they have at least `tokens` document tokens (the last may have fewer)."""
    held: list[Batch] = []
    total = 0
    for batch in batches:
        held.append(batch)
        total += batch.document_tokens
        if total >= tokens:
            yield joined(held)
            held, total = [], 0
    if held:
        yield joined(held)
