"""What the host sees of a sandbox's processes, and how it ends them where no namespace does."""

import contextlib
import os
import signal
from pathlib import Path

ROUNDS = 50  # of killing what has been forked meanwhile


def tree(root: int) -> list[int]:
    """Process numbers of *root* and everything below it; those that end meanwhile may be missing."""
    members, at = [root], 0
    while at < len(members):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since it was listed
            for task in Path(f"/proc/{members[at]}/task").iterdir():
                members += [int(number) for number in (task / "children").read_bytes().split()]
        at += 1
    return members


def tasks(number: int) -> list[Path]:
    """The threads of a process that run, or could again. Its first one may have ended before the others."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{number}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if _fields(task)[0] not in b"ZX":
                    found.append(task)
    return found


def _fields(place: Path) -> list[bytes]:
    """What the kernel tells behind a process's name, which may be any bytes."""
    return (place / "stat").read_bytes().rpartition(b")")[2].split()


def alive(number: int) -> bool:
    """Whether the process runs, or could again."""
    return bool(tasks(number))


def started(number: int) -> str | None:
    """When the process began, in ticks since the machine did, to tell it from a later one of the same number; None if gone."""
    try:
        return _fields(Path(f"/proc/{number}"))[19].decode("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return None


def end_below(root: int) -> None:
    """SIGKILL everything below *root*, and what it forks meanwhile; *root* itself stays, so that it keeps its orphans."""
    for _ in range(ROUNDS):
        running = [number for number in tree(root)[1:] if alive(number)]
        if not running:
            return
        for number in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
