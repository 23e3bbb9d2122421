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


def alive(number: int) -> bool:
    """Whether the process runs, or could again."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def end_below(root: int) -> None:
    """SIGKILL everything below *root*, and what it forks meanwhile; *root* itself stays, so that it keeps its orphans."""
    for _ in range(ROUNDS):
        running = [number for number in tree(root)[1:] if alive(number)]
        if not running:
            return
        for number in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
