"""Guesses of what comes next, so that one forward can compute several tokens.

Agents copy what tools returned and repeat the frame of a call, so the guess is what followed the same few tokens the last time
(prompt lookup). A guess costs a forward a row and never changes what is sampled: every position is sampled from its own logits
with its own random number, and the first token that differs ends the guess.
"""

from array import array
from collections.abc import Sequence

from attrs import define, field

LONGEST_PATTERN = 4  # tokens that must have occurred before
SHORTEST_PATTERN = 2
WINDOW = 1 << 14  # tokens that are searched, newest first
PAUSE = 32  # tokens: the longest rest after guesses that were all wrong


@define(kw_only=True, eq=False)
class Drafter:
    """Guesses for one turn.

    Attributes:
        most: tokens of a guess at most; 0 never guesses.
        drafted: tokens guessed so far.
        accepted: of these, the ones the model chose.
    """

    most: int
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    _text: bytearray = field(factory=bytearray, init=False, repr=False)  # the ids as 4-byte words
    _length: int = field(init=False)
    _rest: int = field(default=0, init=False)  # tokens until the next guess
    _pause: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._length = self.most

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
        text = self._text
        start = max(0, len(text) - 4 * WINDOW)
        tail = bytes(text[-4 * LONGEST_PATTERN :]) + more
        for size in range(LONGEST_PATTERN, SHORTEST_PATTERN - 1, -1):
            pattern = tail[-4 * size :]
            if len(pattern) < 4 * size:
                continue
            # the pattern stands at the very end too, unless *more* follows it: look before that
            end = len(text) if more else len(text) - 4
            at = text.rfind(pattern, start, end)
            while at >= 0 and at % 4:
                at = text.rfind(pattern, start, at + len(pattern) - 1)
            if at >= 0:
                after = at + len(pattern)
                found = array("i")
                found.frombytes(bytes(text[after : after + 4 * count]))
                if found:
                    return found.tolist()
        return []
