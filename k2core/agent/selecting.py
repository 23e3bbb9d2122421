"""Which of several trajectories' answers is given: evidence first, agreement second, a judge last.

- Evidence: an answer that holds (``answered``) comes before one that declines, that before one that a budget cut short, that
  before one that is not verified, that before none.
- Agreement: among the best of those, what most of them say.
- A judge, where there is one, decides between answers that are equal so far; it never comes before evidence.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from k2core.events import AnswerGiven, PathEnded, Stored, VerdictGiven

RANKS = ("answered", "declined", "partial", "unverified")

Judge = Callable[[Sequence[PathEnded]], Awaitable[int]]
"""Asked which of several answers is the best, by its place."""


def rank(ended: PathEnded) -> int:
    """How much an answer has going for it; less is better."""
    return RANKS.index(ended.status) if ended.status in RANKS else len(RANKS)


def key_of(answer: AnswerGiven, events: Sequence[Stored]) -> str:
    """What an answer comes down to: the details of its text that its verifiers found supported, or else its words.

    Args:
        answer: the answer.
        events: of its run.
    """
    verdicts = [one.event for one in events if isinstance(one.event, VerdictGiven)]
    found = verdicts[-1].findings if verdicts else ()
    details = sorted(
        {one.subject.casefold() for one in found if one.status == "supported" and one.claim is None and one.subject}
    )
    return " · ".join(details) or " ".join(re.findall(r"\w+", answer.text.casefold()))


def agreed(ended: Sequence[PathEnded], paths: int) -> bool:
    """Whether more than half of all *paths* have said the same and their evidence holds: the others cannot outvote them."""
    keys = Counter(one.key for one in ended if one.status == "answered")
    return bool(keys) and max(keys.values()) > paths // 2


async def choose(ended: Sequence[PathEnded], judge: Judge | None = None) -> tuple[PathEnded, tuple[int, ...], str]:
    """The answer to give.

    Args:
        ended: what came of each trajectory, at least one.
        judge: asked about answers that are equal by evidence and agreement.

    Returns:
        It, the numbers of the others that agree with it, and what decided: ``evidence``, ``agreement``, ``judge`` or
        ``order`` (the first of equals).
    """
    best = min(map(rank, ended))
    holding = [one for one in ended if rank(one) == best]
    votes = Counter(one.key for one in holding)
    most = max(votes.values())
    leading = [one for one in holding if votes[one.key] == most]
    first = {one.key: one for one in reversed(leading)}  # of each key the first
    if len(first) == 1:
        why = "agreement" if len(votes) > 1 else "evidence"
        chosen = leading[0]
    elif judge is not None:
        candidates = sorted(first.values(), key=lambda one: one.path)
        chosen, why = candidates[await judge(candidates)], "judge"
    else:
        chosen, why = leading[0], "order"
    others = tuple(one.path for one in ended if one.key == chosen.key and one.path != chosen.path and rank(one) == best)
    return chosen, others, why
