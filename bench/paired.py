"""Two evaluations of the embedded model on the same questions, question by question.

    k2 eval nano --count 200 --json > one.json
    k2 eval nano --count 200 --json --model OTHER > other.json
    python bench/paired.py one.json other.json

Both must have asked the same: the same seed, families, levels and count. By how much the other is right more often is told with
its 95 % interval for pairs, in points. With one file alone, turns without masks are set against those with masks.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from k2core.testing.shares import Paired, Share, table

Rows = dict[tuple[Any, ...], dict[str, Any]]


def rows_of(path: Path) -> tuple[int, Rows]:
    """The seed, and the rows by masks, family and level."""
    report = json.loads(path.read_text())
    return report["seed"], {(row["masks"], row["family"], row["level"]): row for row in report["rows"]}


def paired(one: dict[str, Any], other: dict[str, Any]) -> Paired:
    """How often each alone is right.

    Raises:
        SystemExit: they were not asked the same number of questions.
    """
    left, right = one["outcomes"], other["outcomes"]
    if len(left) != len(right):
        raise SystemExit(f"cannot pair {one['family']}: {len(left)} questions were asked in one and {len(right)} in the other")
    pairs = [(a == "r", b == "r") for a, b in zip(left, right, strict=True)]
    return Paired(pairs.count((True, False)), pairs.count((False, True)), len(pairs))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Two evaluations, question by question.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path, nargs="?", help="leave it out to set turns without masks against those with masks")
    options = parser.parse_args()
    seed, first = rows_of(options.one)
    if options.other is None:
        couples = [(key, row, first[False, *key[1:]]) for key, row in first.items() if key[0] and (False, *key[1:]) in first]
    else:
        others, second = rows_of(options.other)
        if seed != others:
            raise SystemExit(f"cannot pair the two: their seeds are {seed} and {others}")
        couples = [(key, row, second[key]) for key, row in first.items() if key in second]
    lines, all_pairs = [], Paired(0, 0, 0)
    for (masks, family, level), one, other in couples:
        pair = paired(one, other)
        all_pairs = Paired(all_pairs.first + pair.first, all_pairs.second + pair.second, all_pairs.total + pair.total)
        shares = (str(Share(row["outcomes"].count("r"), len(row["outcomes"]))) for row in (one, other))
        lines.append(("yes" if masks else "no", family, str(level), str(pair.total), *shares, str(pair)))
    lines.append(("", "all", "", str(all_pairs.total), "", "", str(all_pairs)))
    print(table(("masks", "family", "level", "asked", "right", "right in the other", "the other minus the first"), lines))


if __name__ == "__main__":
    main()
