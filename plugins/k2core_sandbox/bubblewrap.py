"""The command line that starts a program inside bubblewrap, as level ``strong`` has it.

The launch has an empty environment (the inside can read its launcher's), passes on only the descriptors it names, and never
runs bubblewrap as the real root (`launcher`).
"""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from k2core_sandbox import seccomp
from k2core_sandbox.launcher import SYSTEM, Reach
from k2core_sandbox.paths import Interpreter, interpreter
from k2core_sandbox.plans import Ends, Inside, Plan
from k2core_sandbox.program import program

POLICY = seccomp.Policy(local_sockets=True, modes=True)
INSIDE = 65_534  # uid and gid inside
FONTS = b'<?xml version="1.0"?><fontconfig><dir>/usr/share/fonts</dir></fontconfig>'  # there is no /etc inside
ENVIRONMENT = {
    "FONTCONFIG_FILE": "/fonts.conf", "HOME": "/workspace", "LANG": "C.UTF-8", "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp",
    "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp",
}  # fmt: skip
DEVICES = ("null", "zero", "urandom")
LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "random": "urandom",
}  # fmt: skip
ROOT, TEMPORARY, SHARED = str(64 << 20), str(64 << 20), str(32 << 20)  # bytes of the file systems in memory


def installed(name: str) -> str | None:
    """The path of a system program, or None."""
    return shutil.which(name, path=SYSTEM)


def plan(inside: Inside, ends: Ends) -> Plan:
    """How level ``strong`` starts its worker."""
    name, content = program(inside.python)
    build = partial(
        command,
        interpreter=inside.python or interpreter(),
        packages=inside.packages,
        workspace=inside.workspace,
        worker=ends.file("worker", content),
        named=name,
        fonts=ends.file("fonts", FONTS),
        filter=ends.file("filter", seccomp.program(POLICY)),
        info=ends.info,
        arguments=(str(ends.requests), str(ends.replies), "/packages", "/workspace", "64"),
    )
    return Plan(build=lambda reach: build(reach=reach), change_user=True, tells=True, in_memory=("tmp", "dev/shm"))


def command(
    *,
    interpreter: Interpreter,
    packages: Mapping[str, Path],
    workspace: Path,
    worker: int,
    named: str,
    fonts: int,
    filter: int,
    info: int,
    arguments: Sequence[str],
    reach: Reach,
) -> list[str]:
    """The whole command, to be run with an empty environment and the descriptors *worker*, *fonts*, *filter* and *info*
    passed on.

    Args:
        interpreter: runs the worker.
        packages: name inside /packages and path outside.
        workspace: the one folder that can be written.
        worker: descriptor of the worker's program.
        named: its path inside.
        fonts: descriptor of `FONTS`.
        filter: descriptor of the seccomp program, read from its begin.
        info: descriptor to which bubblewrap writes the first process's number as JSON.
        arguments: of the worker.
        reach: gives a path outside as the user who runs the command can reach it.
    """
    inside = [
        installed("bwrap") or "bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--disable-userns", "--assert-userns-disabled", "--uid", str(INSIDE), "--gid", str(INSIDE),
        "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
    ]  # fmt: skip
    for name, value in ENVIRONMENT.items():
        inside += ["--setenv", name, value]
    inside += ["--size", ROOT, "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib32", "lib64", "sbin"):
        folder = Path("/", name)
        if folder.is_symlink():
            inside += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            inside += ["--ro-bind", str(folder), str(folder)]
    inside += ["--proc", "/proc", "--dir", "/dev", "--size", SHARED, "--tmpfs", "/dev/shm"]
    for name in DEVICES:
        inside += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, place in LINKS.items():
        inside += ["--symlink", place, f"/dev/{name}"]
    inside += ["--size", TEMPORARY, "--tmpfs", "/tmp", "--dir", "/packages"]
    if not interpreter.prefix.is_relative_to("/usr"):  # after /tmp, for it may lie there
        inside += ["--ro-bind", reach(interpreter.prefix), str(interpreter.prefix)]
    for name, path in packages.items():
        inside += ["--ro-bind", reach(path), f"/packages/{name}"]
    inside += ["--bind", reach(workspace), "/workspace", "--ro-bind-data", str(worker), named]
    inside += ["--ro-bind-data", str(fonts), "/fonts.conf"]
    inside += ["--remount-ro", "/", "--chdir", "/workspace", "--seccomp", str(filter), "--info-fd", str(info), "--"]
    inside += [str(interpreter.executable), "-I", "-S", "-B", named, *arguments]
    return inside
