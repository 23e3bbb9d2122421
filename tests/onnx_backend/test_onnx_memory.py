"""Memory: what a checkpoint takes, what is told of it beforehand, and weights that are not held twice."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from k2core.errors import Unavailable
from k2core.interfaces import SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.footprint import footprint
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core.testing.memory import measure_peak, write_large_checkpoint
from k2core_numba.backend import NumbaBackend
from k2core_onnx import halves
from k2core_onnx.backend import OnnxBackend
from k2core_onnx.graph import Weights
from k2core_onnx.session import MOST_THREADS, Sessions


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of about 240 MB, of which nearly a third are plain weights: many more than in the family's."""
    return write_large_checkpoint(tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("numerics", OnnxBackend.numerics)
def test_loading_and_running_takes_what_is_told(large, numerics, capsys):
    """The peak is at most a quarter above what `needs` says: what passes through while loading, and what malloc keeps of it."""
    peak = measure_peak("onnx", large, numerics=numerics)
    with capsys.disabled():
        print(f"\n  {numerics}: {peak}", end="")
    told = OnnxBackend().needs(footprint(Checkpoint.open(large).geometry), context=64, numerics=numerics)
    assert peak.peak_bytes - peak.baseline_bytes <= 1.25 * told


def test_threads_of_all_sessions_are_not_without_bound(monkeypatch):
    """On a machine of many cores a large model's sessions have fewer threads each, and never none."""
    monkeypatch.setenv("K2CORE_THREADS", "128")
    assert Sessions("cpu", 3).threads == 128
    assert Sessions("cpu", 183).threads == 1 + MOST_THREADS // 183
    assert Sessions("cpu", 10**6).threads == 1


def test_a_session_that_is_not_on_its_device_is_refused(tmp_path):
    """Whichever of its packages is installed, ONNX Runtime does not go on without the provider that was asked for."""
    weights = Weights(Checkpoint.open(write_tiny_checkpoint(tmp_path)))
    try:
        session = Sessions("cuda", 1).make(halves.dense(weights, 0))
    except Unavailable as error:
        assert "CUDAExecutionProvider" in str(error) and "\n" not in str(error)
    else:  # there is a GPU here
        assert session.run(x=np.ones((1, 64), np.float32))[0].shape == (1, 64)


def test_a_report_names_whose_experts_they_are(tmp_path):
    """Own experts and lent ones are told apart, and what lent ones tell of themselves is passed on."""
    folder = write_tiny_checkpoint(tmp_path)
    assert OnnxBackend().load(folder).info()["experts"] == "onnx"
    mixed = OnnxBackend().load(folder, moe=NumbaBackend().load_experts(folder)).info()
    assert (mixed["backend"], mixed["experts"]) == ("onnx", "numba")
    assert "expert_hits" in mixed


def test_experts_that_lie_elsewhere_are_not_read(tmp_path):
    """With another's experts a damaged expert of the own file does no harm: nobody reads it."""
    sound = write_tiny_checkpoint(tmp_path / "sound", seed=4)
    damaged = write_tiny_checkpoint(tmp_path / "damaged", seed=4)
    name = "model.layers.1.mlp.experts.0.up_proj.weight_scale"
    entry = Checkpoint.open(damaged)._places[name].entries[name]
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(entry.begin)
        file.write(b"\xc0\x7f")  # a NaN of bfloat16
    mixed, own = OnnxBackend().load(damaged, moe=OnnxBackend().load_experts(sound)), OnnxBackend().load(sound)
    got, expected = (
        model.forward([SequenceInput(handle=model.new_sequence(), token_ids=[1, 2, 3])], Want(logits="all")).logits
        for model in (mixed, own)
    )
    np.testing.assert_array_equal(got, expected)
