"""pytest inside a sandbox of its own, and its outcome as data."""

import tempfile
from pathlib import Path
from typing import Literal, get_args

import msgspec

from k2core.errors import ToolError
from k2core.interfaces import ToolOutput
from k2core_sandbox.interpreters import Settings, readable
from k2core_sandbox.paths import FOR_TESTS, packages
from k2core_sandbox.process import Worker
from k2core_sandbox.watchdog import Watchdog

SHOWN = 20  # failures in one result
# runs inside; PATHS is set before. Its last line is the report, which the host takes for a claim of the inside and no more
PROGRAM = """
import contextlib, io, json, pytest, sys

class Collector:
    def __init__(self):
        self.tests = []
    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.add(report)
    def pytest_collectreport(self, report):
        if report.failed:
            self.add(report, "error")
    def add(self, report, outcome=None):
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else str(report.longrepr or "")
        outcome = outcome or ("error" if report.failed and report.when != "call" else report.outcome)
        self.tests.append({"name": report.nodeid, "outcome": outcome, "message": message[:600] if outcome != "passed" else ""})

collector = Collector()
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
    options = ["-q", "-p", "no:cacheprovider"]
    if sys.platform == "wasi":  # it has no second descriptors of a file and no /dev/null
        options += ["-p", "no:faulthandler", "-p", "no:logging", "--capture=sys"]
    status = int(pytest.main([*options, *PATHS], plugins=[collector]))
counts = {}
for test in collector.tests:
    counts[test["outcome"]] = counts.get(test["outcome"], 0) + 1
bad = [test for test in collector.tests if test["outcome"] in ("failed", "error")][:100]
print(json.dumps({"status": status, "counts": counts, "bad": bad, "said": said.getvalue()[-2000:] if status > 1 else ""}))
"""


Outcome = Literal["passed", "failed", "skipped", "error"]


class Test(msgspec.Struct, forbid_unknown_fields=True):
    """One test, or one file that could not be collected."""

    __test__ = False  # not a test of ours

    name: str
    outcome: Outcome
    message: str


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """What pytest says: its exit status, how many tests had which outcome, what failed, and its words where it did not."""

    status: int
    counts: dict[Outcome, int]
    bad: list[Test]
    said: str


def run_pytest(settings: Settings, paths: list[str], timeout_s: float) -> ToolOutput:
    """Run the tests of *paths* within the workspace.

    Raises:
        ToolError: pytest did not run, or its report is none.
    """
    with tempfile.TemporaryDirectory(prefix="k2core-stage-") as stage:
        Path(stage).chmod(0o711)
        worker = Worker.start(settings.workspace, stage=Path(stage), kind=settings.kind, offered=packages(FOR_TESTS))
        try:
            with Watchdog(worker, settings.workspace, settings.bounds):
                cell = worker.run(f"PATHS = {paths!r}\n{PROGRAM}", timeout_s=timeout_s)
        finally:
            worker.close()
    if cell.status != "ok":
        raise ToolError(f"the tests did not run to their end: {(cell.error or cell.status).splitlines()[-1]}")
    try:
        report = msgspec.json.decode(cell.output.rstrip().rpartition("\n")[2], type=Report)
    except msgspec.MsgspecError as error:
        raise ToolError(f"the tests ran, but their report cannot be read: {error}") from error
    return _told(report)


def _told(report: Report) -> ToolOutput:
    counts = {outcome: report.counts.get(outcome, 0) for outcome in get_args(Outcome)}
    line = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or (
        "no tests were found" if report.status == 5 else "no tests ran"
    )
    lines = [line, *(f"{one.outcome} {one.name}: {' '.join(one.message.split())}" for one in report.bad[:SHOWN])]
    more = counts["failed"] + counts["error"] - len(lines) + 1
    if more > 0:
        lines.append(f"and {more} more")
    if report.status not in (0, 1, 5):
        lines.append(report.said.strip() or f"pytest ended with status {report.status}")
    return ToolOutput(text=readable("\n".join(lines)), details={"counts": counts, "status": report.status})
