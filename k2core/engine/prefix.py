"""Which tokens need no computing: a few live sequences, and the longest beginning that a new prompt shares with one.

`PrefixCache.begin` picks the sequence that shares most with a prompt and makes it end where they part:

- nothing of it is lost (the prompt goes on where the sequence ends): it simply goes on;
- little is lost: it is truncated and goes on;
- much is lost (another conversation over the same tools, a second path): it stays, and a fork goes on.

Sequences used longest ago are freed when there are too many or they take too many bytes.
"""

from collections.abc import Sequence

from attrs import define, field

from k2core.interfaces import LoadedModel

WORTH_KEEPING = 128  # a tail of fewer tokens is cheaper to compute again than to hold a second sequence for
_BLOCK = 256


@define(kw_only=True, eq=False)
class LiveSequence:
    """A sequence in the model's cache.

    Attributes:
        handle: the model's.
        ids: the tokens in its cache.
    """

    handle: int
    ids: list[int] = field(factory=list)


@define(kw_only=True, eq=False)
class PrefixCache:
    """The live sequences of one model. Single-threaded, as the model is.

    Attributes:
        model: owner of the cache memory.
        max_sequences: at most so many stay alive, at least 1.
        max_bytes: of all sequences, held to when a turn begins by freeing others; None is no limit.
        prompt_tokens: tokens of all prompts so far.
        cached_tokens: those that were in a cache already.
        computed_tokens: tokens that went through the model, generated ones included.
    """

    model: LoadedModel
    max_sequences: int = 4
    max_bytes: int | None = None
    prompt_tokens: int = field(default=0, init=False)
    cached_tokens: int = field(default=0, init=False)
    computed_tokens: int = field(default=0, init=False)
    _live: list[LiveSequence] = field(factory=list, init=False)  # used longest ago first

    def begin(self, prompt: Sequence[int]) -> LiveSequence:
        """A sequence that holds a beginning of *prompt*, as long as one is known, but never all of it.

        At least the last token of the prompt is left to compute, since its logits are wanted. The sequence stays alive
        at least until the next `begin`.

        Args:
            prompt: at least one token.
        """
        best, shared = None, 0
        for one in reversed(self._live):  # of equals the one used last
            length = common_prefix(one.ids, prompt, len(prompt) - 1)
            if length > shared:
                best, shared = one, length
        if best is None:
            self._make_room()
            best = LiveSequence(handle=self.model.new_sequence())
        elif len(best.ids) - shared < WORTH_KEEPING or self.max_sequences == 1:
            if len(best.ids) > shared:
                self.model.truncate(best.handle, shared)
                del best.ids[shared:]
            self._live.remove(best)
        else:
            parent = best
            best = LiveSequence(handle=self.model.fork(parent.handle, shared), ids=parent.ids[:shared])
            self._live.remove(parent)
            self._live.append(parent)
            self._make_room()
        self._live.append(best)
        self._fit_bytes()
        self.prompt_tokens += len(prompt)
        self.cached_tokens += shared
        return best

    def extend(self, sequence: LiveSequence, token_ids: Sequence[int]) -> None:
        """Note that the model has appended *token_ids* to *sequence*."""
        sequence.ids.extend(token_ids)
        self.computed_tokens += len(token_ids)

    def drop(self, sequence: LiveSequence) -> None:
        """Free *sequence*, e.g. because its cache is no longer known."""
        self._live.remove(sequence)
        self.model.free(sequence.handle)

    def clear(self) -> None:
        """Free every sequence."""
        while self._live:
            self.model.free(self._live.pop().handle)

    def __len__(self) -> int:
        return len(self._live)

    def _make_room(self) -> None:
        while len(self._live) >= max(1, self.max_sequences):
            self.model.free(self._live.pop(0).handle)

    def _fit_bytes(self) -> None:
        if self.max_bytes is None:
            return
        sizes = [self.model.bytes_of(one.handle) for one in self._live]
        while len(self._live) > 1 and sum(sizes) > self.max_bytes:
            self.model.free(self._live.pop(0).handle)
            sizes.pop(0)


def common_prefix(one: Sequence[int], other: Sequence[int], limit: int) -> int:
    """How many tokens *one* and *other* (of the same sequence type) share from the start, at most *limit*."""
    most = min(len(one), len(other), limit)
    start = 0
    # whole blocks are compared in C; only the block where they part is walked
    while start < most and one[start : start + _BLOCK] == other[start : start + _BLOCK]:
        start += _BLOCK
    if start >= most:
        return max(0, most)
    end = min(start + _BLOCK, most)
    while start < end and one[start] == other[start]:
        start += 1
    return start
