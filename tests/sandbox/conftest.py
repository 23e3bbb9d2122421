"""Benches for the corpus, and a sandbox for single tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox.remote import NotHere, Remote

from k2core_sandbox.levels import level
from k2core_sandbox.process import Worker
from k2core_sandbox.self_test import places


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
