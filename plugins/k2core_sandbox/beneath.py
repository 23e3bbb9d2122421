"""Files of the workspace, as the host reads and writes them: regular files only, never through a link, never outside.

The inside can swap a path between a check and its use, so there is no check of paths at all: the kernel resolves every path
beneath the workspace's descriptor and refuses links (openat2 with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
RESOLVE_NO_MAGICLINKS, Linux 5.6).
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from attrs import define, frozen

from k2core.errors import ToolError

_OPENAT2 = 437  # the same on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
READ_LIMIT = 16 << 20  # bytes of one file
ENTRIES = 2_000  # of a listing
DEPTH = 32
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@frozen(kw_only=True)
class Entry:
    """A regular file of the workspace: its path within, its bytes, and when it was changed in nanoseconds."""

    path: str
    size: int
    changed_ns: int


@define
class Workspace:
    """One folder, held by its descriptor."""

    folder: Path
    descriptor: int

    @classmethod
    def open(cls, folder: Path) -> "Workspace":
        """Hold a folder of ours."""
        return cls(folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        """Let it go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """The content of a regular file.

        Raises:
            ToolError: there is none, it is a link, lies outside, is no regular file, or is longer than *limit* bytes.
        """
        descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ToolError(f"cannot read '{path}': it is no regular file")
            if found.st_size > limit:
                raise ToolError(f"cannot read '{path}': it has {found.st_size} bytes, more than {limit}")
            parts: list[bytes] = []
            left = limit + 1  # it may grow meanwhile
            while left and (part := os.read(descriptor, min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
            if not left:
                raise ToolError(f"cannot read '{path}': it has more than {limit} bytes")
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def write(self, path: str, content: bytes, *, owner: int | None = None) -> None:
        """Replace a file's content, making the folders on the way; a crash leaves the old or the new content.

        Raises:
            ToolError: the path goes outside, through a link or through a file, or the disk refuses.
        """
        *folders, name = [part for part in path.split("/") if part not in ("", ".")] or [""]
        if not name or ".." in (*folders, name) or "\0" in path or path.startswith("/") or not _encodes(path):
            raise ToolError(f"cannot write '{path}': give a path within the workspace, such as 'notes/plan.txt'")
        parent = os.dup(self.descriptor)
        try:
            for place, folder in enumerate(folders):
                try:
                    os.mkdir(folder, 0o755, dir_fd=parent)
                    if owner is not None:
                        os.chown(folder, owner, owner, dir_fd=parent, follow_symlinks=False)
                except FileExistsError:
                    pass  # the next line says whether it is a folder
                below = self._open(folder, os.O_RDONLY | os.O_DIRECTORY, at=parent, whole="/".join(folders[: place + 1]))
                os.close(parent)
                parent = below
            part = f".{name[:200]}.part"
            with _removing(parent, part):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(part, flags, 0o644, dir_fd=parent)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    if owner is not None:
                        os.fchown(descriptor, owner, owner)
                os.rename(part, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            raise ToolError(f"cannot write '{path}': {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(parent)

    def entries(self) -> tuple[list[Entry], bool]:
        """The regular files by path, at most `ENTRIES` of them and `DEPTH` folders deep, and whether that was all.

        Names that cannot be printed (control characters, reversed text, no Unicode) are passed over, and so are folders of
        such names: their place is a listing that people and models read.
        """
        found: list[Entry] = []
        for entry in self._walk(self.descriptor, "", DEPTH):
            if len(found) == ENTRIES:
                return sorted(found, key=lambda one: one.path), False
            found.append(entry)
        return sorted(found, key=lambda one: one.path), True

    def _walk(self, folder: int, prefix: str, depth: int) -> Iterator[Entry]:
        # not os.fwalk: this one never follows, and opens every folder by the kernel's rule
        with os.scandir(folder) as listing:
            for one in listing:
                if not one.name.isprintable():
                    continue
                path = prefix + one.name
                try:
                    if one.is_dir(follow_symlinks=False):
                        if depth:
                            below = self._open(one.name, os.O_RDONLY | os.O_DIRECTORY, at=folder, whole=path)
                            try:
                                yield from self._walk(below, path + "/", depth - 1)
                            finally:
                                os.close(below)
                    elif one.is_file(follow_symlinks=False):
                        about = os.stat(one.name, dir_fd=folder, follow_symlinks=False)
                        yield Entry(path=path, size=about.st_size, changed_ns=about.st_mtime_ns)
                except (OSError, ToolError):
                    continue  # it went away, or became something else, since it was listed

    def _open(self, path: str, flags: int, *, at: int | None = None, whole: str = "") -> int:
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
        try:
            name = os.fsencode(path)
        except UnicodeEncodeError:
            name = b"\0"
        if b"\0" in name or not name:
            raise ToolError(f"cannot open {path!r}: that is no path")
        number = _libc.syscall(_OPENAT2, self.descriptor if at is None else at, name, how, len(how))
        if number < 0:
            code = ctypes.get_errno()
            reasons = {
                errno.EXDEV: "it lies outside the workspace",
                errno.ELOOP: "it is a link, or lies behind one",
                errno.ENOENT: "there is no such file",
            }
            raise ToolError(f"cannot open '{whole or path}': {reasons.get(code, os.strerror(code))}")
        return int(number)


def _encodes(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


class _removing:
    """Removes a part-written file when writing it failed."""

    def __init__(self, folder: int, name: str) -> None:
        self.folder, self.name = folder, name

    def __enter__(self) -> None:
        self.__exit__(OSError)  # one that a crash left behind

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            try:
                os.unlink(self.name, dir_fd=self.folder)
            except FileNotFoundError:
                return
