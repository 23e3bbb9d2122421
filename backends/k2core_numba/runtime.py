"""Compiling the kernels once, keeping them in a folder of the user's cache, and the one lock around running them.

Numba misses a change in a function that a cached one calls from another file, so the folder's name carries a hash over all kernel
files, Numba's version and the CPU. Parallel regions of several Python threads at once abort the process under some of Numba's
threading layers, so every kernel runs under `LOCK`. No process is ever forked.
"""

import hashlib
import importlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import structlog
from llvmlite import binding
from numba.core import config as numba_config
from numba.core import event
from platformdirs import user_cache_dir

LOCK = threading.RLock()
PORTABLE = "K2CORE_NUMBA_PORTABLE"
PACKAGE = "k2core_kernels.numba"
log = structlog.get_logger()


def portable() -> bool:
    """Whether K2CORE_NUMBA_PORTABLE=1 asks for code that runs on any CPU of this architecture."""
    return os.environ.get(PORTABLE, "") not in ("", "0")


def cache_folder() -> Path:
    """Where compiled kernels are kept; a change of any kernel file, of Numba or of the CPU gives another folder."""
    spec = importlib.util.find_spec("k2core_kernels")
    assert spec is not None and spec.submodule_search_locations  # installed with this package
    digest = hashlib.sha256()
    for file in sorted(Path(spec.submodule_search_locations[0], "numba").glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    digest.update(f"{numba.__version__} {binding.get_host_cpu_name()} {portable()} ".encode())
    digest.update(binding.get_host_cpu_features().flatten().encode())
    return Path(user_cache_dir("k2core", appauthor=False), f"numba-{digest.hexdigest()[:16]}")


def kernels() -> ModuleType:
    """The module `k2core_kernels.numba.forward`, its functions cached in `cache_folder`."""
    with LOCK:
        if f"{PACKAGE}.forward" not in sys_modules():
            _prepare()
            with _caching_in(_writable(cache_folder())):
                importlib.import_module(f"{PACKAGE}.forward")
        return importlib.import_module(f"{PACKAGE}.forward")


def sys_modules() -> dict[str, ModuleType]:
    """The interpreter's loaded modules."""
    import sys

    return sys.modules


def _prepare() -> None:
    if portable():
        numba_config.CPU_NAME, numba_config.CPU_FEATURES = "generic", ""
    if "NUMBA_THREADING_LAYER" not in os.environ:
        numba_config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.warning("kernels.cache.unwritable", folder=str(folder), reason=error.strerror, then="compiled again by every process")
        return Path(tempfile.mkdtemp(prefix="k2core-numba-"))


@contextmanager
def _caching_in(folder: Path) -> Iterator[None]:
    """Functions decorated meanwhile are cached in *folder*; other users of Numba keep their setting."""
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba_config.CACHE_DIR = before


class _Counter(event.Listener):  # type: ignore[misc]  # numba has no type information
    def __init__(self, progress: Callable[[str, int, int], None], total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def on_start(self, event: Any) -> None:
        """Called before a kernel is compiled."""

    def on_end(self, event: Any) -> None:
        """Called when a kernel was compiled."""
        self.done = min(self.done + 1, self.total)
        self.progress("compiling kernels (once)", self.done, self.total)


def compile_kernels(progress: Callable[[str, int, int], None] | None = None) -> None:
    """Make every entry point ready to be called: from the cache, else compiled into it.

    Args:
        progress: called with ("compiling kernels (once)", done, total) after each compiled function.
    """
    with LOCK:
        forward = kernels()
        arguments = _entry_arguments(forward)
        if progress is None:
            for name, values in arguments.items():
                getattr(forward, name).compile(tuple(numba.typeof(value) for value in values))
            return
        with event.install_listener("numba:compile", _Counter(progress, _count_functions())):
            for name, values in arguments.items():
                getattr(forward, name).compile(tuple(numba.typeof(value) for value in values))


def _count_functions() -> int:
    modules = [module for name, module in sys_modules().items() if name.startswith(f"{PACKAGE}.")]
    found = {id(value) for module in modules for value in vars(module).values() if hasattr(value, "py_func")}
    return len(found)


def _entry_arguments(forward: ModuleType) -> dict[str, tuple[Any, ...]]:
    """For each compiled entry point, values of the types that `NumbaModel` calls it with."""
    floats, ints, longs = np.zeros(1, np.float32), np.zeros(1, np.int32), np.zeros(1, np.int64)
    sizes = forward.Sizes(*[1] * len(forward.Sizes._fields))
    constants = forward.Constants(*[np.float32(1)] * 4, True)
    work = forward.Workspace(*[floats] * (len(forward.Workspace._fields) - 1), ints)
    chunk = forward.Chunk(ints, ints, longs, longs, 1, longs)
    table = np.zeros((1, 1), np.int64)
    return {
        "forward": (sizes, constants, table, chunk, floats, floats, work, ints, floats, floats, floats, True, 1),
        "route": (sizes, constants, longs, floats, 1, work, ints, floats, 0, 1),
        "experts": (sizes, longs, floats, 1, work, ints, floats, 0, 1),
        "mlp": (sizes, longs, 1, floats, 1, work, 1),
    }
