"""The lines at the end of a test run: how many attacks were made, and the state of the sandbox."""

import pytest
from sandbox.corpus import CASES

STRONG_TEST = "test_no_attack_gets_out_of_strong"


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
