"""What the watchdog sees where it is not root's."""

import os
import subprocess
import sys

import pytest
from sandbox.remote import PLACES, USER
from sandbox.victim import dropped, system_python

ZOMBIE = """
import os
from k2core_sandbox.watchdog import open_files
child = os.fork()
if not child:
    os._exit(0)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
try:
    os.listdir(f"/proc/{child}/fd")
except PermissionError:
    print(open_files([child], set()))
"""


def test_what_has_ended_hides_nothing() -> None:
    """The kernel gives a process that ended, and that nobody has waited for, to root: another user may not look into it."""
    python = system_python()
    if python is None:
        pytest.skip("no Python that every user can start")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PLACES))}
    command = [*dropped(USER), str(python) if not os.geteuid() else sys.executable, "-B", "-c", ZOMBIE]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    if "ModuleNotFoundError" in said.stderr:
        pytest.skip(f"user {USER} cannot import the framework: {said.stderr.splitlines()[-1]}")
    assert (said.stdout, said.stderr) == ("(0, 0)\n", "")
