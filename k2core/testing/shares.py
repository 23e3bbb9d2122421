"""Shares with their intervals, and tables of them.

Intervals are 95 % Wilson score intervals (E. B. Wilson, JASA 22, 1927): unlike the normal approximation they stay within [0, 1]
and mean something at 0 and at 1.
"""

import math
from collections.abc import Sequence
from typing import Any

from attrs import frozen

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@frozen
class Share:
    """*count* of *total*, with its interval."""

    count: int
    total: int

    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval; (0, 1) where nothing was counted."""
        if not self.total:
            return 0.0, 1.0
        share, total = self.count / self.total, self.total
        denominator = 1 + Z95**2 / total
        centre = share + Z95**2 / (2 * total)
        spread = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
        # at the ends rounding could put the bound on the wrong side of the share
        return max(0.0, min(share, (centre - spread) / denominator)), min(1.0, max(share, (centre + spread) / denominator))

    def to_json(self) -> dict[str, Any]:
        """Count, total, share (None where nothing was counted) and interval."""
        low, high = self.interval()
        share = round(self.count / self.total, 4) if self.total else None
        return {"count": self.count, "total": self.total, "share": share, "low": round(low, 4), "high": round(high, 4)}

    def __str__(self) -> str:
        if not self.total:
            return "–"
        low, high = self.interval()
        return f"{100 * self.count / self.total:.1f} % [{100 * low:.0f}–{100 * high:.0f}]"


@frozen
class Paired:
    """Two who were asked the same: how often the first alone was right, and how often the second alone."""

    first: int
    second: int
    total: int

    def interval(self) -> tuple[float, float, float]:
        """By how much the second's share is higher, with its 95 % interval.

        A. Agresti and Y. Min, Statistics in Medicine 24, 2005: the Wald interval after half a pair was added to each cell of
        the four.
        """
        total = self.total + 2
        first, second = self.first + 0.5, self.second + 0.5
        centre = (second - first) / total
        spread = Z95 * math.sqrt(max(0.0, first + second - (second - first) ** 2 / total)) / total
        exact = (self.second - self.first) / self.total if self.total else 0.0
        return exact, max(-1.0, centre - spread), min(1.0, centre + spread)

    def __str__(self) -> str:
        if not self.total:
            return "–"
        by, low, high = self.interval()
        return f"{100 * by:+.1f} [{100 * low:+.1f}…{100 * high:+.1f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns padded to one width, which reads well in a terminal too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])
