"""Questions written by hand, apart from whoever writes the recipe: `held_out/questions.jsonl`, posed over generated worlds.

Nobody has a policy for them, so a run is judged by what it says and does, as the README beside the file lists it. Marks such as
``[3]``, which name a call, are no part of what an answer says.
"""

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import field, frozen

from k2core.agent.control import ANSWER
from k2core.agent.result import RunResult
from k2core.errors import K2Error, Unavailable
from k2core.events import Stored, ToolIntent, ToolReturned
from k2core_nano.train.code import Run
from k2core_nano.train.code import handlers as workspace
from k2core_nano.train.decline_wordings import CHAT
from k2core_nano.train.oracle import DECLINE
from k2core_nano.train.questions import Question
from k2core_nano.train.search import Passage, searcher
from k2core_nano.train.wire import compact
from k2core_nano.train.world import Fact, Handler
from k2core_tools.nearest import nearest_names
from k2core_tools.passages import cut

GROUP = "hand-written"  # as the table, --json and --family name them; their one level has this name too
LEVEL = 3  # after those of the generator
FILE = Path(__file__).parent / "held_out" / "questions.jsonl"
SHA256 = "f2480ef6e5bd0930682557e111060434dda6f0f17eba86a01e2f2eec84e9e91a"  # fixed before the recipe that the file judges
_NUMBER = re.compile(r"(?<![\w./:−-])(?<!\d,)[−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?![\w/]|[.,:]\d)", re.ASCII)
_MARK = re.compile(r"\[\d+(?:, ?\d+)*\]")


@frozen(kw_only=True)
class Made:
    """A call of a tool: its arguments where it was carried out, None where it was refused or failed."""

    name: str
    arguments: Mapping[str, Any] | None


@frozen(kw_only=True)
class HandWritten(Question):
    """One line of the file: its number, what it expects, and what runs tests (files and a path: what `run_tests` says)."""

    line: int
    wanted: Mapping[str, Any] = field(eq=False, repr=False)
    run: Run = field(eq=False, repr=False)

    @property
    def kind(self) -> str:
        """How it is judged."""
        return str(self.wanted["kind"])

    def passed(self, result: RunResult, events: Sequence[Stored]) -> bool:
        """Whether a run, with all of its events, is right."""
        if result.status not in ("answered", "declined") or not result.answer.text.strip():
            return False
        return self._holds(self.wanted, result, made(events))

    def _holds(self, wanted: Mapping[str, Any], result: RunResult, calls: Sequence[Made]) -> bool:
        text = _MARK.sub("", result.answer.text)
        match wanted["kind"]:
            case "number":
                return place_of(wanted["value"], text) is not None
            case "text":
                return any(place_of_words(words, text, re.IGNORECASE) is not None for words in wanted["any_of"])
            case "order":
                return in_order(wanted["items"], text)
            case "report":
                return all(in_report(item, text) for item in wanted["must_contain"])
            case "call":
                called = any(one.name == wanted["tool"] and one.arguments == wanted["arguments"] for one in calls)
                return called and self._holds(wanted["then"], result, calls)
            case "tests":
                return self._tests_pass(calls)
            case "decline":
                return result.status == "declined" and text not in CHAT  # known by its form, as everywhere in the product
            case "reply":
                return not calls and text != DECLINE
        raise K2Error(f"cannot judge line {self.line} of '{FILE.name}': no kind {wanted['kind']!r}")

    def _tests_pass(self, calls: Sequence[Made]) -> bool:
        """Whether the line's own tests pass, all of them, with the other files as the run left them."""
        files = dict(self.files)
        for one in calls:
            if one.name == "write_file" and one.arguments is not None:
                files[str(one.arguments["path"])] = str(one.arguments["content"])
        tests = {name: content for name, content in self.files.items() if name.startswith("test_")}
        for name, content in tests.items():
            count = len(re.findall(r"^def test_", content, re.MULTILINE))
            if self.run({**files, **tests}, name).partition("\n")[0] != f"{count} passed":
                return False
        return True


def asked(run: Run, count: int | None = None) -> tuple[HandWritten, ...]:
    """The questions in the file's order.

    Args:
        run: runs tests; see `HandWritten`.
        count: the first so many of them, None for all.

    Raises:
        K2Error: the file is not the one that was fixed.
        Unavailable: one of them is judged by tests, which cannot be run here.
    """
    data = FILE.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise K2Error(f"cannot use '{FILE}': its sha256 is {found}, expected {SHA256}. It must stay as it was committed")
    lines = data.decode().splitlines()[:count]
    questions = tuple(_question(number, json.loads(line), run) for number, line in enumerate(lines, 1))
    by_tests = next((one.line for one in questions if one.kind == "tests"), None)
    if by_tests is not None:
        said = run({"test_one.py": "def test_one():\n    pass\n"}, "test_one.py").partition("\n")[0]
        if said != "1 passed":
            raise Unavailable(f"cannot judge line {by_tests} of '{FILE.name}' and others: no tests run here ({said})")
    return questions


