"""Guesses of what comes next, so that one forward can compute several tokens.

Agents copy what tools returned and repeat the frame of a call, so the guess is what followed the same few tokens the last time
(prompt lookup), in this conversation or else in what was generated lately in any other. A guess costs a forward a row and never changes what is sampled: every position is sampled from its own logits
with its own random number, and the first token that differs ends the guess.
"""

from array import array
from collections.abc import Sequence

from attrs import define, field

LONGEST_PATTERN = 4  # tokens that must have occurred before
SHORTEST_PATTERN = 2
WINDOW = 1 << 14  # tokens that are searched, newest first
FIRST_LENGTH = 3  # of a guess, before any was right or wrong
PAUSE = 32  # tokens: the longest rest after guesses that were all wrong


@define(eq=False)
class History:
    """What was generated lately, by all turns of a model, for guesses in other conversations."""

    text: bytearray = field(factory=bytearray, repr=False)  # ids as 4-byte words

    def add(self, token_ids: Sequence[int]) -> None:
        """A turn has ended."""
        self.text += array("i", token_ids).tobytes()
        if len(self.text) > 8 * WINDOW:  # cut back to half: cheaper than at every turn
            del self.text[: len(self.text) - 4 * WINDOW]


@define(kw_only=True, eq=False)
class Drafter:
    """Guesses for one turn.

    Attributes:
        most: tokens of a guess at most; 0 never guesses.
        history: of other turns.
        drafted: tokens guessed so far.
        accepted: of these, the ones the model chose.
    """

    most: int
    history: History = field(factory=History, repr=False)
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    _text: bytearray = field(factory=bytearray, init=False, repr=False)  # the ids as 4-byte words
    _length: int = field(init=False)
    _rest: int = field(default=0, init=False)  # tokens until the next guess
    _pause: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._length = min(FIRST_LENGTH, self.most)

    def begin(self, token_ids: Sequence[int]) -> None:
        """Start with the prompt."""
        self._text = bytearray(array("i", token_ids).tobytes())

    def add(self, token: int) -> None:
        """A token was chosen."""
        self._text += token.to_bytes(4, "little")
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
            guess += self._lookup(array("i", guess).tobytes(), min(most - len(guess), self._length))
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

    def _lookup(self, more: bytes, count: int) -> list[int]:
        tail = bytes(self._text[-4 * LONGEST_PATTERN :]) + more
        # the pattern stands at the very end too, unless *more* follows it: look before that
        own = len(self._text) if more else len(self._text) - 4
        for size in range(LONGEST_PATTERN, SHORTEST_PATTERN - 1, -1):
            pattern = tail[-4 * size :]
            if len(pattern) < 4 * size:
                continue
            for text, end in ((self._text, own), (self.history.text, len(self.history.text))):
                if found := _after(text, pattern, end, count):
                    return found
        return []


def _after(text: bytearray, pattern: bytes, end: int, count: int) -> list[int]:
    """Up to *count* ids behind the last *pattern* that ends by *end*."""
    start = max(0, len(text) - 4 * WINDOW)
    at = text.rfind(pattern, start, end)
    while at >= 0 and at % 4:  # between two ids
        at = text.rfind(pattern, start, at + len(pattern) - 1)
    found = array("i")
    if at >= 0:
        found.frombytes(bytes(text[at + len(pattern) : at + len(pattern) + 4 * count]))
    return found.tolist()
