"""Hypothesis profiles, the folder of public test data, and the choice between the `ci` and the `soak` sizes."""

import os
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
