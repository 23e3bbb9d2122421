"""An exported file in a process that knows nothing of k2core, and what a session does to those of others."""

import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from k2core.errors import CheckpointError  # noqa: E402  # only where ONNX Runtime is installed
from k2core.interfaces import SequenceInput, Want  # noqa: E402
from k2core.model.checkpoint import Checkpoint  # noqa: E402
from k2core.oracle.forward import forward as oracle_forward  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_onnx.backend import OnnxBackend  # noqa: E402
from k2core_onnx.export import export  # noqa: E402

ALONE = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
cache = {one.name: numpy.zeros((0, one.shape[1]), numpy.float32) for one in session.get_inputs() if one.name != "token_ids"}
ids, rows = numpy.load(sys.argv[2]), []
for piece in (ids[:40], *ids[40:, None]):
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"token_ids": piece, **cache})))
    cache = {name: numpy.concatenate([old, found["new_" + name]]) for name, old in cache.items()}
    rows.append(found["logits"])
assert not [name for name in sys.modules if name.startswith("k2core")]
numpy.save(sys.argv[3], numpy.concatenate(rows))
"""


@pytest.mark.parametrize("numerics", ["exact", "w4a8"])
def test_another_process_repeats_backend_and_oracle(both, tmp_path, numerics):
    """Prompt and decoding by ONNX Runtime and NumPy alone give the backend's logits, and in float32 the oracle's."""
    checkpoint = Checkpoint.open(both)
    ids = np.random.default_rng(4).integers(0, checkpoint.geometry.vocab_size, 60)
    np.save(tmp_path / "ids.npy", ids)
    file = export(checkpoint, tmp_path / "out", numerics=numerics)
    arguments = [str(file), str(tmp_path / "ids.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *arguments], check=True, timeout=120)
    logits = np.load(tmp_path / "logits.npy")
    model = OnnxBackend().load(both, numerics=numerics)
    expected = model.forward([SequenceInput(handle=model.new_sequence(), token_ids=ids.tolist())], Want(logits="all")).logits
    if numerics == "exact":
        assert np.abs(logits - expected).max() <= 1e-3
        assert np.abs(logits - oracle_forward(checkpoint, ids.tolist()).logits).max() <= 1e-3
    else:
        assert ((logits - expected) ** 2).sum() <= 1e-2 * (expected**2).sum()


def test_the_file_is_a_valid_model(both, tmp_path):
    """Every input and output is named and typed, no weight lies in the graph, and all lie in the one file beside it."""
    file = export(Checkpoint.open(both), tmp_path / "out")
    model = onnx.load(file, load_external_data=False)
    layers = Checkpoint.open(both).geometry.num_hidden_layers
    assert len(model.graph.input) == 1 + 2 * layers and len(model.graph.output) == 1 + 2 * layers
    beside = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for one in beside for entry in one.external_data if entry.key == "location"} == {"model.data"}
    assert all(one.ByteSize() < 4096 for one in model.graph.initializer)
    assert len({one.name for one in model.graph.initializer}) == len(model.graph.initializer)


def test_a_damaged_weight_leaves_no_export(tmp_path):
    """A NaN is named, and neither folder nor half a file stays behind."""
    folder, name = write_tiny_checkpoint(tmp_path / "model", seed=1), "model.layers.2.self_attn.o_proj.weight"
    entry = Checkpoint.open(folder)._places[name].entries[name]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.begin)
        file.write(b"\xc0\x7f")  # a NaN of bfloat16
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        export(Checkpoint.open(folder), tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_other_sessions_of_the_process_live(both):
    """Whoever uses ONNX Runtime beside a loaded model can make sessions of any kind."""
    model = OnnxBackend().load(both)
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:])
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(other.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.array([1, -2], np.float32)})[0], [-1, 2])
    model.close()
