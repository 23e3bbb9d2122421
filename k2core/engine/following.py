"""A turn generated once more, along the tokens that it had: where the model would choose another, that is noted and not taken.

As long as nothing is noted this is generating the turn, token for token. From the first difference on, every later token is
chosen behind the ones that are given, so that one difference does not make all that follows it different too.
"""

from collections.abc import Sequence

from attrs import define, field, frozen

from k2core.interfaces import Array
from k2core.messages import Usage


@frozen(kw_only=True)
class Difference:
    """A place where another token is chosen than the one that is given.

    Attributes:
        position: in the turn, from 0.
        given: the token that is there; None where the given turn ends and this one would not.
        chosen: the token that is chosen; None where this turn ends and the given one does not.
        margin: by how much the logit of the chosen one exceeds that of the given one; below 0 where chance, or the turn's
            grammar, chose the less probable one; None where one of the two is missing or outside the vocabulary.
    """

    position: int
    given: int | None
    chosen: int | None
    margin: float | None = None


@frozen(kw_only=True)
class Followed:
    """What became of following a turn.

    Attributes:
        tokens: how many the given turn has.
        agreed: how many of these are chosen again.
        differences: the places where another one is, in order; those behind an end that came too early are not known.
        usage: what it cost.
    """

    tokens: int
    agreed: int
    differences: tuple[Difference, ...]
    usage: Usage


@define(eq=False)
class Following:
    """The given tokens of one turn, and what was noted on the way along them.

    Attributes:
        token_ids: of the given turn, its end marker included.
        differences: so far.
    """

    token_ids: Sequence[int]
    differences: list[Difference] = field(factory=list)
    _seen: int = field(default=0, init=False)  # positions that a token was chosen for
    _is_stuck: bool = field(default=False, init=False)  # at a token that no model of this vocabulary can be given

    def see(self, chosen: int, logits: Array) -> int | None:
        """The token to go on with where *chosen* would be the next one; None where the turn can only end.

        Args:
            chosen: by the sampler from what the turn's grammar allows.
            logits: (vocab,) float32, as the model gave them.
        """
        at, self._seen = self._seen, self._seen + 1
        if at >= len(self.token_ids):
            self.differences.append(Difference(position=at, given=None, chosen=chosen))
            return None
        given = self.token_ids[at]
        if given == chosen:
            return given
        self._is_stuck = not 0 <= given < len(logits)
        margin = None if self._is_stuck else float(logits[chosen]) - float(logits[given])
        self.differences.append(Difference(position=at, given=given, chosen=chosen, margin=margin))
        return None if self._is_stuck else given

    def ended(self, usage: Usage) -> Followed:
        """The turn ended here."""
        if self._seen < len(self.token_ids) and not self._is_stuck:
            self.differences.append(Difference(position=self._seen, given=self.token_ids[self._seen], chosen=None))
        compared = min(self._seen, len(self.token_ids))
        wrong = sum(one.given is not None and one.chosen is not None for one in self.differences)
        return Followed(tokens=len(self.token_ids), agreed=compared - wrong, differences=tuple(self.differences), usage=usage)
