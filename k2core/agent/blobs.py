"""Content of files that runs brought out, beside the journal, each under the hash of its content.

A file is complete under its name or not there at all: it is written under another name, synced and renamed.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from attrs import define

from k2core.errors import JournalError


@define
class Blobs:
    """A folder of contents; made when the first one is kept."""

    folder: Path

    @classmethod
    def beside(cls, journal: Path) -> "Blobs":
        """Those of the journal in this file."""
        return cls(journal.parent / "files")

    def path(self, sha256: str) -> Path:
        """Where the content with this hash lies, whether it is there or not."""
        return self.folder / sha256[:2] / sha256

    def keep(self, content: bytes) -> str:
        """Store *content* durably; its sha256 in hex.

        Raises:
            JournalError: the disk refuses.
        """
        digest = hashlib.sha256(content).hexdigest()
        path = self.path(digest)
        if path.exists():
            return digest
        part = path.with_name(f"{digest}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise JournalError(f"cannot keep a file of {len(content)} bytes in {path.parent}: {error.strerror}") from error
        return digest

    def read(self, sha256: str) -> bytes:
        """The content with this hash.

        Raises:
            JournalError: it is not there, or is not what its name says.
        """
        try:
            content = self.path(sha256).read_bytes()
        except OSError as error:
            raise JournalError(f"cannot read file {sha256[:12]}… of the journal: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise JournalError(f"file {sha256[:12]}… of the journal is damaged: its content has another hash")
        return content
