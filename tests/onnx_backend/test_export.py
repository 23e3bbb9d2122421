"""A whole model in one file: ONNX Runtime alone runs it, with its cache, to the backend's and the oracle's numbers."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


from k2core.errors import InputError  # noqa: E402
from k2core.interfaces import SequenceInput, Want  # noqa: E402
from k2core.model.checkpoint import Checkpoint  # noqa: E402
from k2core.oracle.forward import forward as oracle_forward  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_onnx.backend import OnnxBackend  # noqa: E402
from k2core_onnx.export import export  # noqa: E402

IDS = [index * 7 % 300 for index in range(30)]


class Alone:
    """The exported file and a cache, with nothing of ours."""

    def __init__(self, file, layers, rank, rope):
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.cache = {}
        for layer in range(layers):
            self.cache[f"latents_{layer}"] = np.zeros((0, rank), np.float32)
            self.cache[f"keys_{layer}"] = np.zeros((0, rope), np.float32)

    def run(self, ids):
        """Logits of new tokens; the cache grows."""
        names = [one.name for one in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, {"token_ids": np.array(ids, np.int64), **self.cache}), strict=True))
        self.cache = {name: np.concatenate([old, found[f"new_{name}"]]) for name, old in self.cache.items()}
        return found["logits"]


@pytest.mark.parametrize("overrides", [{}, {"first_k_dense_replace": 0, "norm_topk_prob": False}, {"quantised": False}])
def test_the_file_runs_alone(tmp_path, overrides):
    """Prompt and decoding through the file give the oracle's logits."""
    folder = write_tiny_checkpoint(tmp_path / "model", seed=8, **overrides)
    checkpoint = Checkpoint.open(folder)
    file = export(checkpoint, tmp_path / "out")
    g = checkpoint.geometry
    alone = Alone(file, g.num_hidden_layers, g.kv_lora_rank, g.qk_rope_head_dim)
    logits = np.concatenate([alone.run(IDS[:20]), *(alone.run([token]) for token in IDS[20:])])
    assert np.abs(logits - oracle_forward(checkpoint, IDS).logits).max() <= 1e-3
    assert "k2core" in sys.modules and file.stat().st_size < 10_000_000  # weights lie beside the graph
    assert sorted(one.name for one in file.parent.iterdir()) == ["model.data", "model.onnx"]


def test_rounded_experts_are_those_of_the_backend(tmp_path):
    """In w4a8 the file gives the backend's logits."""
    folder = write_tiny_checkpoint(tmp_path / "model", seed=9)
    g = Checkpoint.open(folder).geometry
    alone = Alone(export(Checkpoint.open(folder), tmp_path / "out", numerics="w4a8"), 3, g.kv_lora_rank, g.qk_rope_head_dim)
    model = OnnxBackend().load(folder, numerics="w4a8")
    step = model.forward([SequenceInput(handle=model.new_sequence(), token_ids=IDS)], Want(logits="all"))
    assert np.abs(alone.run(IDS) - step.logits).max() <= 1e-3


def test_the_command_writes_and_refuses(tmp_path):
    """k2 onnx export writes the folder once; a second time it is refused and left as it is."""
    folder = write_tiny_checkpoint(tmp_path / "model", seed=9)
    command = [sys.executable, "-m", "k2core.cli", "onnx", "export", str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "model.onnx" in done.stdout, done.stderr
    with pytest.raises(InputError, match="it is there already"):
        export(Checkpoint.open(folder), tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "out"]
