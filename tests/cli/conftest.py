"""A plugin written into a folder, found through its own entry points, and ``k2`` as a process that has it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import structlog
from cli.processes import COMMAND, ENTRY_POINTS, K2, PLUGIN, ROOMS, Finished
from click.testing import CliRunner

from k2core.cli import main


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed distribution: one plugin that works, one that does not, three commands."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "k2_scripted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: k2-scripted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "k2_scripted.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "k2_shattered.py").write_text("raise OSError('libshattered.so not found')\n")
    (folder / "k2_scripted_command.py").write_text(COMMAND)
    return folder


@pytest.fixture
def environment(site: Path, tmp_path: Path) -> dict[str, str]:
    """An environment with the plugin, an empty home and no settings of the caller."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("K2CORE_", "XDG_", "COVERAGE"))}
    path = os.pathsep.join(map(str, [site, *ROOMS]))
    home = tmp_path / "home"
    ours = {
        "PYTHONPATH": path,
        "HOME": str(home),
        "K2CORE_STORE": str(tmp_path / "runs.sqlite"),
        "K2CORE_DISABLE": "nano,numba,tools,verifiers",
    }
    return {**kept, **ours}


@pytest.fixture
def process(environment: Mapping[str, str], tmp_path: Path) -> K2:
    """Run ``k2`` as a process of its own: ``process("run", "-m", "product", "…")``."""

    def run(*arguments: str, stdin: str | bytes = b"", env: Mapping[str, str] | None = None) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "k2core.cli", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            env={**environment, **(env or {})},
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
        return Finished(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    return run


@pytest.fixture
def k2(environment: Mapping[str, str], site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[K2]:
    """Run ``k2`` within this process; arguments and result as of `process`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    ours = {name: value for name, value in environment.items() if name == "HOME" or name.startswith("K2CORE_")}
    foreign = {name: None for name in os.environ if name.startswith(("K2CORE_", "XDG_"))}

    def run(*arguments: str, stdin: str | bytes = b"", env: Mapping[str, str] | None = None) -> Finished:
        done = CliRunner().invoke(main, arguments, input=stdin, env={**foreign, **ours, **(env or {})}, prog_name="k2")
        return Finished(code=done.exit_code, out=done.stdout, err=done.stderr)

    yield run
    structlog.reset_defaults()  # the stream it was configured with is gone
