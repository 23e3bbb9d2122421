"""Hypothesis profiles, the folder of public test data, the choice between `ci` and `soak` sizes, and a run's last lines."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=SLOW, derandomize=True)
settings.register_profile("soak", max_examples=2000, deadline=None, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``-m``, the long sizes are left out, counted with their reason."""
    if config.option.markexpr:
        return
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="soak size: run with pytest -m soak"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of public data files (the family's real vocabulary and configuration)."""
    folder = Path(os.environ.get("K2CORE_TEST_ASSETS") or Path(__file__).parents[2] / "shared" / "assets")
    if not (folder / "kimi").is_dir():
        pytest.skip(f"no public data files at {folder}: set K2CORE_TEST_ASSETS")
    return folder


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """The last lines, below pytest's own: what was shown about the sandbox, or that nothing was."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = [one for found in reporter.stats.values() for one in found] if reporter is not None else []
    if any("sandbox/test_" in str(getattr(one, "nodeid", "")) for one in reports):  # not in workers, and where any of it ran
        from sandbox.summary import summarise

        summarise(reporter)
