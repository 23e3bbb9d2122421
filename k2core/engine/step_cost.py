"""How long a forward of so many tokens takes, and how many guesses are worth their rows at that price."""

from collections.abc import Sequence
from operator import itemgetter

from attrs import define, field

SHARE = 0.1  # of a new measurement
SURPRISE = 4.0  # times what was known that a measurement counts for at most: somebody else's work took the time
FORGET = 256  # forwards after which one size is measured afresh
USUAL = 8  # guesses whose cost decides which are worth looking for; room for more makes none dearer
PER_TOKEN = 0.05  # of a forward's time that a token more costs, where nobody has measured it


@define(eq=False)
class StepCost:
    """Seconds of a forward by the number of its tokens, as measured lately.

    A size that was never tried counts as hardly dearer than the next smaller one, so that it is tried. One size after the other
    is forgotten now and then: a value from a bad moment does not stay.
    """

    _seconds: dict[int, float] = field(factory=dict, init=False)
    _seen: int = field(default=0, init=False)

    def observe(self, tokens: int, seconds: float) -> None:
        """A forward of so many tokens, none of them a prompt's, took so long."""
        known = self._seconds.get(tokens)
        if known is None:
            known = min(seconds, SURPRISE * self.of(tokens)) if self._seconds else seconds
        self._seconds[tokens] = known + (min(seconds, SURPRISE * known) - known) * SHARE
        self._seen += 1
        if self._seen % FORGET == 0 and len(self._seconds) > 1:
            sizes = sorted(self._seconds)
            del self._seconds[sizes[self._seen // FORGET % len(sizes)]]

    def of(self, tokens: int) -> float:
        """Seconds that a forward of so many tokens takes; 1 for every size as long as nothing is known."""
        known = self._seconds.get(tokens)
        if known is not None:
            return known
        if not self._seconds:
            return 1.0
        near = max((size for size in self._seconds if size < tokens), default=min(self._seconds))
        return self._seconds[near] * (1.0 + PER_TOKEN) ** (tokens - near)

    def least_chance(self, turns: int, most: int) -> float:
        """How likely a guess must be right to be worth its row beside so many turns: what a row more costs, in tokens."""
        alone, tried = self.of(turns), max(1, min(most, USUAL))
        return (self.of(turns + tried) - alone) / tried * turns / alone


def worthwhile(chances: Sequence[Sequence[float]], cost: StepCost, most: int) -> list[int]:
    """How many guesses each turn of a step shall try, so that most tokens are to be expected per second.

    Args:
        chances: per turn, how likely each guess and all before it are right; never rising. Without guesses, a turn gets one
            token of the step.
        cost: of the step.
        most: guesses of all turns together.
    """
    offered = [(chance, turn) for turn, own in enumerate(chances) for chance in own]
    ranked = sorted(offered, key=itemgetter(0), reverse=True)[:most]
    expected, best, count = float(len(chances)), len(chances) / cost.of(len(chances)), 0
    for place, (chance, _) in enumerate(ranked, 1):
        expected += chance
        rate = expected / cost.of(len(chances) + place)
        if rate > best:
            best, count = rate, place
    lengths = [0] * len(chances)
    for _, turn in ranked[:count]:
        lengths[turn] += 1
    return lengths
