"""A process outside, and the program that it runs: it holds tokens wherever a process can hold them, and does nothing."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from k2core_sandbox import launcher

# its memory token comes by stdin, so that neither its command line nor its environment holds it
PROGRAM = """
import ctypes, json, os, sys
token = bytearray(sys.stdin.readline().strip().encode())
number = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600)
os.unlink(sys.argv[2])
os.write(number, sys.stdin.readline().strip().encode())
address = ctypes.addressof((ctypes.c_char * len(token)).from_buffer(token))
print(json.dumps({"memory": [address, len(token)], "descriptor": number}), flush=True)
sys.stdin.read()  # until whoever started it ends
"""


def system_python() -> Path | None:
    """A Python that every user can start."""
    own = Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))
    if all(folder.stat().st_mode & stat.S_IXOTH for folder in own.parents):
        return own
    found = shutil.which("python3", path="/usr/bin")
    return Path(os.path.realpath(found)) if found else None


def dropped(user: int) -> list[str]:
    """What changes root into the user in front of a command; nothing for others."""
    if os.geteuid():
        return []
    return ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]


@frozen
class Victim:
    """A running victim: its process, where its memory token lies, and which descriptor holds another."""

    process: subprocess.Popen[str]
    memory: tuple[int, int]
    descriptor: int

    @classmethod
    def start(cls, python: Path, folder: Path, tokens: Mapping[str, str]) -> "Victim":
        """Start one as the sandbox's user, working in *folder*."""
        arguments = [str(python), "-I", "-S", "-c", PROGRAM, tokens["command line"], str(folder / "unnamed")]
        process = subprocess.Popen(
            [*dropped(launcher.USER), *arguments],
            env={"K2CORE_VICTIM": tokens["environment of a process"]},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{tokens['memory of a process']}\n{tokens['descriptor of a process']}\n")
        process.stdin.flush()
        told = json.loads(process.stdout.readline())
        return cls(process, tuple(told["memory"]), told["descriptor"])

    def harm(self, waits: bool) -> list[str]:
        """What was done to it; a signal takes a moment."""
        number = self.process.pid
        if waits:
            time.sleep(0.03)
        if self.process.poll() is not None:
            return ["the victim was killed"]
        found = []
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        if state[0] in "Tt":
            found.append("the victim was stopped")
        if limits(number) != limits("self"):
            found.append("the victim's limits were changed")
        if os.getpriority(os.PRIO_PROCESS, number) != os.getpriority(os.PRIO_PROCESS, 0):
            found.append("the victim's priority was changed")
        if os.sched_getaffinity(number) != os.sched_getaffinity(0):
            found.append("the victim's processors were changed")
        return found

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()


def limits(process: int | str) -> str:
    """The limit of processor time of a process, as the kernel tells it to everybody."""
    return next(line for line in Path(f"/proc/{process}/limits").read_text().splitlines() if line.startswith("Max cpu time"))
