"""The Triton kernels give the oracle's numbers under Triton's interpreter, on a CPU.

Triton reads TRITON_INTERPRET when a kernel is defined, so the checks run in processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

CHECKS = Path(__file__).with_name("under_interpreter.py")


@pytest.mark.parametrize("subject", ["mla", "not mla"])
def test_kernels_under_the_interpreter(subject):
    """All checks of `under_interpreter` pass, none is skipped."""
    command = [sys.executable, "-m", "pytest", str(CHECKS), "-q", "-k", subject, "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=CHECKS.parents[2], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr
