"""What is ONNX Runtime's own: two packages of one name, its group sizes, experts elsewhere, graphs without control flow."""

import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from k2core.errors import CheckpointError, Unavailable  # noqa: E402  # only where ONNX Runtime is installed
from k2core.interfaces import Available, NotAvailable, SequenceInput, Want  # noqa: E402
from k2core.model.checkpoint import Checkpoint  # noqa: E402
from k2core.model.quantisation import family_config  # noqa: E402
from k2core.oracle.forward import forward as oracle_forward  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_numba.backend import NumbaBackend  # noqa: E402
from k2core_onnx import backend as onnx_backend  # noqa: E402
from k2core_onnx.backend import OnnxBackend, cuda_missing  # noqa: E402

ALL = Want(logits="all")
IDS = [index * 7 % 300 for index in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=11)


def logits_of(model, ids=IDS):
    """Logits of a fresh sequence."""
    return model.forward([SequenceInput(handle=model.new_sequence(), token_ids=ids)], ALL).logits


@pytest.mark.parametrize("overrides", [{}, {"first_k_dense_replace": 0}, {"first_k_dense_replace": 3}])
def test_plain_experts_are_taken_too(tmp_path, overrides):
    """A checkpoint whose experts are bfloat16 gives the oracle's logits."""
    folder = write_tiny_checkpoint(tmp_path, seed=3, quantised=False, **overrides)
    expected = oracle_forward(Checkpoint.open(folder), IDS)
    assert np.abs(logits_of(OnnxBackend().load(folder)) - expected.logits).max() <= 1e-3


def test_attention_here_and_experts_on_numba(folder):
    """A model whose experts lie on Numba has the logits of one backend alone, in either direction."""
    expected = logits_of(NumbaBackend().load(folder))
    mixed = OnnxBackend().load(folder, moe=NumbaBackend().load_experts(folder))
    assert np.abs(logits_of(mixed) - expected).max() <= 1e-3
    other = NumbaBackend().load(folder, moe=OnnxBackend().load_experts(folder))
    assert np.abs(logits_of(other) - expected).max() <= 1e-3


def test_graphs_have_no_control_flow_and_no_scatter(folder):
    """Routed experts are a gather, a split and products; nothing branches."""
    from k2core_onnx.experts import experts
    from k2core_onnx.graph import Weights

    graph = experts(Weights(Checkpoint.open(folder)), 1, "exact").model(location="memory")
    ops = [node.op_type for node in graph.graph.node]
    assert not {"If", "Loop", "Scan", "ScatterND", "ScatterElements"} & set(ops)
    assert (ops.count("MatMulNBits"), ops.count("Split")) == (3 * 4, 1)
    assert sum(len(tensor.raw_data) for tensor in graph.graph.initializer) < 1000


def test_groups_that_onnx_runtime_has_not_are_refused(tmp_path):
    """A group that is no power of two is one line that names the tensor and what is taken."""
    sizes = {"hidden_size": 96, "moe_intermediate_size": 48, "quantization_config": family_config(24)}
    with pytest.raises(CheckpointError, match=r"experts\.0\.gate_proj: its groups have 24 columns, .* powers of two"):
        OnnxBackend().load(write_tiny_checkpoint(tmp_path, **sizes))


def test_a_limit_for_experts_is_refused(folder):
    """A session keeps its constants: the line says who can limit them."""
    with pytest.raises(Unavailable, match="--moe numba"):
        OnnxBackend().load(folder, expert_bytes=10**6)


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        ({}, r"onnxruntime is not installed. Install it with: pip install 'k2core\[onnx\]'"),
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, "both installed and overwrite each other. Uninstall both"),
    ],
)
def test_no_or_two_packages_are_a_reason(installed, reason, monkeypatch, folder):
    """Neither, or both of the exclusive packages: probe says what to do and load raises the same line."""
    monkeypatch.setattr(onnx_backend, "_version", installed.get)
    assert isinstance(OnnxBackend().probe(), NotAvailable)
    with pytest.raises(Unavailable, match=reason):
        OnnxBackend().load(folder)


def test_missing_onnx_is_a_reason(monkeypatch, folder):
    """Without the package that writes graphs nothing can be built, and it is named."""
    found = onnx_backend.importlib.util.find_spec
    monkeypatch.setattr(onnx_backend.importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    with pytest.raises(Unavailable, match="onnx, which writes the graphs, is not installed"):
        OnnxBackend().load(folder)


def test_why_there_is_no_cuda(tmp_path):
    """The package without CUDA and a machine without a driver are named."""
    assert "'k2core[onnx-gpu]'" in cuda_missing("onnxruntime", tmp_path)
    assert "no NVIDIA driver" in cuda_missing("onnxruntime-gpu", tmp_path / "version")
    assert cuda_missing("onnxruntime-gpu", tmp_path) == ""


def test_a_provider_that_is_missing_is_told(folder, monkeypatch):
    """ONNX Runtime would fall back to the CPU silently; here it is an error that names what there is."""
    monkeypatch.setattr(onnx_backend, "cuda_missing", lambda name: "")
    if isinstance(found := OnnxBackend().probe(), Available) and "gpu" in found.detail:
        pytest.skip("the CUDA package is installed: whether a GPU is there decides")
    with pytest.raises(Unavailable, match="CUDAExecutionProvider"):
        OnnxBackend().load(folder, device="cuda")


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_library_that_cannot_be_imported_is_one_line(folder, tmp_path, monkeypatch, library):
    """It is installed, but its import fails: the line names it and what it said."""
    (tmp_path / f"{library}.py").write_text("raise ImportError('libcudart.so.12: no such\\nfile')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(
        Unavailable, match=f"{library} is installed, but its import failed: libcudart.so.12: no such"
    ) as refused:
        OnnxBackend().load(folder)
    assert "\n" not in str(refused.value)


def test_probing_imports_neither():
    """Listing and probing leaves ONNX and ONNX Runtime unimported."""
    code = (
        "import sys; from k2core_onnx.backend import OnnxBackend as B; print(type(B().probe()).__name__);"
        "print({'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["Available", "set()"]
