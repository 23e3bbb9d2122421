"""Interpreters from the system, from pyenv and from uv run inside, and bring nothing along that lies beside them."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from sandbox.remote import PLACES

from k2core_sandbox.paths import Interpreter, interpreter
from k2core_sandbox.process import Worker

HOME = Path.home()
LOOK = "import sys, ssl, sqlite3, ctypes, json, os; json.dumps([sys.prefix, sorted(os.listdir(os.path.dirname(sys.prefix)))])"
START = """
import json
from k2core_sandbox.paths import interpreter
from k2core_sandbox.process import Worker
from k2core_sandbox.self_test import places
with places() as (workspace, stage):
    worker = Worker.start(workspace, stage=stage, offered={})
    try:
        print(json.dumps([str(interpreter().prefix), worker.run("import sys; sys.prefix", timeout_s=20).value]))
    finally:
        worker.close()
"""


def found() -> dict[str, Path]:
    """Executables by a name for the test."""
    executables = {"system": Path("/usr/bin/python3")}
    for folder in sorted(HOME.glob(".pyenv/versions/3.1[1-9]*")):
        executables[f"pyenv-{folder.name}"] = folder / "bin" / "python3"
    for folder in sorted(HOME.glob(".local/share/uv/python/cpython-3.1[1-9]*")):
        executables[f"uv-{folder.name}"] = folder / "bin" / "python3"
    return {name: path for name, path in executables.items() if path.exists()}


def copy_standalone(python: Interpreter, place: Path) -> None:
    """Copy the executable and its library, which it then finds relative to itself, as those of uv do."""
    content, library, relative = python.executable.read_bytes(), bytes(python.prefix / "lib"), b"$ORIGIN/../lib"
    assert len(relative) <= len(library)
    copy = place / "bin" / python.executable.name
    copy.write_bytes(content.replace(library + b"\0", relative.ljust(len(library) + 1, b"\0")))
    copy.chmod(0o755)
    (place / "lib").mkdir()
    for shared in (python.prefix / "lib").glob("libpython*"):
        shutil.copy(shared, place / "lib" / shared.name)


@pytest.mark.parametrize("executable", [pytest.param(path, id=name) for name, path in found().items()])
def test_an_interpreter_starts_and_brings_nothing_beside_it(workspace: tuple[Path, Path], executable: Path) -> None:
    """Its standard library works inside at its own path, and of the folder above only the way to it is there."""
    said = subprocess.run([executable, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True)
    prefix = Path(os.path.realpath(said.stdout.strip()))
    python = Interpreter(executable=Path(os.path.realpath(executable)), prefix=prefix)
    worker = Worker.start(workspace[0], stage=workspace[1], python=python, offered={})
    try:
        cell = worker.run(LOOK, timeout_s=20)
    finally:
        worker.close()
    assert cell.status == "ok", cell.error
    if not prefix.is_relative_to("/usr"):  # all of /usr is inside
        assert cell.value == f'\'["{prefix}", ["{prefix.name}"]]\''


def test_an_environment_over_a_standalone_interpreter_starts(strong: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As uv lays it out: a whole interpreter in a folder of its own behind a link, a virtual environment that links to it."""
    ours = interpreter()
    folder = tmp_path_factory.mktemp("share") / "uv" / "python"
    version = f"cpython-{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}-linux-x86_64-gnu"
    library = Path(sysconfig.get_path("stdlib")).relative_to(sys.base_prefix)
    if ours.prefix == Path("/usr"):
        pytest.skip("the interpreter under test is the system's, which cannot be copied alone")
    (folder / version / "bin").mkdir(parents=True)
    copy_standalone(ours, folder / version)
    left_out = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "__pycache__", "config-*")
    shutil.copytree(ours.prefix / library, folder / version / library, ignore=left_out)
    link = folder / version.replace(f".{sys.version_info[2]}-", "-")
    link.symlink_to(version)
    environment = folder.parent.parent / "environment"
    subprocess.run([link / "bin" / ours.executable.name, "-m", "venv", "--without-pip", environment], check=True, env={})
    told = subprocess.run(
        [environment / "bin" / "python", "-c", START], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": os.pathsep.join(map(str, PLACES)), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == f'["{folder / version}", "\'{folder / version}\'"]'
