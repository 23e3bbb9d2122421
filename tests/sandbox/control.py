"""Weaker set-ups, in which the attacks have to succeed: the same worker without isolation and without limits.

``plain`` is the user that the sandbox would have outside, ``rooted`` is root in a mount namespace of its own. Both inherit the
environment and the descriptors of whoever starts them. The attacks find only what `outside` put there for them.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from sandbox.cases import Control
from sandbox.outside import Outside
from sandbox.victim import dropped

from k2core_sandbox import launcher
from k2core_sandbox.process import Worker
from k2core_sandbox.processes import alive, started, tree
from k2core_sandbox.program import WORKER

# the worker sets its own limits; here it cannot
UNLIMITED = "import resource, runpy; resource.setrlimit = lambda *_: None; runpy.run_path({worker!r}, run_name='__main__')"


class Uncontrolled:
    """A worker without isolation. `worker.run` serves as for a real one."""

    def __init__(self, kind: Control, outside: Outside, workspace: Path, stage: Path, packages: dict[str, Path]) -> None:
        self.members: dict[int, str] = {}  # when each began: a number may be another process's later
        python = stage / "python3"
        shutil.copy(outside.python, python)  # a copy: an attack changes it
        offered = stage / "packages"
        offered.mkdir()
        for name, path in packages.items():
            (offered / name).symlink_to(path)
        copy = stage / "worker.py"
        shutil.copy(WORKER, copy)
        if not os.geteuid():
            for path in (stage, python, offered):
                os.chown(path, launcher.USER, launcher.USER)
        requests_in, requests = os.pipe()
        replies, replies_out = os.pipe()
        output, output_out = os.pipe()
        for number in (requests_in, replies_out):
            os.set_inheritable(number, True)
        user = dropped(launcher.USER) if kind == "plain" else ["/usr/bin/unshare", "--mount", "--propagation", "private", "--"]
        # a shell of its own in between: an attack kills its parent
        shell = ["/bin/sh", "-c", '"$@"; true', "sh"]
        code = UNLIMITED.format(worker=str(copy))
        arguments = [str(requests_in), str(replies_out), str(offered), str(workspace), "64"]
        self.process = subprocess.Popen(
            [*user, *shell, str(python), "-I", "-S", "-B", "-c", code, *arguments],
            env={
                **os.environ,
                "HOME": str(outside.home),
                "MPLBACKEND": "Agg",
                "MPLCONFIGDIR": str(stage),
                "TMPDIR": str(stage),
            },
            cwd=workspace,
            stdin=subprocess.DEVNULL,
            stdout=output_out,
            stderr=output_out,
            close_fds=False,
            start_new_session=True,
        )
        for number in (requests_in, replies_out, output_out):
            os.close(number)
        self.worker = Worker(self.process, -1, -1, requests, replies, output, 0)
        self.worker._meet(None)
        outside.watch(python)

    def remember(self) -> None:
        """Note its processes, for their parents may be killed."""
        for number in tree(self.process.pid):
            if (began := started(number)) is not None:
                self.members[number] = began

    def _running(self) -> list[int]:
        return [number for number, began in self.members.items() if alive(number) and started(number) == began]

    def ends(self) -> bool:
        """Whether all of it ends when it is asked to, as a host without means would ask."""
        self.remember()
        if self.process.poll() is None:
            self.process.terminate()
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            if not self._running():
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        """Kill what it started."""
        self.remember()
        for number in self._running():
            os.kill(number, signal.SIGKILL)
        self.worker.close()
