"""What loading says: which path and kernels, how far it is, which devices there are, and what it refuses."""

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from k2core.errors import Unavailable  # noqa: E402  # only where PyTorch is installed
from k2core.interfaces import Available, SequenceInput  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_torch import device_kernels  # noqa: E402
from k2core_torch.backend import TorchBackend, cuda_missing  # noqa: E402
from k2core_torch.computing import full_precision  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=11)


@pytest.mark.parametrize("way", ["fast", "eager"])
def test_a_report_names_path_and_kernels(folder, way):
    """The path that was chosen is told, and why compiled kernels are not used."""
    told = TorchBackend(way).load(folder).info()
    assert (told["backend"], told["device"], told["kernel_path"]) == ("torch", "cpu", way)
    assert told["kernels"].startswith("none: ") and {"threads", "torch", "numerics"} <= set(told)


def test_a_kernel_that_cannot_be_imported_is_one_line(monkeypatch):
    """Where Triton is there but broken, loading is Unavailable, says what failed, and names the path without kernels."""
    monkeypatch.setattr(device_kernels, "PACKAGE", "k2core_kernels.no_such_place")
    line = r"import of k2core_kernels\.no_such_place\.mla_decode failed: .*PATH=fast"
    with pytest.raises(Unavailable, match=line) as refused:
        device_kernels.load_kernel("mla_decode")
    assert "\n" not in str(refused.value)


def test_a_torch_that_cannot_be_imported_is_one_line(folder, tmp_path, monkeypatch):
    """It is installed, but its import fails: the line names it and what it said."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: no such\\nfile')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(Unavailable, match="torch is installed, but its import failed: libcudart") as refused:
        TorchBackend().load(folder)
    assert "\n" not in str(refused.value)


def test_missing_bindings_are_a_reason(monkeypatch):
    """Without cuda-bindings, or without NVRTC's library, few tokens are Triton's too, and the report says why."""
    with monkeypatch.context() as patch:
        for name in [one for one in sys.modules if one.startswith(device_kernels.CUDA_PACKAGE)]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "cuda.bindings", None)
        assert "pip install 'k2core[cuda]'" in device_kernels.nvrtc_missing()
        assert ", no CUDA C++: cuda-bindings is not installed" in device_kernels.kernels_told("cuda", "graphs")
    nvrtc = pytest.importorskip("k2core_kernels.cuda.nvrtc", exc_type=ImportError)

    def broken():
        raise RuntimeError("no such\nlibrary")

    monkeypatch.setattr(nvrtc, "version", broken)
    assert device_kernels.nvrtc_missing() == "NVRTC cannot be loaded: no such library"


def test_progress_is_told_of_what_is_not_small(folder, monkeypatch):
    """Every layer's experts count up to an unchanged total; a small checkpoint is read without a word."""
    said = []
    TorchBackend().load(folder, progress=lambda *one: said.append(one))
    assert not said
    monkeypatch.setattr("k2core_torch.routed.SMALL", 0)
    TorchBackend().load(folder, progress=lambda *one: said.append(one))
    TorchBackend().load_experts(folder, progress=lambda *one: said.append(one))
    assert said == [("reading experts", 1, 2), ("reading experts", 2, 2)] * 2


def test_either_sign_of_a_driver_will_do(tmp_path):
    """A container may show the driver's version or the device alone; without both the reason names them."""
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.touch()
    assert cuda_missing("2.13.0", absent, there) == cuda_missing("2.13.0", there, absent) == ""
    assert cuda_missing("2.13.0", absent) == f"there is no NVIDIA driver (no {absent})"


def test_a_build_without_cuda_is_a_reason():
    """The CPU is what there is with such a build; the reason why CUDA is missing begins with the version."""
    found = TorchBackend().probe()
    assert isinstance(found, Available) and found.device == "cpu" and "cpu" in found.devices
    if torch.__version__.endswith("+cpu"):
        assert found.devices == ("cpu",)
        assert found.missing["cuda"].startswith(f"torch {torch.__version__} is built without CUDA")


@pytest.mark.parametrize(
    ("options", "line"), [({"device": "tpu"}, "has no device 'tpu'"), ({"numerics": "w4a8"}, "has no numerics 'w4a8'")]
)
def test_what_it_does_not_know_is_refused_before_anything_is_read(tmp_path, options, line):
    """An unknown device or numerics is one line, though there is not even a checkpoint."""
    for load in (TorchBackend().load, TorchBackend().load_experts):
        with pytest.raises(Unavailable, match=line):
            load(tmp_path / "nowhere", **options)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="PyTorch before 2.9 has only the older interface")
def test_precision_set_by_the_newer_interface_is_put_aside_too():
    """PyTorch's older question for the precision fails once the newer answer was given; it is put aside and comes back."""
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    try:
        places[0].fp32_precision, places[1].fp32_precision = "tf32", "bf16"
        with full_precision():
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
        assert [place.fp32_precision for place in places] == ["tf32", "bf16"]
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def test_a_dense_model_needs_no_experts(tmp_path):
    """A checkpoint of dense layers alone loads with and without a limit, and lends what is never asked for."""
    folder = write_tiny_checkpoint(tmp_path, first_k_dense_replace=3)
    found = [
        model.forward([SequenceInput(handle=model.new_sequence(), token_ids=[1, 2])]).logits
        for model in (
            TorchBackend().load(folder), TorchBackend().load(folder, expert_bytes=0),
            TorchBackend().load(folder, moe=TorchBackend().load_experts(folder)),
        )
    ]  # fmt: skip
    for logits in found[1:]:
        np.testing.assert_allclose(logits, found[0], atol=1e-6)
