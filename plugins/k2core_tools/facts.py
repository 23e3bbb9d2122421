"""Facts with their sources: one attribute of one entity, from tables that come with k2core or from the user's own.

A table has the columns entity, attribute, value and, where they apply, unit, source, year and aliases. It lives in SQLite;
entities are found whatever their case and accents, also by their aliases; attributes are exact but for case.
"""

import csv
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from k2core import tool
from k2core.errors import InputError, ToolError
from k2core.interfaces import Tool, ToolContext
from k2core_tools.nearest import nearest_names

NEAREST = 2
_COLUMNS = ("entity", "attribute", "value", "unit", "source", "year")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (entity TEXT, attribute TEXT, value TEXT, unit TEXT, source TEXT, year TEXT);
CREATE TABLE IF NOT EXISTS aliases (alias TEXT, entity TEXT);
"""


@frozen(kw_only=True)
class Fact:
    """One row: a value, its unit, and where and when it comes from.

    Attributes:
        entity: whose attribute it is.
        attribute: what is known, e.g. ``area``.
        value: the value as text.
        unit: its unit, empty for names and pure numbers.
        source: who says so.
        year: of the figure, empty where it has none.
    """

    entity: str
    attribute: str
    value: str
    unit: str = ""
    source: str = ""
    year: str = ""

    def render(self) -> str:
        """``580367 km2 [CIA World Factbook, 2026]``; unit, year and source only where there are any."""
        cited = ", ".join(part for part in (self.source, self.year) if part)
        return f"{self.value}{' ' + self.unit if self.unit else ''}{f' [{cited}]' if cited else ''}"


@define
class FactsStore:
    """Facts in a SQLite database; may be used from any thread.

    Made by `from_rows`, `open` or `shipped`. Rows are read when they are asked for; the index of names is built at the first
    look-up.
    """

    _database: sqlite3.Connection
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _entities: dict[str, list[str]] | None = field(default=None, init=False)  # key -> entities of that name or alias

    @classmethod
    def from_rows(
        cls, rows: Iterable[Fact | Mapping[str, Any]], aliases: Mapping[str, Iterable[str]] | None = None
    ) -> "FactsStore":
        """A store in memory.

        Args:
            rows: facts, or mappings with their field names; a repeated (entity, attribute) keeps the last row.
            aliases: other names of entities.

        Raises:
            InputError: a row has no entity, attribute or value.
        """
        values = [tuple(getattr(fact, column) for column in _COLUMNS) for fact in (_as_fact(row) for row in rows)]
        pairs = [(alias, entity) for entity, names in (aliases or {}).items() for alias in names if alias]
        with ExitStack() as opened:
            database = opened.enter_context(closing(sqlite3.connect(":memory:", check_same_thread=False)))
            database.executescript(_SCHEMA)
            database.executemany("INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?)", values)
            database.executemany("INSERT INTO aliases VALUES (?, ?)", pairs)
            opened.pop_all()  # nothing failed: the store closes it
        return cls(database)

    @classmethod
    def open(cls, path: Path) -> "FactsStore":
        """The user's own facts: a CSV file (UTF-8, with a header line) or a SQLite file with a table ``facts``.

        A row without a source is cited by the file's name. A CSV column ``aliases`` is divided at ``;``; in SQLite a table
        ``aliases (alias, entity)`` may exist. A SQLite file is opened read-only.

        Raises:
            InputError: the file is missing, not UTF-8, neither CSV nor SQLite, or lacks a column.
        """
        try:
            with path.open("rb") as file:
                is_sqlite = file.read(16) == b"SQLite format 3\0"
        except OSError as error:
            raise InputError(f"cannot open facts '{path}': {error.strerror or error}") from error
        return _open_sqlite(path) if is_sqlite else _open_csv(path)

    @classmethod
    def shipped(cls) -> "FactsStore":
        """The countries and the chemical elements that come with k2core."""
        from k2core_tools.tables import shipped_rows

        rows, aliases = shipped_rows()
        return cls.from_rows(rows, aliases)

    def lookup(self, entity: str, attribute: str) -> Fact:
        """The fact.

        Raises:
            ToolError: no such entity (with the nearest names), an ambiguous alias, or no such attribute of it (with the
                known ones).
        """
        with self._lock:
            name = self._resolve(entity)
            wanted = _key(attribute)
            rows = [
                Fact(**{c: str(v) if v is not None else "" for c, v in zip(_COLUMNS, row, strict=True)})
                for row in self._rows(name)
            ]
        found = [fact for fact in rows if _key(fact.attribute) == wanted]
        if not found:
            known = ", ".join(sorted({fact.attribute for fact in rows}))
            raise ToolError(f"no attribute '{attribute}' of {name}. Known: {known}")
        return found[-1]

    def entities(self) -> tuple[str, ...]:
        """Names of all entities, sorted, aliases not included."""
        with self._lock:
            return tuple(sorted(row[0] for row in self._database.execute("SELECT DISTINCT entity FROM facts")))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _rows(self, name: str) -> list[tuple[Any, ...]]:
        return self._database.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM facts WHERE entity = ? ORDER BY rowid", (name,)
        ).fetchall()

    def _resolve(self, entity: str) -> str:
        names = self._names()
        found = names.get(_key(entity), [])
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise ToolError(f"no entity '{entity}'. Nearest: {', '.join(sorted(found))}")
        codes = len(_key(entity)) <= 3  # codes and symbols resemble anything, so they are offered only for one another
        near = nearest_names(_key(entity), [key for key in names if codes or len(key) > 3] or names, NEAREST + 2)
        listed = list(dict.fromkeys(owner for key in near for owner in names[key]))[:NEAREST]
        raise ToolError(f"no entity '{entity}'. Nearest: {', '.join(listed) or 'none'}")

    def _names(self) -> dict[str, list[str]]:
        if self._entities is None:
            own: dict[str, list[str]] = {}
            for (name,) in self._database.execute("SELECT DISTINCT entity FROM facts ORDER BY entity"):
                own.setdefault(_key(name), []).append(name)
            other: dict[str, list[str]] = {}
            for alias, name in self._database.execute("SELECT DISTINCT alias, entity FROM aliases ORDER BY alias, entity"):
                if _key(alias) not in own and _key(name) in own:
                    other.setdefault(_key(alias), []).append(name)
            self._entities = own | {key: list(dict.fromkeys(names)) for key, names in other.items()}
        return self._entities


def make_facts(store: FactsStore) -> Tool:
    """The tool ``facts`` over *store*."""

    @tool(effect="read", timeout_s=10.0, name="facts")
    def facts(attribute: str, entity: str) -> str:
        """Look up one attribute of an entity."""
        return store.lookup(entity, attribute).render()

    return facts


def make_shipped_facts(context: ToolContext) -> Tool:
    """The tool ``facts`` over the tables that come with k2core, which are read at the first call."""
    held: list[FactsStore] = []
    lock = threading.Lock()

    def close() -> None:
        with lock:
            while held:
                held.pop().close()

    context.closing.callback(close)

    @tool(effect="read", timeout_s=10.0, name="facts")
    def facts(attribute: str, entity: str) -> str:
        """Look up one attribute of an entity."""
        with lock:
            if not held:
                held.append(FactsStore.shipped())
            return held[0].lookup(entity, attribute).render()

    return facts


def _key(name: str) -> str:
    """*name* without case, accents and punctuation between words."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name).casefold() if not unicodedata.combining(c))
    return " ".join("".join(c if c.isalnum() else " " for c in plain.replace("'", "").replace("’", "")).split())


