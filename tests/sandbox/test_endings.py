"""Sandboxes end with their host, however it ends, and start whatever its umask is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox.remote import PLACES
from sandbox.victim import system_python

from k2core_sandbox import levels, wasm
from k2core_sandbox.paths import Interpreter
from k2core_sandbox.process import Kind
from k2core_sandbox.processes import alive
from k2core_sandbox.self_test import places

HOST = """
import os, sys, threading, time
from pathlib import Path
from k2core_sandbox.paths import Interpreter
from k2core_sandbox.process import Worker
os.umask(int(sys.argv[4], 8))
python = Interpreter(executable=Path(sys.argv[5]), prefix=Path("/usr")) if sys.argv[5] else None
worker = Worker.start(Path(sys.argv[1]), stage=Path(sys.argv[2]), kind=sys.argv[3], python=python, offered={})
threading.Thread(target=worker.run, args=("while True: pass",), kwargs={"timeout_s": 60}, daemon=True).start()
time.sleep(0.3)
print(worker.root, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("umask", ["022", "077"])
@pytest.mark.parametrize("kind", ["strong", "wasm", "reduced"])
def test_a_loop_does_not_outlive_a_killed_host(kind: Kind, umask: str) -> None:
    """SIGKILL gives the host no time to do anything; the kernel ends what it started."""
    if kind == "wasm" and not wasm.versions():
        pytest.skip("the extra 'wasm' is not installed")
    own = system_python() if kind == "reduced" and not os.geteuid() else None  # ours may lie under /root
    python = Interpreter(executable=own, prefix=Path("/usr")) if own and own.is_relative_to("/usr") else None
    found = levels.reduced(python) if kind == "reduced" else levels.level(kind)
    if found.name != kind:
        pytest.skip(f"no '{kind}' here: {found.why}")
    with places() as (workspace, stage):
        arguments = [str(workspace), str(stage), kind, umask, str(python.executable) if python else ""]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PLACES))}
        host = subprocess.Popen([sys.executable, "-c", HOST, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        assert host.stdout is not None
        number = int(host.stdout.readline())
        assert alive(number)
        host.send_signal(signal.SIGKILL)
        host.communicate()
        until = time.monotonic() + 10
        while alive(number) and time.monotonic() < until:
            time.sleep(0.02)
        assert not alive(number)
