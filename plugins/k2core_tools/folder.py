"""Reading files of one folder and nothing outside it.

Paths are resolved and must stay inside; the file is then opened step by step without following links, so that a link put
there in between is refused and not followed.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from k2core.errors import ToolError

MAX_BYTES = 4_000_000  # of one document
_TEXT = "md markdown txt text rst adoc org tex csv tsv json jsonl toml yaml yml ini cfg log html xml"
_CODE = "py pyi js ts c h cc cpp hpp cu rs go java rb sh sql r jl"
SUFFIXES = frozenset(f".{one}" for one in f"{_TEXT} {_CODE}".split())
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})  # and hidden ones


@frozen(kw_only=True)
class FoundFile:
    """A file that may be a document.

    Attributes:
        name: path below the folder, with ``/``.
        stamp: modification time and size; another stamp means other contents.
        problem: why it cannot be read, empty if nothing is known against it.
    """

    name: str
    stamp: str
    problem: str = ""


def walk(folder: Path) -> Iterator[FoundFile]:
    """Documents below *folder* by suffix, in name order; hidden files and folders and linked folders are left out."""
    root = folder.resolve()
    for base, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            path = Path(base, name)
            shown = path.relative_to(root).as_posix()
            try:
                shown.encode()
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    yield FoundFile(name=shown, stamp="", problem="a link that leaves the folder")
                    continue
                status = path.stat()
            except OSError as error:
                yield FoundFile(name=shown, stamp="", problem=error.strerror or "unreadable")
                continue
            except UnicodeEncodeError:
                yield FoundFile(name=os.fsencode(shown).decode("utf-8", "replace"), stamp="", problem="its name is not UTF-8")
                continue
            problem = "not a file" if not stat.S_ISREG(status.st_mode) else ""
            if status.st_size > MAX_BYTES:
                problem = f"larger than {MAX_BYTES // 1_000_000} MB"
            yield FoundFile(name=shown, stamp=f"{status.st_mtime_ns}:{status.st_size}", problem=problem)


def read_text(folder: Path, name: str) -> str:
    """The text of a document of *folder*.

    Args:
        folder: the only place that is read.
        name: path below it; an absolute path is accepted if it leads there.

    Raises:
        ToolError: the path leads outside (``..``, a link), is no file, too large, or not UTF-8.
    """
    if not name.strip() or "\0" in name:
        raise ToolError(f"no document {name!r}")
    root = folder.resolve()
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ToolError(f"no document '{name}'") from error
    if not path.is_relative_to(root):
        raise ToolError(f"'{name}' is outside the documents folder")
    try:
        data = _read_inside(root, path.relative_to(root).parts)
    except FileNotFoundError as error:
        raise ToolError(f"no document '{name}'") from error
    except (OSError, ValueError) as error:
        raise ToolError(f"cannot read '{name}': {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise ToolError(f"cannot read '{name}': larger than {MAX_BYTES // 1_000_000} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ToolError(f"cannot read '{name}': not UTF-8 at byte {error.start + 1}") from error


def _read_inside(root: Path, parts: tuple[str, ...]) -> bytes:
    if not parts:
        raise IsADirectoryError(21, "it is a folder")
    if os.open not in os.supports_dir_fd:  # Windows: the check above is all there is
        with root.joinpath(*parts).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(22, "it is not a file")
        return file.read(MAX_BYTES + 1)
