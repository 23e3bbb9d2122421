"""The names most like a misspelt one, fast for many names: shared pairs of letters first, then difflib on the best few."""

import difflib
from collections.abc import Iterable

_CANDIDATES = 40


def nearest_names(name: str, known: Iterable[str], count: int) -> list[str]:
    """The *count* names most like *name*, best first, ties by name; however unlike they are."""
    wanted = _pairs(name)

    def overlap(other: str) -> float:
        pairs = _pairs(other)
        return 2 * len(wanted & pairs) / (len(wanted) + len(pairs))

    best = sorted(known, key=lambda other: (-overlap(other), other))[:_CANDIDATES]
    matcher = difflib.SequenceMatcher(b=name, autojunk=False)

    def ratio(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.ratio()

    return sorted(best, key=lambda other: (-ratio(other), other))[:count]


def _pairs(name: str) -> set[str]:
    padded = f"^{name}$"
    return {padded[i : i + 2] for i in range(len(padded) - 1)}