def _as_fact(row: Fact | Mapping[str, Any]) -> Fact:
    if isinstance(row, Fact):
        return row
    values = {column: str(row[column]).strip() for column in _COLUMNS if row.get(column) is not None}
    missing = [column for column in _COLUMNS[:3] if not values.get(column)]
    if missing:
        raise InputError(f"a row of facts has no {' and no '.join(missing)}: {dict(row)}")
    return Fact(**values)


def _open_csv(path: Path) -> FactsStore:
    rows: list[Fact] = []
    aliases: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS[:3] if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"cannot use facts '{path}': its first line has no column {' and no '.join(missing)}")
            for row in reader:
                fact = _as_fact({"source": path.name} | {key: value for key, value in row.items() if key and value})
                rows.append(fact)
                aliases.setdefault(fact.entity, []).extend(one.strip() for one in (row.get("aliases") or "").split(";"))
    except UnicodeDecodeError as error:
        raise InputError(f"cannot use facts '{path}': it is not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise InputError(f"cannot use facts '{path}': {error}") from error
    return FactsStore.from_rows(rows, aliases)


def _open_sqlite(path: Path) -> FactsStore:
    try:
        with ExitStack() as opened:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            database = opened.enter_context(closing(sqlite3.connect(uri, uri=True, check_same_thread=False)))
            _adapt(database, path)
            opened.pop_all()  # nothing failed: the store closes it
    except sqlite3.Error as error:
        raise InputError(f"cannot use facts '{path}': {error}") from error
    return FactsStore(database)


def _adapt(database: sqlite3.Connection, path: Path) -> None:
    """Give the user's own tables the store's shape, as views that exist on this connection only."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(facts)")}
    missing = [column for column in _COLUMNS[:3] if column not in columns]
    if missing:
        raise InputError(f"cannot use facts '{path}': no table facts with column {' and '.join(missing)}")
    selected = ", ".join(column if column in columns else f"'' AS {column}" for column in _COLUMNS if column != "source")
    source = "COALESCE(NULLIF(source, ''), {0})" if "source" in columns else "{0}"
    quoted = "'" + path.name.replace("'", "''") + "'"
    database.execute(f"CREATE TEMP VIEW facts AS SELECT rowid, {selected}, {source.format(quoted)} AS source FROM main.facts")
    if not database.execute("SELECT 1 FROM main.sqlite_master WHERE name = 'aliases'").fetchone():
        database.execute("CREATE TEMP TABLE aliases (alias TEXT, entity TEXT)")