def _question(number: int, line: Mapping[str, Any], run: Run) -> HandWritten:
    documents: Mapping[str, str] = line.get("documents", {})
    files: Mapping[str, str] = line.get("files", {})
    tools: Sequence[Mapping[str, Any]] = line.get("tools", ())

    def handlers() -> Mapping[str, Handler]:
        found: dict[str, Handler] = {tool["name"]: _foreign(tool) for tool in tools}
        if documents:
            found |= {"search": searcher(_passages(documents)), "read": _reader(documents)}
        if files:
            found |= workspace(None, dict(files))
        return found

    return HandWritten(
        family=GROUP,
        level=LEVEL,
        text=line["question"],
        needed=("search",) if documents else (),
        world=tuple(_fact(*row) for row in line.get("facts", ())),
        files=files,
        declares={tool["name"]: _declaration(tool) for tool in tools},
        handlers=handlers,
        line=number,
        wanted=line["expected"],
        run=run,
    )


def _fact(entity: str, attribute: str, value: object, unit: str, year: object) -> Fact:
    return Fact(entity=entity, attribute=attribute, value=str(value), unit=unit, source="table", year=str(year))


def _passages(documents: Mapping[str, str]) -> list[Passage]:
    """The documents cut as the shipped ``search`` cuts them."""
    return [Passage(file=name, line=one.line, text=one.text) for name, text in sorted(documents.items()) for one in cut(text)]


def _reader(documents: Mapping[str, str]) -> Handler:
    """The tool ``read`` over documents that are short enough to be shown to their end."""

    def handler(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        name, first = str(arguments["file"]), int(str(arguments["line"]))
        if name not in documents:
            return f"error: no document '{name}'. Nearest: {', '.join(nearest_names(name, list(documents), 3)) or 'none'}"
        lines = documents[name].removesuffix("\n").split("\n")
        if not 1 <= first <= len(lines):
            return f"error: '{name}' has lines 1 to {len(lines)}, not {first}"
        return "\n".join([*lines[first - 1 :], f"[lines {first}-{len(lines)} of {len(lines)}]"])

    return handler


def _foreign(tool: Mapping[str, Any]) -> Handler:
    """A tool that is not ours: its result for each of the arguments that the file lists, else what it says otherwise."""

    def handler(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        return next((str(one["result"]) for one in tool["results"] if one["arguments"] == arguments), str(tool["otherwise"]))

    return handler


def _declaration(tool: Mapping[str, Any]) -> str:
    """As every declaration of the recipe: keys sorted, no further arguments."""
    parameters = {"additionalProperties": False, **tool["parameters"]}
    function = {"description": tool["description"], "name": tool["name"], "parameters": parameters}
    return compact({"function": _sorted(function), "type": "function"})


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(own) for key, own in sorted(value.items())}
    return value


def made(events: Sequence[Stored]) -> list[Made]:
    """The calls of a run but for its answers, in order."""
    returned = {stored.event.index: stored.event.ok for stored in events if isinstance(stored.event, ToolReturned)}
    intents = [stored.event for stored in events if isinstance(stored.event, ToolIntent)]
    return [
        Made(name=one.name, arguments=json.loads(one.arguments) if returned.get(one.index) else None)
        for one in intents
        if one.name != ANSWER
    ]


def numbers(text: str) -> list[tuple[int, Fraction]]:
    """The numbers that stand in a text on their own, with their places; those of ``7,301``, ``70.90`` and ``3/17`` too."""
    found = []
    for one in _NUMBER.finditer(text):
        above, _, below = one[0].replace("−", "-").replace(",", "").partition("/")
        if not below or int(below):
            found.append((one.start(), Fraction(above) / int(below or 1)))
    return found


def place_of(value: str, text: str) -> int | None:
    """Where a number of exactly this value first stands in the text; the words themselves where it is no number."""
    whole = _NUMBER.fullmatch(value)
    if whole is None:
        return place_of_words(value, text, re.IGNORECASE)
    ((_, wanted),) = numbers(value)
    return next((place for place, number in numbers(text) if number == wanted), None)


def place_of_words(words: str, text: str, flags: int = 0) -> int | None:
    """Where the words first stand in the text, as whole words and no part of a longer number or time."""
    sign = "(?<![−-])" if words[0].isdigit() else ""
    found = re.search(rf"(?<!\w)(?<!\d[.,:/]){sign}{re.escape(words)}(?!\w|[.,:/]\d)", text, flags)
    return None if found is None else found.start()


def in_order(items: Sequence[str], text: str) -> bool:
    """Whether the text names all items, each for the first time in this order."""
    places = [place for item in items if (place := place_of(item, text)) is not None]
    return len(places) == len(items) and all(first < second for first, second in pairwise(places))


def in_report(item: str, text: str) -> bool:
    """Whether an item stands in the text: a number by its value, words as they are written or with a capital."""
    if _NUMBER.fullmatch(item):
        return place_of(item, text) is not None
    return any(place_of_words(words, text) is not None for words in {item, item[0].upper() + item[1:]})
