"""Small functions in the workspace: write one and run its tests, or find the bug that a failing test shows.

The generator knows every body that it offers, right or wrong, and says what pytest would say of it (`tests/nano` compares with
the real one); evaluation gives the model the real tools.
"""

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from attrs import frozen

from k2core_nano.train import phrasing
from k2core_nano.train.functions import FUNCTIONS, Function
from k2core_nano.train.oracle import Policy, Step, Stopped, final, persist, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.task_wordings import FILES, REPAIR, WRITE
from k2core_nano.train.world import Handler

FAMILIES = ("write", "repair")
TOOLS = ("list_files", "python", "read_file", "run_tests", "write_file")
ATTEMPTS = 3


@frozen(kw_only=True)
class Task:
    """A function in a file, and the file of its tests."""

    function: Function
    does: str
    file: str

    @property
    def test(self) -> str:
        """The file of the tests."""
        return f"test_{self.file}"

    def source(self, body: str) -> str:
        """The file with one body of the function."""
        head = f"def {self.function.name}({self.function.params}):"
        return f'{head}\n    """{self.does[0].upper()}{self.does[1:]}."""\n    return {body}\n'

    @property
    def tests(self) -> str:
        """The file of the tests."""
        cases = (
            f"\n\ndef test_{place}():\n    assert {self.function.name}({given}) == {wanted}\n"
            for place, (given, wanted) in enumerate(self.function.tests, 1)
        )
        return f"from {self.file.removesuffix('.py')} import {self.function.name}\n" + "".join(cases)


@cache
def frames(family: str) -> tuple[str, ...]:
    """The family's frames."""
    return phrasing.with_macros(WRITE if family == "write" else REPAIR, {})


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """A function to write or to repair; levels as of `phrasing.phrase`, where 2 also says otherwise what it does."""
    held_out = level is not None
    function = rng.choice(FUNCTIONS)
    does = rng.choice(function.unseen if level == 2 else function.does)
    task = Task(function=function, does=does, file=rng.choice(FILES))
    template, _ = phrasing.phrase(rng, f"{family} {function.name}", frames(family), level)
    text = template.format_map(
        {"name": function.name, "params": function.params, "does": does, "file": task.file, "test": task.test}
    )
    bug = rng.choice(function.bugs)
    files = {task.test: task.tests}
    if family == "repair":
        files[task.file] = task.source(bug)
    slips = rng.random() < 0.3  # the first attempt is a wrong one, which is not learnt
    return Question(
        family=family,
        level=level,
        text=text,
        needed=("run_tests", "write_file") if family == "write" else ("read_file", "run_tests", "write_file"),
        faults=tuple(rng.choice(("timeout", "busy")) if rng.random() < 0.05 else "" for _ in range(8)),
        expected=(f"{len(function.tests)} passed",),
        files=files,
        handlers=lambda: handlers(task, dict(files)),
        policy=_write(task, bug if slips and not held_out else "") if family == "write" else _repair(task),
    )


Run = Callable[[Mapping[str, str], str], str]  # files and a path: what the real run_tests says
_run: Run | None = None


def run_unknown_with(run: Run | None) -> None:
    """Have other bodies than the generator's run by *run*: a model under evaluation may write anything."""
    global _run
    _run = run


