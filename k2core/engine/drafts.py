"""Guesses of what comes next, so that one forward can compute several tokens.

Agents copy what tools returned and repeat the frame of a call, so the guess is what followed the same few tokens the last time
(prompt lookup), in this conversation or else in what was generated lately in any other. A guess costs a forward a row and never
changes what is sampled: every position is sampled from its own logits with its own random number, and the first token that
differs ends the guess.
"""

from collections.abc import Sequence

import numpy as np
from attrs import define, field

from k2core.interfaces import Array

LONGEST_PATTERN = 4  # tokens before a guess that are compared
SHORTEST_PATTERN = 2  # and that must have occurred before
CANDIDATES = 8  # occurrences that are compared, newest first
WINDOW = 1 << 13  # tokens of a text that are searched
FIRST_LENGTH = 3  # of a guess, before any was right or wrong
PAUSE = 32  # tokens: the longest rest after guesses that were all wrong


@define(eq=False)
class Text:
    """Token ids that grow at the end; the last `WINDOW` of them are searched."""

    _ids: Array = field(factory=lambda: np.zeros(64, np.int32), repr=False)
    _size: int = 0

    def __len__(self) -> int:
        return self._size

    def add(self, token_ids: Sequence[int]) -> None:
        """Append ids; what no search reaches any more is forgotten now and then."""
        if self._size + len(token_ids) > len(self._ids):
            kept = self._ids[max(0, self._size - WINDOW) : self._size]
            self._ids = np.zeros(2 * (len(kept) + len(token_ids)), np.int32)
            self._ids[: len(kept)] = kept
            self._size = len(kept)
        self._ids[self._size : self._size + len(token_ids)] = token_ids
        self._size += len(token_ids)

    def append(self, token: int) -> None:
        """`add` one id."""
        if self._size == len(self._ids):
            self.add((token,))
        else:
            self._ids[self._size] = token
            self._size += 1

    def tail(self, count: int) -> list[int]:
        """The last ids."""
        ids: list[int] = self._ids[max(0, self._size - count) : self._size].tolist()
        return ids

    def after(self, pattern: Sequence[int], count: int) -> tuple[int, list[int]]:
        """How much of *pattern*'s end occurs in the text with something behind it, and up to *count* ids from there.

        Of the newest occurrences of its last two ids, the one that more of the pattern precedes; of equals the newest.
        """
        start = max(0, self._size - WINDOW)
        ids = self._ids[start : self._size]
        ends = (ids[1:-1] == pattern[-1]).nonzero()[0]  # places of the id before the pattern's last one
        places = ends[ids[ends] == pattern[-2]][-CANDIDATES:]
        best, at = 0, 0
        for place in places.tolist()[::-1]:
            size = SHORTEST_PATTERN
            while size < len(pattern) and place >= size - 1 and ids[place + 1 - size] == pattern[-1 - size]:
                size += 1
            if size > best:
                best, at = size, place + 2
        return best, ids[at : at + count].tolist() if best else []


@define(kw_only=True, eq=False)
class Drafter:
    """Guesses for one turn.

    Attributes:
        most: tokens of a guess at most; 0 never guesses.
        history: what other turns generated lately.
        drafted: tokens guessed so far.
        accepted: of these, the ones the model chose.
    """

    most: int
    history: Text = field(factory=Text, repr=False)
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    _text: Text = field(factory=Text, init=False, repr=False)
    _length: int = field(init=False)
    _rest: int = field(default=0, init=False)  # tokens until the next guess
    _pause: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._length = min(FIRST_LENGTH, self.most)

    def begin(self, token_ids: Sequence[int]) -> None:
        """Start with the prompt."""
        self._text = Text()
        self._text.add(token_ids[-WINDOW:])

    def add(self, token: int) -> None:
        """A token was chosen."""
        self._text.append(token)
        self._rest -= self._rest > 0

    def guess(self, limit: int, forced: Sequence[int] = ()) -> list[int]:
        """Up to *limit* tokens that may come next.

        Args:
            limit: of this step.
            forced: tokens that must come next, whatever the model says; the guess begins with them.
        """
        most = min(limit, self.most)
        guess = list(forced[:most])
        if len(guess) < most and not self._rest:
            guess += self._lookup(guess, min(most - len(guess), self._length))
        return guess

    def tried(self, guessed: int, accepted: int) -> None:
        """What became of a guess; the next ones are as long as the last ones were right."""
        self.drafted += guessed
        self.accepted += accepted
        if accepted == guessed:
            self._length, self._pause = min(2 * self._length, self.most), 1
        else:
            self._length = max(1, accepted)
        if not accepted:
            self._rest, self._pause = self._pause, min(2 * self._pause, PAUSE)

    def _lookup(self, forced: list[int], count: int) -> list[int]:
        pattern = [*self._text.tail(LONGEST_PATTERN), *forced][-LONGEST_PATTERN:]
        if len(pattern) < SHORTEST_PATTERN:
            return []
        size, found = self._text.after(pattern, count)
        if size < LONGEST_PATTERN and len(self.history) > SHORTEST_PATTERN:
            other, from_history = self.history.after(pattern, count)
            found = from_history if other > size else found
        return found
