"""Routed experts as one `QMoE` keep the contract that a `MatMulNBits` per matrix keeps, and say what they cannot do."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from k2core.conformance.kit import Subject, check_ops
from k2core.conformance.promises import check_promises
from k2core.conformance.whole_model import check_models
from k2core.errors import ConfigError, Unavailable
from k2core.interfaces import Routing
from k2core.model.checkpoint import Checkpoint
from k2core.model.footprint import footprint
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core.testing.memory import measure_peak, write_large_checkpoint
from k2core_onnx.backend import OnnxBackend

SUBJECT = Subject(name="onnx", backend=OnnxBackend(experts="qmoe"), device="cpu", numerics="exact")


@pytest.mark.parametrize("check", [check_ops, check_models, check_promises])
def test_it_keeps_the_contract(check):
    """Ops, whole models and promises, in the kit's short form; experts are a `QMoE` meanwhile."""
    outcomes = list(check(SUBJECT))
    assert len(outcomes) >= 10
    assert [f"{one.op} {one.property}: {one.error or one.difference}" for one in outcomes if not one.holds] == []


def test_the_environment_chooses(tmp_path, monkeypatch):
    """K2CORE_ONNX_EXPERTS chooses, the report tells which; anything else is a ConfigError."""
    folder = write_tiny_checkpoint(tmp_path)
    assert OnnxBackend().load(folder).info()["expert_path"] == "MatMulNBits"
    monkeypatch.setenv("K2CORE_ONNX_EXPERTS", "qmoe")
    assert OnnxBackend().load(folder).info()["expert_path"] == "QMoE"
    monkeypatch.setenv("K2CORE_ONNX_EXPERTS", "fast")
    with pytest.raises(ConfigError, match="K2CORE_ONNX_EXPERTS is 'fast'"):
        OnnxBackend().load(folder)


def test_what_it_cannot_do_is_said_in_a_line(tmp_path):
    """Rounded inputs, and experts that are not packed."""
    folder = write_tiny_checkpoint(tmp_path / "packed")
    assert OnnxBackend(experts="qmoe").numerics == ("exact",) and "w4a8" in OnnxBackend(experts="matmul").numerics
    with pytest.raises(Unavailable, match=r"no numerics 'w4a8'.*K2CORE_ONNX_EXPERTS=matmul"):
        OnnxBackend(experts="qmoe").load(folder, numerics="w4a8")
    plain = write_tiny_checkpoint(tmp_path / "plain", quantised=False)
    with pytest.raises(Unavailable, match=r"its experts are not packed\. K2CORE_ONNX_EXPERTS=matmul"):
        OnnxBackend(experts="qmoe").load(plain)


def test_an_expert_may_be_chosen_twice_and_none_may_be_asked(tmp_path):
    """A choice that no router makes is computed as it is written, and no tokens give no rows."""
    folder = write_tiny_checkpoint(tmp_path, n_routed_experts=8, num_experts_per_tok=3)
    split, fused = (OnnxBackend(experts=way).load_experts(folder) for way in ("matmul", "qmoe"))
    x = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32)
    routing = Routing(expert_ids=np.array([[5, 5, 2], [0, 0, 0]]), weights=np.array([[0.5, 0.25, 1.0], [1.0, -1.0, 0.5]]))
    np.testing.assert_allclose(fused.experts(1, x, routing), split.experts(1, x, routing), rtol=1e-4, atol=1e-6)
    none = Routing(expert_ids=np.empty((0, 3), np.int32), weights=np.empty((0, 3), np.float32))
    assert fused.experts(1, x[:0], none).shape == (0, 64)


def test_loading_and_running_takes_what_is_told(tmp_path, monkeypatch):
    """The stacked matrices stay beside ONNX Runtime's layout of them, and `needs` counts both."""
    large = write_large_checkpoint(tmp_path)
    monkeypatch.setenv("K2CORE_ONNX_EXPERTS", "qmoe")
    peak = measure_peak("onnx", large)
    told = OnnxBackend().needs(footprint(Checkpoint.open(large).geometry), context=64, numerics="exact")
    assert peak.peak_bytes - peak.baseline_bytes <= 1.25 * told
