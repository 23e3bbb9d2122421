"""The command line that starts a program inside bubblewrap, as level ``strong`` has it.

The launch has an empty environment (the inside can read its launcher's), passes on only the descriptors it names, and never
runs bubblewrap as the real root. Where root starts it, the user is changed first, and what that user could not reach (an
interpreter under /root, say) is bound to a staging folder in a mount namespace of its own before.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from k2core_sandbox.paths import Interpreter

USER = 64_923  # uid and gid outside, where root starts the sandbox
INSIDE = 65_534  # uid and gid inside
FONTS = b'<?xml version="1.0"?><fontconfig><dir>/usr/share/fonts</dir></fontconfig>'  # there is no /etc inside
SEARCH = "/usr/bin:/bin:/usr/sbin:/sbin"  # system folders only: never a program from the workspace
ENVIRONMENT = {
    "FONTCONFIG_FILE": "/fonts.conf", "HOME": "/workspace", "LANG": "C.UTF-8", "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp",
    "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp",
}  # fmt: skip
# argument 1: the staging folder; then folders to bind into it, "--" and the command
STAGE = """
set -e
stage=$1; shift; number=0
mount -t tmpfs -o mode=0711,size=64k,nosuid,nodev k2core-stage "$stage"
while [ "$1" != -- ]; do
  mkdir "$stage/$number"; mount --bind "$1" "$stage/$number"; number=$((number+1)); shift
done
shift
exec "$@"
"""


@frozen(kw_only=True)
class Sizes:
    """Bytes of the file systems in memory."""

    root: int = 64 << 20
    temporary: int = 64 << 20
    shared: int = 32 << 20


def program(name: str) -> str | None:
    """The path of a system program, or None."""
    return shutil.which(name, path=SEARCH)


def command(
    *,
    interpreter: Interpreter,
    packages: Mapping[str, Path],
    workspace: Path,
    worker: int,
    fonts: int,
    filter: int,
    info: int,
    arguments: Sequence[str],
    stage: Path,
    sizes: Sizes | None = None,
) -> list[str]:
    """The whole command, to be run with an empty environment and the descriptors *worker*, *fonts*, *filter* and *info*
    passed on.

    Args:
        interpreter: runs the worker.
        packages: name inside /packages and path outside.
        workspace: the one folder that can be written.
        worker: descriptor of the worker's source.
        fonts: descriptor of `FONTS`.
        filter: descriptor of the seccomp program, read from its begin.
        info: descriptor to which bubblewrap writes the first process's number as JSON.
        arguments: of the worker.
        stage: an empty folder that everyone may enter, used where root starts the sandbox.
        sizes: of what is in memory.
    """
    sizes = sizes or Sizes()
    staged = Staged(stage)
    inside = [
        program("bwrap") or "bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--disable-userns", "--assert-userns-disabled", "--uid", str(INSIDE), "--gid", str(INSIDE),
        "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
    ]  # fmt: skip
    for name, value in ENVIRONMENT.items():
        inside += ["--setenv", name, value]
    inside += ["--size", str(sizes.root), "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib32", "lib64", "sbin"):
        folder = Path("/", name)
        if folder.is_symlink():
            inside += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            inside += ["--ro-bind", str(folder), str(folder)]
    if not interpreter.prefix.is_relative_to("/usr"):
        inside += ["--ro-bind", staged.path(interpreter.prefix), str(interpreter.prefix)]
    inside += ["--proc", "/proc", "--dev", "/dev", "--size", str(sizes.shared), "--tmpfs", "/dev/shm"]
    inside += ["--size", str(sizes.temporary), "--tmpfs", "/tmp", "--dir", "/packages"]
    for name, path in packages.items():
        inside += ["--ro-bind", staged.path(path), f"/packages/{name}"]
    inside += ["--bind", staged.path(workspace), "/workspace", "--ro-bind-data", str(worker), "/worker.py"]
    inside += ["--ro-bind-data", str(fonts), "/fonts.conf"]
    inside += ["--remount-ro", "/", "--chdir", "/workspace", "--seccomp", str(filter), "--info-fd", str(info), "--"]
    inside += [str(interpreter.executable), "-I", "-S", "-B", "/worker.py", *arguments]
    if os.geteuid():
        return inside
    change = [program("setpriv") or "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--"]
    if not staged.folders:
        return [*change, *inside]
    enter = [program("unshare") or "unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", STAGE, "sh"]
    return [*enter, str(stage), *map(str, staged.folders), "--", *change, *inside]


class Staged:
    """Finds for every path one that the sandbox's user can reach, by way of the staging folder where it must be."""

    def __init__(self, stage: Path) -> None:
        self.stage = stage
        self.folders: list[Path] = []

    def path(self, path: Path) -> str:
        """*path* itself, or its place below the staging folder."""
        if os.geteuid() or reachable(path.parents):
            return str(path)
        folder = path.parent if path.parent.stat().st_mode & stat.S_IXOTH else path
        for number, known in enumerate(self.folders):
            if path.is_relative_to(known):
                return str(self.stage / str(number) / path.relative_to(known))
        self.folders.append(folder)
        return str(self.stage / str(len(self.folders) - 1) / path.relative_to(folder))


def reachable(folders: Iterable[Path]) -> bool:
    """Whether everyone may enter each of the folders."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)
