"""The command line of level ``reduced``: Landlock, a stricter seccomp filter and limits, no namespaces.

Known gaps: whether a path outside exists, and its size and times, can be learnt; a process that detaches itself outlives the
run. Limits on processes count all of the user's.
"""

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from k2core.errors import Unavailable
from k2core_sandbox import seccomp
from k2core_sandbox.bubblewrap import ENVIRONMENT, FONTS
from k2core_sandbox.launcher import USER, reachable
from k2core_sandbox.paths import Interpreter, interpreter
from k2core_sandbox.plans import Ends, Inside, Plan
from k2core_sandbox.program import WORKER

GAPS = ("stat of paths outside", "a detached process outlives the run")
POLICY = seccomp.Policy(local_sockets=False, modes=False)
CONFINE = Path(__file__).with_name("confine.py")


def _environment(workspace: Path, stage: Path) -> dict[str, str]:
    """The worker's environment: that of ``strong`` with the places that are its own here."""
    temporary = str(stage / "tmp")
    return {
        **ENVIRONMENT,
        "FONTCONFIG_FILE": str(stage / "fonts.conf"),
        "HOME": str(workspace),
        "TMPDIR": temporary,
        "MPLCONFIGDIR": temporary,
        "XDG_CACHE_HOME": temporary,
    }


def plan(inside: Inside, ends: Ends) -> Plan:
    """How level ``reduced`` starts its worker."""
    build = partial(
        command,
        interpreter=inside.python or interpreter(),
        packages=inside.packages,
        workspace=inside.workspace,
        worker=ends.file("worker", WORKER.read_bytes()),
        filter=ends.file("filter", seccomp.program(POLICY)),
        requests=ends.requests,
        replies=ends.replies,
        stage=inside.stage,
    )
    environment = _environment(inside.workspace, inside.stage)
    return Plan(build=lambda _: build(), environment=environment, folders=(inside.stage / "tmp",))


def command(
    *,
    interpreter: Interpreter,
    packages: Mapping[str, Path],
    workspace: Path,
    worker: int,
    filter: int,
    requests: int,
    replies: int,
    stage: Path,
) -> list[str]:
    """The whole command; makes the folders of packages and temporary files in *stage*. It changes the user itself.

    Raises:
        Unavailable: root starts it, and the user it becomes could not reach a folder it needs.
    """
    user = None if os.geteuid() else USER
    places = [interpreter.prefix, workspace, stage, *packages.values()]
    closed = [str(place) for place in places if user is not None and not reachable(place.parents)]
    if closed:
        raise Unavailable(
            f"the sandbox 'reduced' cannot start as root: user {USER} cannot reach {closed[0]}. "
            "Run as an ordinary user, or use a Python and a workspace outside /root."
        )
    offered, temporary = stage / "packages", stage / "tmp"
    offered.mkdir(exist_ok=True)
    for name, path in packages.items():
        if not (offered / name).is_symlink():
            (offered / name).symlink_to(path)
    temporary.mkdir(exist_ok=True)
    (stage / "fonts.conf").write_bytes(FONTS)
    for path, mode in ((offered, 0o755), (temporary, 0o755), (stage / "fonts.conf", 0o644)):
        path.chmod(mode)  # whatever our umask is, the sandbox's user reads them
    if user is not None:
        os.chown(temporary, user, user)
    system = [Path("/", name) for name in ("usr", "bin", "lib", "lib64", "dev/urandom", "dev/zero")]
    read = [*system, interpreter.prefix, offered, stage / "fonts.conf", *packages.values()]
    write = [workspace, temporary, Path("/dev/null")]
    specification = {
        "worker": worker,
        "filter": filter,
        "read": [str(path) for path in read if path.exists()],
        "write": [str(path) for path in write],
        "user": user,
        "parent": os.getpid(),
    }
    numbers = [str(requests), str(replies), str(offered), str(workspace), str(64 + owned(user))]
    return [str(interpreter.executable), "-I", "-S", "-B", str(CONFINE), json.dumps(specification), *numbers]


def owned(user: int | None) -> int:
    """How many threads the user has now, for the limit counts them all; 0 where that cannot be seen."""
    wanted = os.geteuid() if user is None else user
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == wanted:
                    count += len(list((entry / "task").iterdir()))
            except OSError:
                continue  # ended since it was listed
    return count


def supported() -> str:
    """Empty if the kernel has all that the level needs, else what is missing."""
    if sys.platform != "linux":
        return f"no Landlock on {sys.platform}"
    from k2core_sandbox.confine import LEAST_ABI, abi

    found = abi()
    return "" if found >= LEAST_ABI else f"Landlock ABI {found}, {LEAST_ABI} or newer is needed (Linux 6.12)"
