"""What pytest has to know where the suite is run from elsewhere: the long sizes run only when they are asked for."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark of the long sizes known."""
    config.addinivalue_line("markers", "soak: long sizes, run with -m soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``-m``, the long sizes are left out, counted with their reason."""
    for item in items if not config.option.markexpr else []:
        if "soak" in item.keywords and not any(one.name == "skip" for one in item.iter_markers()):
            item.add_marker(pytest.mark.skip(reason="soak size: run with pytest -m soak"))
