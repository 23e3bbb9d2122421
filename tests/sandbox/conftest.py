"""Benches for the corpus, a sandbox for single tests, and the line that says at the end what was tested."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox.corpus import CASES
from sandbox.remote import NotHere, Remote

from k2core_sandbox.levels import level
from k2core_sandbox.process import Worker
from k2core_sandbox.self_test import places

STRONG_TEST = "test_no_attack_gets_out_of_strong"


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[Remote]:
    """A bench of the wanted set-up, for all attacks of one kind of user; skipped aloud where it cannot be had."""
    setup, ordinary = request.param
    try:
        found = Remote(setup, ordinary=ordinary)
    except NotHere as error:
        pytest.skip(f"no '{setup}' here: {error}")
    yield found
    found.close()


@pytest.fixture(scope="session")
def strong() -> None:
    """Skips where the level ``strong`` is not to be had."""
    if level().name != "strong":
        pytest.skip(f"no 'strong' here: {level().why}")


@pytest.fixture
def workspace(strong: None) -> Iterator[tuple[Path, Path]]:
    """A workspace that the sandbox's user owns, and a staging folder."""
    with places() as found:
        yield found


@pytest.fixture
def worker(workspace: tuple[Path, Path]) -> Iterator[Worker]:
    """A worker at level ``strong``."""
    started = Worker.start(workspace[0], stage=workspace[1])
    yield started
    started.close()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """The last line, below pytest's own: what was shown about the sandbox, or that nothing was."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        summarise(reporter)


def summarise(terminalreporter: pytest.TerminalReporter) -> None:
    """Write how many attacks were made, and the state of the sandbox in the last line."""
    outcomes: dict[str, set[str]] = {}
    reason = "none of its tests ran"
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            name, _, parameters = str(getattr(report, "nodeid", "")).partition("[")
            if name.endswith(STRONG_TEST):
                outcomes.setdefault(outcome, set()).update(key for key in CASES if parameters.startswith(f"{key}-strong"))
                if outcome == "skipped" and isinstance(report.longrepr, tuple):
                    reason = report.longrepr[2].removeprefix("Skipped: ")
    got_through = outcomes.get("failed", set()) | outcomes.get("error", set())
    unproven = sum(bool(case.unproven) for case in CASES.values())
    terminalreporter.ensure_newline()
    terminalreporter.write_line(f"corpus: {len(CASES)} cases, {unproven} of them unproven")
    if got_through:
        terminalreporter.write_line(f"sandbox: NOT HELD, {len(got_through)} of {len(CASES)} cases got through", red=True)
    elif outcomes.get("passed"):
        terminalreporter.write_line(f"sandbox: strong, {len(outcomes['passed'])} cases")
    else:
        terminalreporter.write_line(f"sandbox: NOT TESTED ({reason})", yellow=True)
