"""Compiling the kernels once, keeping them in a folder of the user's cache, and the one lock around running them.

Numba misses a change in a function that a cached one calls from another file, so the folder's name carries a hash over all
kernel files, Python's and Numba's versions and the CPU. Parallel regions of several Python threads at once abort the process
under some of Numba's threading layers, so every kernel runs under `LOCK`; what helpers do (`k2core_numba.crew`) is part of the
call that its holder waits for, and enters no parallel region. No process is ever forked.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import structlog
from llvmlite import binding
from numba.core import config
from platformdirs import user_cache_dir

LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # who forks this process must not inherit a lock that a thread left behind holds
    os.register_at_fork(after_in_child=LOCK._at_fork_reinit)  # type: ignore[attr-defined]  # as the standard library does
numba_config: Any = config  # its settings are made at run time
PORTABLE = "K2CORE_NUMBA_PORTABLE"
PACKAGE = "k2core_kernels.numba"
ENTRY_POINTS = ("forward", "resume", "serve", "wake", "route", "experts", "shared_expert")
COMPLETE = "complete"  # a file in the cache folder: every kernel was compiled
_folders: list[Path] = []  # the cache folder of this process, once kernels were imported
log = structlog.get_logger()


def portable() -> bool:
    """Whether K2CORE_NUMBA_PORTABLE=1 asks for code that runs on any CPU of this architecture."""
    return os.environ.get(PORTABLE, "") not in ("", "0")


def cache_folder() -> Path:
    """Where compiled kernels are kept; another Python, Numba or CPU, and kernel files at another place, of another content or
    written at another time have another folder."""
    spec = importlib.util.find_spec("k2core_kernels")
    assert spec is not None and spec.submodule_search_locations  # installed with this package
    # Numba files its cache by Python's version and by path and time of the source too: a folder that is complete for one
    # installation must not be taken for complete by another, which would compile without saying so
    place = Path(spec.submodule_search_locations[0], "numba").resolve()
    digest = hashlib.sha256(f"{place}\0".encode())
    for file in sorted(place.glob("*.py")):
        digest.update(f"{file.name}\0{file.stat().st_mtime_ns}\0".encode() + file.read_bytes() + b"\0")
    digest.update(f"{sys.implementation.cache_tag} {numba.__version__} {binding.get_host_cpu_name()} {portable()} ".encode())
    digest.update(binding.get_host_cpu_features().flatten().encode())
    return Path(user_cache_dir("k2core", appauthor=False), f"numba-{digest.hexdigest()[:16]}")


def kernels(name: str = "forward") -> ModuleType:
    """The module *name* of `k2core_kernels.numba`, its functions cached in `cache_folder`."""
    with LOCK:
        if f"{PACKAGE}.forward" not in sys.modules:
            _prepare()
            _folders[:] = [_writable(cache_folder())]
            with _caching_in(_folders[0]):
                importlib.import_module(f"{PACKAGE}.forward")
        return importlib.import_module(f"{PACKAGE}.{name}")


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
        log.warning(
            "kernels.cache.unwritable", folder=str(folder), reason=error.strerror, then="compiled again by every process"
        )
        return Path(tempfile.mkdtemp(prefix="k2core-numba-"))


@contextmanager
def _waiting_passively() -> Iterator[None]:
    """OpenMP, if it is loaded meanwhile, lets waiting threads sleep.

    Its default is to spin, which takes the cores from the threads that are waited for when anything else runs on the machine
    (a 1,000-token prefill of the embedded model on 2 busy cores: 700 to 900 tokens/s spinning, 3,000 to 3,700 sleeping).
    """
    if "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


@contextmanager
def _caching_in(folder: Path) -> Iterator[None]:
    """Functions decorated meanwhile are cached in *folder*; other users of Numba keep their setting."""
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba_config.CACHE_DIR = before


def compile_kernels(progress: Callable[[str, int, int], None] | None = None) -> None:
    """Make every entry point ready to be called: from the cache, else compiled into it.

    Args:
        progress: called with ("compiling kernels (once)", done, total) after each compiled kernel; not at all when the cache
            has everything.
    """
    with LOCK:
        forward = kernels()
        # loads the threading layer: a cached caller of a parallel kernel refers to its symbols but does not load it
        # (numba 0.68: "Symbol not found: allocate_sched" aborts the process)
        with _waiting_passively():
            numba.get_num_threads()
        registered = importlib.import_module(f"{PACKAGE}.options").KERNELS
        entries = {id(getattr(forward, name)) for name in ENTRY_POINTS}
        marker = _folders[0] / COMPLETE if _folders else None  # none where others imported the kernels before
        complete = marker is not None and marker.exists()
        for done, (dispatcher, signature) in enumerate(registered, 1):
            # a cached entry point holds the code of all it calls, so the others need not even be read
            if not dispatcher.overloads and (not complete or id(dispatcher) in entries):
                dispatcher.compile(signature)
                dispatcher.disable_compile()
                if progress is not None and not complete:
                    progress("compiling kernels (once)", done, len(registered))
        if marker is not None and not complete:
            marker.touch()


def use_threads(threads: int) -> int:
    """Let the calling Python thread's parallel regions use this many threads, or as many as Numba has; returns which."""
    usable = min(threads, int(numba_config.NUMBA_NUM_THREADS))
    if usable > 1:
        numba.set_num_threads(usable)
    return usable
