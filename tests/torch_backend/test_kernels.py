"""The torch backend on Triton's kernels: under the interpreter, in a process of its own, the smallest cases of the kit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from k2core.errors import Unavailable  # only where torch is installed
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_torch.backend import TorchBackend, kernels_missing

CHECK = """
import json, sys
from k2core.conformance.kit import Subject, check_ops
from k2core_torch.backend import TorchBackend
found = []
for numerics in TorchBackend.numerics:
    subject = Subject(name="torch kernels", backend=TorchBackend("kernels"), device="cpu", numerics=numerics)
    found += check_ops(subject, count=1, only=["int4_dequant", "moe_experts", "moe_forward", "mla_attention"])
print(json.dumps([[str(one), one.holds] for one in found]))
"""


def test_kernels_keep_to_the_contracts():
    """Experts and decoding on Triton's kernels give what the contracts allow, in both numerics."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * 18 and all(holds for _, holds in found), [line for line, holds in found if not holds]


@pytest.mark.parametrize("file", ["test_torch_decoding.py", "test_torch_sequences.py"])
def test_sequences_under_the_interpreter(file):
    """Paged sequences and decoding in fixed shapes pass on Triton's kernels what every way has to pass; none is skipped."""
    pytest.importorskip("triton")
    place = Path(__file__).with_name(file)
    command = [sys.executable, "-m", "pytest", str(place), "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=place.parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr


def test_graphs_are_recorded_on_cuda_alone(tmp_path):
    """On a CPU one line says so and names the way without them."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "K2CORE_TORCH_PATH": "graphs"}
    code = f"from k2core_torch.backend import TorchBackend; TorchBackend().load({str(write_tiny_checkpoint(tmp_path))!r})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    expected = "the torch backend records graphs on CUDA, not on cpu. K2CORE_TORCH_PATH=kernels goes without."
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(expected)


def test_kernels_are_refused_where_they_cannot_run(tmp_path, monkeypatch):
    """On a CPU they need the interpreter, and triton at all: one line each, and the fast way is named."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder = write_tiny_checkpoint(tmp_path)
    with pytest.raises(Unavailable, match="K2CORE_TORCH_PATH=fast goes without"):
        TorchBackend("kernels").load(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'k2core[triton]'" in kernels_missing("cuda")
