"""Who may write to a run: one process at a time, told by a lease that is a row beside the run's events.

A lease carries a number that grows with every owner (a fence). Each write to the run is made under the number its writer was
given, in the transaction that checks it: a process that slept through the end of its lease, and whose run somebody else took
over meanwhile, writes nothing any more (Kleppmann, *How to do distributed locking*, 2016).

A lease lapses when its owner has not renewed it for `LEASE_S` seconds. It is free at once where the owner is known to be
gone: a process of this boot of this machine, under a number that nobody has by now or that another process was given.
"""

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

LEASE_S = 30.0  # seconds without a sign of life after which a run may be taken over


@frozen(kw_only=True)
class Owner:
    """A process, so that another one can tell whether it is there.

    Attributes:
        boot: identity of the machine's boot and of the space its process numbers are in; only within the same one can be
            told whether a process lives.
        pid: number of the process.
        started: when it started, as the operating system counts; empty where that cannot be known.
        host: the machine's name, for people.
    """

    boot: str
    pid: int
    started: str
    host: str

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        return cls(boot=_boot(), pid=os.getpid(), started=_started(os.getpid()) or "", host=socket.gethostname())

    @classmethod
    def from_json(cls, text: str) -> "Owner":
        """What `to_json` wrote; anything else is an owner nobody knows."""
        try:
            data: Any = json.loads(text)
            return cls(boot=str(data["boot"]), pid=int(data["pid"]), started=str(data["started"]), host=str(data["host"]))
        except (ValueError, KeyError, TypeError):
            return cls(boot="", pid=0, started="", host="")

    def to_json(self) -> str:
        """As the journal keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    def is_gone(self) -> bool:
        """Whether the process certainly is no more; False where that cannot be told."""
        if not self.boot or self.boot != _boot() or self.pid <= 0:
            return False
        started = _started(self.pid)
        if started is not None:
            return self.started not in ("", started)
        return not _exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


@frozen(kw_only=True)
class Lease:
    """The right to write to a run.

    Attributes:
        run: the run's id.
        fence: the number under which its holder writes.
        lost: set when the holder learnt that somebody else has the run by now.
    """

    run: str
    fence: int
    lost: threading.Event = field(factory=threading.Event, eq=False, repr=False)


def _boot() -> str:
    """Of this boot and this space of process numbers; the machine's name where Linux does not tell more."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None where it is not there, is dead, or Linux's /proc is missing."""
    try:
        # the name of the program, in parentheses, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X", b"x") else fields[19].decode()


def _exists(pid: int) -> bool:
    if Path("/proc/self/stat").exists():
        return False  # _started has looked
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
