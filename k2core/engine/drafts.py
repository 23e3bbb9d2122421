"""Guesses of what comes next, so that one forward can compute several tokens.

Agents copy what tools returned and repeat the frame of a call, so the guess is what followed the same tokens the last time
(prompt lookup; Saxena: "Prompt lookup decoding", 2023), in any conversation. It goes on token by token, each time from the
longest context that is known. How often such guesses were right tells how likely this one is, and the scheduler takes as many
as are worth their rows. A guess never changes what is sampled: every position is sampled from its own logits with its own
random number, and the first token that differs ends the guess.
"""

from collections.abc import Sequence

from attrs import define, field

ORDERS = (16, 6, 2)  # tokens of a context that are compared, longest first
AGREED = 4  # occurrences in a row with the same follower that are told apart
KNOWN = 1 << 15  # contexts of a generation
MEMORY = 64.0  # guesses of a kind that count
LEAST_CHANCE = 0.1  # of all tokens of a guess being right; unlikelier ones are never tried


@define(eq=False)
class Followers:
    """What followed each context the last time, in all texts read lately, and how often it was right to guess so.

    Contexts are known by their hash: two with the same one make a wrong guess at worst. The memory is two generations of
    contexts: when the young one is full, the old one is forgotten.
    """

    _young: dict[int, int] = field(factory=dict, init=False, repr=False)  # hash: follower * AGREED + times in a row, from 0
    _old: dict[int, int] = field(factory=dict, init=False, repr=False)
    _right: list[float] = field(factory=lambda: [0.7] * len(ORDERS) * AGREED, init=False, repr=False)
    _tried: list[float] = field(factory=lambda: [1.0] * len(ORDERS) * AGREED, init=False, repr=False)

    def learn(self, ids: Sequence[int], start: int) -> None:
        """Read a text from place *start* on; what is before it is context only."""
        young, old = self._young, self._old
        for order in ORDERS:
            for place in range(max(start, order), len(ids)):
                key = hash(tuple(ids[place - order : place]))
                known = young.get(key)
                if known is None:
                    known = old.get(key, -1)
                new = ids[place] * AGREED
                if new <= known < new + AGREED:
                    new = min(known + 1, new + AGREED - 1)
                young[key] = new
        if len(young) > KNOWN:
            self._young, self._old = {}, young

    def after(self, text: list[int], count: int, least: float) -> tuple[list[float], list[int]]:
        """Append to a text what may follow it; returns how likely all up to each such token are right, and the kinds of guess.

        Args:
            text: it grows by the guesses.
            count: tokens at most.
            least: chance below which there is nothing more to say.
        """
        young, old, chance = self._young, self._old, 1.0
        chances: list[float] = []
        kinds: list[int] = []
        while len(kinds) < count:
            for place, order in enumerate(ORDERS):
                if order <= len(text):
                    key = hash(tuple(text[-order:]))
                    known = young.get(key)
                    if known is None:
                        known = old.get(key)
                    if known is not None:
                        kind = place * AGREED + known % AGREED
                        break
            else:
                break
            chance *= self._right[kind] / self._tried[kind]
            if chance < least:
                break
            text.append(known // AGREED)
            chances.append(chance)
            kinds.append(kind)
        return chances, kinds

    def tried(self, kind: int, is_right: bool) -> None:
        """A guess of a kind was right or wrong."""
        self._right[kind] += is_right
        self._tried[kind] += 1.0
        if self._tried[kind] > MEMORY:
            self._right[kind] /= 2
            self._tried[kind] /= 2


@define(kw_only=True, eq=False)
class Drafter:
    """Guesses for one turn.

    Attributes:
        most: tokens of a guess at most; 0 never guesses.
        followers: what is known, by all turns together.
        drafted: tokens guessed so far.
        accepted: of these, the ones the model chose.
    """

    most: int
    followers: Followers = field(factory=Followers, repr=False)
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    _text: list[int] = field(factory=list, init=False, repr=False)  # the end of the prompt, and all tokens behind it
    _learned: int = field(default=0, init=False)  # of the text
    _kinds: list[int] = field(factory=list, init=False, repr=False)  # of the guess proposed last

    def begin(self, prompt: Sequence[int]) -> None:
        """The turn begins with *prompt*."""
        self._text = list(prompt[-ORDERS[0] :])
        self._learned = len(self._text)

    def read(self, prompt: Sequence[int], start: int, end: int) -> None:
        """The model has computed a part of the prompt."""
        if self.most:
            begin = max(0, start - ORDERS[0])
            self.followers.learn(prompt[begin:end], start - begin)

    def add(self, token: int) -> None:
        """A token was chosen."""
        self._text.append(token)

    def learn(self) -> None:
        """Make known what was chosen since the last time."""
        begin = max(0, self._learned - ORDERS[0])
        self.followers.learn(self._text[begin:], self._learned - begin)
        self._learned = len(self._text)

    def propose(self, limit: int, least: float, forced: Sequence[int] = ()) -> tuple[list[int], list[float]]:
        """Tokens that may come next, and how likely it is that each and all before it are right.

        Args:
            limit: tokens at most.
            least: chance from which a token is worth a row.
            forced: tokens that must come next, whatever the model says; the guess begins with them.
        """
        self.learn()
        limit = min(limit, self.most)
        first = forced[:limit]
        text = [*self._text[-ORDERS[0] :], *first]
        known = len(text) - len(first)
        chances, kinds = self.followers.after(text, limit - len(first), max(least, LEAST_CHANCE))
        self._kinds = [-1] * len(first) + kinds
        return text[known:], [1.0] * len(first) + chances

    def tried(self, guessed: int, right: int) -> None:
        """What became of the first *guessed* tokens of the guess proposed last."""
        self.drafted += guessed
        self.accepted += right
        for place, kind in enumerate(self._kinds[: min(guessed, right + 1)]):
            if kind >= 0:
                self.followers.tried(kind, place < right)
