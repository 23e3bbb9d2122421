"""A bench in a process of its own, as ourselves or as an ordinary user."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
import msgspec
from sandbox.bench import Setup, Verdict
from sandbox.cases import Case
from sandbox.victim import system_python

import k2core
import k2core_sandbox

ANSWER_S = 60.0  # for one attack
USER = 1500  # of an ordinary user, where we are root
# folders that hold the tests, the framework, its plugins and its dependencies
PLACES = (
    Path(__file__).parents[1], Path(k2core.__file__).parents[1], Path(k2core_sandbox.__file__).parents[1],
    Path(attrs.__file__).parents[1],
)  # fmt: skip


class NotHere(Exception):
    """The set-up cannot be had on this machine; the message says why."""


class Remote:
    """A running bench."""

    def __init__(self, setup: Setup, *, ordinary: bool = False) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="k2core-home-"))
        self.home.chmod(0o755)
        system = system_python()
        if system is None:
            raise NotHere("no Python that every user can start")
        command, user = [sys.executable], []
        if ordinary:
            os.chown(self.home, USER, USER)
            user = ["/usr/bin/setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
            command = [str(system), "-B"]
        inside = [str(system), "/usr"] if setup == "reduced" and not os.geteuid() and system.is_relative_to("/usr") else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, PLACES)),
            "HOME": str(self.home),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
            if setup == "wasm" and not ordinary  # what is compiled there takes minutes
            else str(self.home / ".cache"),
        }
        with (self.home / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                [*user, *command, "-m", "sandbox.bench", setup, *inside],
                env=environment,
                cwd=self.home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        self.heard = b""
        try:
            name, why = self._answer(list[str])
        except RuntimeError as error:
            self.close()
            if ordinary and "ModuleNotFoundError" in str(error):
                raise NotHere(f"user {USER} cannot import the framework: {str(error).splitlines()[-1]}") from error
            raise
        if name != setup:
            self.close()
            raise NotHere(why)

    def attack(self, case: Case) -> Verdict | str:
        """The verdict on one attack, or what the machine lacks for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(case.key.encode() + b"\n")
        return self._answer(Verdict | str)

    def _answer(self, kind: Any) -> Any:
        assert self.process.stdout is not None
        log = []
        while line := self._line(self.process.stdout.fileno()):
            if line.startswith(("{", "[", '"')):
                return msgspec.convert(json.loads(line), kind)
            log.append(line)
        ended = self.process.poll()
        self.process.kill()
        how = f"said nothing for {ANSWER_S:g} s" if ended is None else f"ended with {ended}"
        raise RuntimeError(f"the bench {how}: {''.join(log)}{(self.home / 'errors').read_text()[-3000:]}")

    def _line(self, stdout: int) -> str:
        """The next line; empty where none comes. What was read behind it waits here, where `select` cannot see it."""
        while b"\n" not in self.heard:
            if not select.select([stdout], [], [], ANSWER_S)[0] or not (more := os.read(stdout, 1 << 16)):
                return ""
            self.heard += more
        line, _, self.heard = self.heard.partition(b"\n")
        return f"{line.decode()}\n"

    def close(self) -> None:
        """End it."""
        self.process.communicate()
        shutil.rmtree(self.home)
