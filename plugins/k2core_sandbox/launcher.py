"""The one thread that starts every sandbox.

A sandbox dies with the thread that started it, so that thread lives as long as we do. Where root starts sandboxes, it changes
the user of each first; what that user could not reach (an interpreter under /root, say) is bound to a staging folder in a
mount namespace that only this thread has, so the host's mounts stay as they are.
"""

import atexit
import ctypes
import itertools
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from k2core.errors import Unavailable

USER = 64_923  # uid and gid outside, where root starts the sandbox
Reach = Callable[[Path], str]  # a path as the sandbox's user can reach it
_NEW_MOUNTS = 0x20000
_BIND, _RECURSIVE, _SLAVE, _NO_SUID, _NO_DEVICES = 0x1000, 0x4000, 0x80000, 0x2, 0x4
_DETACH = 2
KEPT = 64  # bound folders
SYSTEM = "/usr/bin:/bin:/usr/sbin:/sbin"  # never a program from the workspace
_binds: dict[Path, Path] = {}  # folder -> where it is bound; only the launcher's thread uses it
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def launch(build: Callable[[Reach], list[str]], *, change_user: bool, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process.

    Args:
        build: makes the command; what it names outside has to go through the function it is given.
        change_user: as root, become `USER` before the command runs; it is given reachable paths then.
        options: of `subprocess.Popen`.

    Raises:
        OSError: it does not start.
        Unavailable: root may not bind what has to be bound.
    """
    return _thread().submit(_launch, build, change_user and not os.geteuid(), options).result()


def reachable(folders: Iterable[Path]) -> bool:
    """Whether everyone may enter each of the folders."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "k2core-sandbox-launcher")


def _launch(build: Callable[[Reach], list[str]], change_user: bool, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    if not change_user:
        return subprocess.Popen(build(str), **options)
    command = build(_staged)
    if (setpriv := shutil.which("setpriv", path=SYSTEM)) is None:
        return subprocess.Popen(command, user=USER, group=USER, extra_groups=[], **options)
    # Python itself changes the user only after a fork, which copies our page tables; a program lets it use vfork: 3 ms sooner
    become = [setpriv, f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--"]
    return subprocess.Popen([*become, *command], **options)


def _staged(path: Path) -> str:
    """*path*, or its place below the staging folder where `USER` could not reach it."""
    if reachable(path.parents):
        return str(path)
    open_parent = path.parent.stat().st_mode & stat.S_IXOTH
    folder = path.parent if open_parent else path
    return str(_bound(folder) / path.relative_to(folder))


@cache
def _stage() -> Path:
    """The staging folder: in memory, in a mount namespace of this thread's own, gone with the thread."""
    folder = Path(tempfile.mkdtemp(prefix="k2core-stage-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # outside the namespace it is an empty folder
    folder.chmod(0o711)
    if _libc.unshare(_NEW_MOUNTS):
        raise _failed("unshare the mount namespace")
    _mount(None, Path("/"), None, _RECURSIVE | _SLAVE)
    _mount(Path("k2core-stage"), folder, b"tmpfs", _NO_SUID | _NO_DEVICES, b"mode=0711,size=1m")
    return folder


def _bound(folder: Path) -> Path:
    """Where *folder* is bound; a bind of a folder that was replaced meanwhile, or not used for long, is taken away."""
    bound = _binds.pop(folder, None)
    if bound is not None and not bound.samefile(folder):
        _unbind(bound)
        bound = None
    if bound is None:
        bound = _stage() / str(next(_numbers))
        if folder.is_dir():
            bound.mkdir()
        else:
            bound.touch()
        _mount(folder, bound, None, _BIND)
    _binds[folder] = bound  # now the one used last
    while len(_binds) > KEPT:
        _unbind(_binds.pop(next(iter(_binds))))
    return bound


def _unbind(place: Path) -> None:
    if _libc.umount2(os.fsencode(place), _DETACH):
        raise _failed(f"unmount {place}")
    if place.is_dir():
        place.rmdir()
    else:
        place.unlink()


def _mount(source: Path | None, target: Path, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    given = None if source is None else os.fsencode(source)
    if _libc.mount(given, os.fsencode(target), kind, ctypes.c_ulong(flags), data):
        raise _failed(f"mount {source or target}")


def _failed(what: str) -> Unavailable:
    return Unavailable(
        f"the sandbox cannot start as root: cannot {what}: {os.strerror(ctypes.get_errno())}. Run as another user."
    )
