"""Bytes that this process may still take: what the machine has left, and what its control groups allow.

A control group's own files say its limit and its use, and the limits of the groups above it count too. File pages that the
system would give back when memory is short count as free. Versions 1 and 2 differ in names only.
"""

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # names in version 1
SECOND = ("memory.max", "memory.current", "inactive_file")  # names in version 2


def free_bytes(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """The least of what the machine and each control group can still give; None where neither can be read.

    Args:
        proc: where the system tells of processes.
        groups: where control groups are mounted: version 2 itself, or version 1 with one folder per controller.
    """
    least = _field(proc / "meminfo", "MemAvailable:", 1024)
    for folder, (limit_name, use_name, reclaimable) in _groups(proc, groups):
        limit = _number(folder / limit_name)
        use = _number(folder / use_name) if limit is not None else None
        if limit is None or use is None or (least is not None and limit - use >= least):
            continue  # reading what is reclaimable costs more than all the rest
        left = max(0, limit - use + (_field(folder / "memory.stat", reclaimable, 1) or 0))
        least = left if least is None else min(least, left)
    return least


def _groups(proc: Path, groups: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of this process's own group and of those above it, each with the names of its files."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (groups / "memory", FIRST) if controllers else (groups, SECOND)
        place = root / path.lstrip("/")  # inside a container often the path outside: then only the root is there
        while place != root:
            yield place, names
            place = place.parent
        yield root, names


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group or controller, or "max"
        return None


def _field(file: Path, name: str, unit: int) -> int | None:
    """The number behind *name* at the begin of a line, times *unit*."""
    try:
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] == [name]:
                return int(words[1]) * unit
    except (OSError, ValueError, IndexError):
        return None
    return None
