"""Search over a local folder with tantivy, declared word for word as the shipped search.

The index lies in memory and is brought up to date before every search: only changed files are indexed again. Words are stemmed
by Snowball's English, of which the shipped search's Porter is the elder: they part on a few ("news" is a word of its own here).
"""

import importlib.util
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from k2core import tool
from k2core.errors import InputError, ToolError
from k2core.interfaces import Tool, ToolContext
from k2core_tools.documents import told_files
from k2core_tools.folder import FoundFile, read_text, walk
from k2core_tools.passages import cut

RESULTS = 5
MAX_WORDS = 32  # of a query
MEMORY = 50_000_000  # bytes that the writer may use
CONTEXT_WEIGHT = 0.5  # of a word in the headings above a passage, relative to one in it
_WORDS = "words"  # an analyzer: lower case, without accents, stems


@define
class TantivyIndex:
    """The passages of one folder; may be used from any thread.

    Attributes:
        folder: whose documents.
        skipped: documents that could not be read, with the reason, as of the last search.
    """

    folder: Path
    skipped: dict[str, str] = field(factory=dict, init=False)
    _stamps: dict[str, str] = field(factory=dict, init=False)  # of files that are in the index, or were tried
    _index: Any = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def search(self, query: str, count: int = RESULTS) -> list[tuple[str, int, str]]:
        """(file, line, passage) of the best matches by BM25, best first; no word of the query is an operator.

        Raises:
            ToolError: the folder is gone.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", query.casefold())))[:MAX_WORDS]
        with self._lock:
            index = self._refreshed()
            if not words:
                return []
            searcher = index.searcher()
            wanted = index.parse_query(
                " ".join(f'"{word}"' for word in words), ["text", "context"], field_boosts={"context": CONTEXT_WEIGHT}
            )
            hits = searcher.search(wanted, 4 * count).hits  # more than asked for: those that fit equally well are sorted
            found = [(round(score, 4), searcher.doc(address)) for score, address in hits]
        rows = [(-score, str(one["file"][0]), int(one["line"][0]), str(one["text"][0])) for score, one in found]
        return [row[1:] for row in sorted(rows)[:count]]

    def _refreshed(self) -> Any:
        if not self.folder.is_dir():
            raise ToolError(f"the documents folder '{self.folder}' does not exist")
        self._index = self._index or _empty()
        found = {one.name: one for one in walk(self.folder)}
        gone = self._stamps.keys() - found.keys()
        fresh = [one for name, one in found.items() if not one.stamp or self._stamps.get(name) != one.stamp]
        if gone or fresh:
            try:
                self._update(self._index, gone, fresh)
            except BaseException:  # half of a change is in it: the next search begins with an empty one
                self._index = None
                self._stamps.clear()
                self.skipped.clear()
                raise
        return self._index

    def _update(self, index: Any, gone: Iterable[str], fresh: Sequence[FoundFile]) -> None:
        writer = index.writer(heap_size=MEMORY, num_threads=1)
        # before 0.26 the method had another name, which is deprecated since
        delete = getattr(writer, "delete_documents_by_term", None) or writer.delete_documents
        for name in [*gone, *(one.name for one in fresh)]:
            delete("file", name)
            self._stamps.pop(name, None)
            self.skipped.pop(name, None)
        for one in fresh:
            self._add(writer, one)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()

    def _add(self, writer: Any, found: FoundFile) -> None:
        import tantivy

        problem, text = found.problem, ""
        if not problem:
            try:
                text = read_text(self.folder, found.name)
            except ToolError as error:
                problem = str(error).removeprefix(f"cannot read '{found.name}': ")
        if problem:
            self.skipped[found.name] = problem
        stem = Path(found.name).stem
        for one in cut(text):
            context = f"{stem} {one.context}"
            writer.add_document(tantivy.Document(text=one.text, context=context, file=found.name, line=one.line))
        self._stamps[found.name] = found.stamp


def make_search(context: ToolContext) -> Tool:
    """The tool ``search`` over the context's folder of documents.

    Raises:
        InputError: the folder or tantivy is missing.
    """
    missing = state(context)
    if missing:
        raise InputError(missing)
    if context.documents is None or not context.documents.is_dir():
        raise InputError(f"the documents folder '{context.documents}' does not exist; give one with --docs FOLDER")
    index = TantivyIndex(context.documents)

    @tool(effect="read", timeout_s=60.0, name="search", untrusted=True)
    def search(query: str) -> str:
        """Find passages in the documents."""
        found = index.search(query)
        lines = [f"[{rank}] {file}:{line} {text}" for rank, (file, line, text) in enumerate(found, 1)] or ["no results"]
        if index.skipped:
            lines.append(f"(not searched: {told_files(dict(sorted(index.skipped.items())))})")
        return "\n".join(lines)

    return search


def state(context: ToolContext) -> str:
    """Why it cannot work here, empty where it can."""
    if importlib.util.find_spec("tantivy") is None:
        return "tantivy is not installed. Install it with: pip install 'k2core[search]'"
    return ""


def _empty() -> Any:
    """An index without passages."""
    import tantivy

    schema = tantivy.SchemaBuilder()
    for name in ("text", "context"):
        schema.add_text_field(name, stored=True, tokenizer_name=_WORDS)
    schema.add_text_field("file", stored=True, tokenizer_name="raw")
    schema.add_integer_field("line", stored=True)
    index = tantivy.Index(schema.build())
    analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for each in (tantivy.Filter.lowercase(), tantivy.Filter.ascii_fold(), tantivy.Filter.stemmer("english")):
        analyzer = analyzer.filter(each)
    index.register_tokenizer(_WORDS, analyzer.build())
    return index