def handlers(task: Task | None, files: dict[str, str]) -> Mapping[str, Handler]:
    """The workspace's tools over files in memory. Only bodies that the generator wrote, for *task*, are evaluated here."""

    def write_file(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        path, content = str(arguments["path"]).removeprefix("./"), str(arguments["content"])
        if path.startswith("/") or ".." in path.split("/"):
            return f"error: cannot write '{path}': give a path within the workspace"
        files[path] = content
        return f"wrote {path} ({len(content.encode())} bytes)"

    def read_file(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        path = str(arguments["path"])
        return files[path].rstrip("\n") if path in files else f"error: no file '{path}'"

    def run_tests(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        if task is not None and arguments.get("path") == task.test and files.get(task.test) == task.tests:
            for body in (task.function.body, *task.function.bugs):
                if files.get(task.file) == task.source(body):
                    return outcome(task.function.name, task.test, body)
        if _run is None:
            return "error: these tests cannot be run here"
        return _run(files, str(arguments.get("path", ".")))

    def list_files(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        return "\n".join(f"{path} {len(content.encode())} bytes" for path, content in sorted(files.items()))

    return {"write_file": write_file, "read_file": read_file, "run_tests": run_tests, "list_files": list_files}


@cache
def outcome(name: str, test: str, body: str) -> str:
    """What run_tests says of a known function with this body."""
    function = next(one for one in FUNCTIONS if one.name == name)
    bad: list[str] = []
    for place, (given, wanted) in enumerate(function.tests, 1):
        message = complaint(function, body, given, wanted)
        if message:
            bad.append(f"failed {test}::test_{place}: {message}")
    passed = len(function.tests) - len(bad)
    counts = [f"{count} {word}" for count, word in ((passed, "passed"), (len(bad), "failed")) if count]
    return "\n".join([", ".join(counts), *bad])


def complaint(function: Function, body: str, given: str, wanted: str) -> str:
    """pytest's words for one test, white space as one blank; empty where it passes."""
    try:
        got = eval(f"(lambda {function.params}: {body})({given})", {})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    want = eval(wanted, {})
    if got == want:
        return ""
    return " ".join(_explained(function.name, given, got, want).split())


def _explained(name: str, given: str, got: Any, want: Any) -> str:
    """How pytest explains ``assert name(given) == want``."""
    head = f"assert {got!r} == {want!r}"
    if isinstance(got, str) and isinstance(want, str):
        return f"AssertionError: {head} - {want} + {got}"
    if type(got) is type(want) and isinstance(got, list):
        for place, (left, right) in enumerate(zip(got, want, strict=False)):
            if left != right:
                return f"{head} At index {place} diff: {left!r} != {right!r} Use -v to get more diff"
        side, longer = ("Left", got) if len(got) > len(want) else ("Right", want)
        more, first = abs(len(got) - len(want)), longer[min(len(got), len(want))]
        items = f"one more item: {first!r}" if more == 1 else f"{more} more items, first extra item: {first!r}"
        return f"{head} {side} contains {items} Use -v to get more diff"
    prefix = "AssertionError: " if isinstance(want, str) or isinstance(got, (str, list)) else ""
    return f"{prefix}{head} + where {got!r} = {name}({given})"


def _write(task: Task, slip: str) -> Callable[[], Policy]:
    def policy() -> Policy:
        body = slip or task.function.body
        think = f"Plan write {task.function.name}: {task.does}: {body}."
        return (yield from _tried(task, think, body, weight=0 if slip else 4))

    return policy


def _repair(task: Task) -> Callable[[], Policy]:
    def policy() -> Policy:
        seen = yield from persist(
            Step(f"Plan repair {task.file}. Run the tests.", "run_tests", {"path": task.test}, 4), "run the tests"
        )
        if isinstance(seen, Stopped):
            return stop(seen)
        first = seen.text.partition("\n")[2].partition(": ")[2].partition("\n")[0]
        read = yield from persist(
            Step(f"Failed: {first}. Read {task.file}.", "read_file", {"path": task.file}), f"read {task.file}"
        )
        if isinstance(read, Stopped):
            return stop(read)
        wrong = read.text.rpartition("return ")[2]
        body = task.function.body
        return (yield from _tried(task, f"It should: {task.does}. Has {wrong}, wrong. Use {body}.", body, weight=3))

    return policy


def _tried(task: Task, think: str, body: str, *, weight: int) -> Policy:
    for attempt in range(1, ATTEMPTS + 1):
        step = Step(think, "write_file", {"content": task.source(body), "path": task.file}, weight)
        wrote = yield from persist(step, f"write {task.file}")
        if isinstance(wrote, Stopped):
            return stop(wrote)
        ran = yield from persist(Step("Wrote it. Run the tests.", "run_tests", {"path": task.test}), "run the tests")
        if isinstance(ran, Stopped):
            return stop(ran)
        counts = ran.text.partition("\n")[0]
        if "failed" not in counts and "error" not in counts:
            text = f"{task.function.name} is in {task.file}: {counts}."
            return final(f"Got {counts}, none failed. Right.", text, [((ran.index,), counts)])
        first = ran.text.partition("\n")[2].partition(": ")[2].partition("\n")[0]
        think, weight = f"Failed {attempt}: {first}. Has {body}, wrong. Use {task.function.body}.", 3
        body = task.function.body
    return stop(Stopped("Failed again. Stop.", "I could not make the tests pass."))
