"""Search and read over a local folder: SQLite's full-text index over passages, each with its file and line.

Only changed files are indexed again. The index lies in the user's data folder if there is one, else in memory; it is a
cache, and is thrown away when it cannot be used.
"""

import hashlib
import re
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import structlog
from attrs import define, field

from k2core import tool
from k2core.errors import InputError, ToolError
from k2core.interfaces import Tool, ToolContext
from k2core_tools.folder import FoundFile, read_text, walk
from k2core_tools.nearest import nearest_names
from k2core_tools.passages import cut

log = structlog.get_logger()

RESULTS = 5
TOLD = 3  # files that are left out, by name
READ_LINES = 40
READ_CHARACTERS = 3000
_MAX_WORDS = 32  # of a query
_VERSION = 2
_SCHEMA = """
CREATE TABLE files (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, problem TEXT NOT NULL);
CREATE VIRTUAL TABLE passages USING fts5(
    text, context, file UNINDEXED, line UNINDEXED, tokenize = "porter unicode61 remove_diacritics 2");
"""


@define
class DocumentIndex:
    """The passages of one folder; may be used from any thread.

    Attributes:
        folder: whose documents.
        data: where the index is kept; None keeps it in memory.
        skipped: documents that could not be read, with the reason, as of the last search.
    """

    folder: Path
    data: Path | None = None
    skipped: dict[str, str] = field(factory=dict, init=False)
    _database: sqlite3.Connection | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def search(self, query: str, count: int = RESULTS) -> list[tuple[str, int, str]]:
        """(file, line, passage) of the best matches by BM25 over the query's words, best first.

        A passage that holds more of the words, and rarer ones, comes first. No word of the query is an operator.

        Raises:
            ToolError: the folder is gone.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", query.casefold())))[:_MAX_WORDS]
        with self._lock:
            database = self._refresh()
            if not words:
                return []
            rows = database.execute(
                "SELECT file, line, text FROM passages WHERE passages MATCH ? "
                "ORDER BY bm25(passages, 1.0, 0.5), file, line LIMIT ?",
                (" OR ".join(f'"{word}"' for word in words), count),
            ).fetchall()
        return [(str(file), int(line), str(text)) for file, line, text in rows]

    def names(self) -> list[str]:
        """Documents that could be read, sorted."""
        with self._lock:
            return [row[0] for row in self._refresh().execute("SELECT name FROM files WHERE problem = '' ORDER BY name")]

    def close(self) -> None:
        """Close the index."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _refresh(self) -> sqlite3.Connection:
        if not self.folder.is_dir():
            raise ToolError(f"the documents folder '{self.folder}' does not exist")
        try:
            self._database = self._database or self._open()
            self._update(self._database)
        except sqlite3.Error as error:  # disk full, read-only, damaged: the index is only a cache
            log.warning("documents.index_in_memory", folder=str(self.folder), reason=str(error))
            self.data = None
            self._drop()
            self._database = self._open()
            self._update(self._database)
        return self._database

    def _open(self) -> sqlite3.Connection:
        place = ":memory:"
        if self.data is not None:
            key = hashlib.sha256(str(self.folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            path = self.data / f"documents-{key}.sqlite"
            try:
                self.data.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise sqlite3.OperationalError(f"cannot make folder {self.data}: {error.strerror}") from error
            place = str(path)
        with ExitStack() as opened:
            database = opened.enter_context(closing(sqlite3.connect(place, check_same_thread=False, timeout=5.0)))
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                database.executescript(
                    "BEGIN IMMEDIATE; DROP TABLE IF EXISTS files; DROP TABLE IF EXISTS passages;"
                    f"{_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            opened.pop_all()  # nothing failed: `close` ends it
        return database

    def _update(self, database: sqlite3.Connection) -> None:
        found = {one.name: one for one in walk(self.folder)}
        known = {name: (stamp, problem) for name, stamp, problem in database.execute("SELECT * FROM files")}
        with database:  # one transaction
            for name in known.keys() - found.keys():
                _forget(database, name)
            for name, one in found.items():
                if name not in known or known[name][0] != one.stamp or not one.stamp:
                    _forget(database, name)
                    _add(database, self.folder, one)
        skipped = dict(database.execute("SELECT name, problem FROM files WHERE problem != '' ORDER BY name"))
        if skipped and skipped != self.skipped:
            log.warning(
                "documents.skipped", folder=str(self.folder), files=skipped, line=f"not searched: {told_files(skipped)}"
            )
        self.skipped = skipped


def make_search(context: ToolContext) -> Tool:
    """The tool ``search`` over the context's folder of documents.

    Raises:
        InputError: the folder is missing.
    """
    index = DocumentIndex(_folder(context), context.data)
    context.closing.callback(index.close)

    @tool(effect="read", timeout_s=60.0, name="search", untrusted=True)
    def search(query: str) -> str:
        """Find passages in the documents."""
        found = index.search(query)
        lines = [f"[{rank}] {file}:{line} {text}" for rank, (file, line, text) in enumerate(found, 1)] or ["no results"]
        if index.skipped:
            lines.append(f"(not searched: {told_files(index.skipped)})")
        return "\n".join(lines)

    return search


def make_read(context: ToolContext) -> Tool:
    """The tool ``read`` over the context's folder of documents.

    Raises:
        InputError: the folder is missing.
    """
    folder = _folder(context)

    @tool(effect="read", timeout_s=10.0, name="read", untrusted=True)
    def read(file: str, line: int) -> str:
        """Read a document from a line on."""
        try:
            text = read_text(folder, file)
        except ToolError as error:
            if not str(error).startswith("no document"):
                raise
            near = _nearest_readable(folder, file)
            raise ToolError(f"{error}. Nearest: {', '.join(near) or 'none'}") from error
        return _extract(file, text, line)

    return read


def told_files(skipped: Mapping[str, str]) -> str:
    """Files that are left out of a search with their reasons, the first few by name."""
    told = [f"{name} ({why})" for name, why in list(skipped.items())[:TOLD]]
    more = len(skipped) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _nearest_readable(folder: Path, file: str, count: int = 3) -> list[str]:
    """Names most like *file* of documents that can be read."""
    found: list[str] = []
    for name in nearest_names(file, [one.name for one in walk(folder) if not one.problem], 4 * count):
        try:
            read_text(folder, name)
        except ToolError:
            continue
        found.append(name)
        if len(found) == count:
            break
    return found


def _extract(file: str, text: str, line: int) -> str:
    lines = text.removesuffix("\n").split("\n")
    if not 1 <= line <= len(lines):
        raise ToolError(f"'{file}' has lines 1 to {len(lines)}, not {line}")
    shown: list[str] = []
    size = 0
    for one in lines[line - 1 : line - 1 + READ_LINES]:
        size += len(one) + 1
        if shown and size > READ_CHARACTERS:
            break
        shown.append(one.rstrip("\r")[:READ_CHARACTERS])
    last = line + len(shown) - 1
    return "\n".join([*shown, f"[lines {line}-{last} of {len(lines)}]"])


def _folder(context: ToolContext) -> Path:
    if context.documents is None or not context.documents.is_dir():
        raise InputError(f"the documents folder '{context.documents}' does not exist; give one with --docs FOLDER")
    return context.documents


def _forget(database: sqlite3.Connection, name: str) -> None:
    database.execute("DELETE FROM passages WHERE file = ?", (name,))
    database.execute("DELETE FROM files WHERE name = ?", (name,))


def _add(database: sqlite3.Connection, folder: Path, found: FoundFile) -> None:
    problem = found.problem
    if not problem:
        try:
            passages = cut(read_text(folder, found.name))
        except ToolError as error:
            problem = str(error).removeprefix(f"cannot read '{found.name}': ")
        else:
            stem = Path(found.name).stem
            database.executemany(
                "INSERT INTO passages (text, context, file, line) VALUES (?, ?, ?, ?)",
                [(one.text, f"{stem} {one.context}", found.name, one.line) for one in passages],
            )
    database.execute("INSERT INTO files VALUES (?, ?, ?)", (found.name, found.stamp, problem))
