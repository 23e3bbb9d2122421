"""Bounds what resource limits do not: the memory of all processes together, their number, the workspace's bytes and files.

RLIMIT_AS holds for one process; forty forks of one that stays below it fill the machine. So a thread on the host sums the
proportional set sizes of the whole tree and kills the sandbox when a bound is passed. What the kernel holds for a sandbox is in
no process's size: so sockets, whose buffers it is, and the files of /tmp and /dev/shm, whose bytes alone their file systems
bound, are counted too.
"""

import contextlib
import os
import stat
import threading
from collections.abc import Iterable, Set
from pathlib import Path

import structlog
from attrs import define, field, frozen

from k2core_sandbox.process import Worker
from k2core_sandbox.processes import tasks, tree
from k2core_sandbox.worker import LIMITS

log = structlog.get_logger()
LARGEST_FILE = LIMITS["RLIMIT_FSIZE"]


@frozen(kw_only=True)
class Bounds:
    """What one sandbox may use.

    Attributes:
        memory: bytes, the sum of the processes' proportional set sizes.
        processes: how many, threads not counted.
        disk: bytes of the files that it wrote, as allocated, those without a name counted.
        files: entries of the workspace, folders counted; and of each of its file systems in memory.
        sockets: held open by all processes together.
        every_s: seconds between two looks.
        calm: a sandbox with more processes than this gets the lowest priority for all but its worker, so that a bomb slows
            itself and not its neighbours.
    """

    memory: int = 1 << 30
    processes: int = 64
    disk: int = 512 << 20
    files: int = 20_000
    sockets: int = 256
    every_s: float = 0.05
    calm: int = 6


@define
class Watchdog:
    """Watches one worker until it is stopped; `with` starts and stops it."""

    worker: Worker
    workspace: Path
    bounds: Bounds = field(factory=Bounds)
    _stop: threading.Event = field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> "Watchdog":
        self._thread = threading.Thread(target=self._watch, name="k2core-sandbox-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.bounds.every_s):
            try:
                why = self.broken()
            except Exception as error:  # a watchdog that cannot see must not look the other way
                why = f"the watchdog could not look: {error}"
            if why:
                log.warning("sandbox.killed", reason=why)
                self.worker.kill(why)
                return

    def broken(self) -> str:
        """Which bound is passed, in words; empty if none is."""
        members = tree(self.worker.root)
        if len(members) > self.bounds.calm:
            demote(members)
        memory = sum(proportional_size(number) for number in members)
        if memory > self.bounds.memory:
            return f"its processes used {memory >> 20} MiB of memory, more than {self.bounds.memory >> 20}"
        if len(members) > self.bounds.processes:
            return f"it had {len(members)} processes, more than {self.bounds.processes}"
        folders = [self.workspace, *self.worker.folders]
        counts = [usage(folder, self.bounds.files) for folder in folders]
        files = max(count for _, count in counts)
        held, sockets = open_files(members, {folder.stat().st_dev for folder in folders})
        size = sum(size for size, _ in counts) + held
        if files > self.bounds.files:
            return f"its workspace had more than {self.bounds.files} files"
        if sockets > self.bounds.sockets:
            return f"its processes held {sockets} sockets, more than {self.bounds.sockets}"
        if any(entries(self.worker.root, place) > self.bounds.files for place in self.worker.in_memory):
            return f"it made more than {self.bounds.files} files in memory"
        if size > self.bounds.disk:
            return f"its workspace held {size >> 20} MiB, more than {self.bounds.disk >> 20}"
        return ""


def demote(members: list[int]) -> None:
    """Give all but the first two (bubblewrap's own and the worker) the lowest priority; their children inherit it.

    Where the kernel shares time between sessions first (autogroup), it is the sandbox's session that has to be lowered.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{members[0]}/autogroup").write_text("19")
    for number in members[2:]:
        try:
            for task in Path(f"/proc/{number}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), 19)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed


def proportional_size(number: int) -> int:
    """Bytes of memory of a process, each shared page counted in part (in full where it hides them); 0 if it has ended."""
    for task in tasks(number):
        try:
            for line in (task / "smaps_rollup").read_bytes().splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed
        except PermissionError:  # it made itself undumpable; how much is resident can always be read
            return int((task / "statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def entries(root: int, place: str) -> int:
    """How many files a file system in memory has that process *root* sees at *place*; 0 if it has ended."""
    try:
        about = os.statvfs(f"/proc/{root}/root/{place}")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return about.f_files - about.f_ffree


def open_files(members: Iterable[int], devices: Set[int]) -> tuple[int, int]:
    """Allocated bytes on the devices of files that have no name any more but are held open or mapped, and open sockets.

    Each thread is asked, for it may have descriptors of its own.

    Raises:
        OSError: a process hides what it holds open.
    """
    found: dict[tuple[int, int], int] = {}
    sockets: set[int] = set()
    for member in members:
        maps: bytes | None = None  # of all its threads
        for task in tasks(member):
            try:
                with os.scandir(task / "fd") as listing:
                    numbers = [entry.path for entry in listing]
                fresh = maps is None
                maps = (task / "maps").read_bytes() if maps is None else maps
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended since it was listed
            except PermissionError:
                if _ended(task):  # the kernel gives what has ended to root
                    continue
                raise
            for number in numbers:
                try:
                    about = Path(number).stat()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                except PermissionError:
                    if _ended(task):
                        break
                    raise
                if stat.S_ISSOCK(about.st_mode):
                    sockets.add(about.st_ino)
                if about.st_dev in devices and stat.S_ISREG(about.st_mode) and not about.st_nlink:
                    found[about.st_dev, about.st_ino] = about.st_blocks * 512
            for line in maps.splitlines() if fresh else ():
                if line.endswith(b" (deleted)"):
                    span, _, _, device, inode, _ = line.split(maxsplit=5)
                    major, minor = (int(part, 16) for part in device.split(b":"))
                    key = os.makedev(major, minor), int(inode)
                    if key[0] in devices and key not in found:
                        found[key] = _mapped(member, span.decode())
    return sum(found.values()), len(sockets)


def _ended(task: Path) -> bool:
    """Whether the thread has ended since it was listed."""
    return not any(one.name == task.name for one in tasks(int(task.parent.parent.name)))


def _mapped(member: int, span: str) -> int:
    """Allocated bytes of the file that is mapped there; as many as a file may have where only root could look."""
    begin, end = (int(part, 16) for part in span.split("-"))
    try:
        return Path(f"/proc/{member}/map_files/{begin:x}-{end:x}").stat().st_blocks * 512
    except PermissionError:
        return LARGEST_FILE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def usage(folder: Path, most: int) -> tuple[int, int]:
    """Allocated bytes and entries below *folder*; counting ends when there are more than *most* entries."""
    size = files = 0
    waiting = [str(folder)]
    while waiting and files <= most:
        try:
            with os.scandir(waiting.pop()) as listing:
                for entry in listing:
                    files += 1
                    if files > most:
                        break
                    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        except FileNotFoundError:
            continue  # removed since it was listed
    return size, files
