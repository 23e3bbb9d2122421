"""What ``k2 --help`` costs beside an interpreter that imports nothing; run with ``pytest bench/test_start.py -s``."""

import resource
import subprocess
import sys


def seconds(*command):
    """Processor time of a child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, check=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help():
    """Best of seven each, in turn."""
    assert "run" in seconds("-m", "k2core.cli", "--help")[1]
    rounds = [(seconds("-c", "pass")[0], seconds("-m", "k2core.cli", "--help")[0]) for _ in range(7)]
    bare, ours = min(one for one, _ in rounds), min(one for _, one in rounds)
    print(f"\nk2 --help: {ours * 1e3:.0f} ms of processor time, an interpreter alone {bare * 1e3:.0f} ms")
