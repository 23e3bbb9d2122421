"""What is PyTorch's own: two ways to the same numbers, plain experts, kept experts, other backends' experts, memory."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from k2core.conformance.kit import Subject, check_ops  # noqa: E402  # only where torch is installed
from k2core.conformance.promises import check_promises  # noqa: E402
from k2core.conformance.whole_model import check_models  # noqa: E402
from k2core.errors import CapacityError, ConfigError, Unavailable  # noqa: E402
from k2core.interfaces import Available, NotAvailable, SequenceInput, Want  # noqa: E402
from k2core.model.checkpoint import Checkpoint  # noqa: E402
from k2core.oracle.forward import forward as oracle_forward  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core.testing.memory import measure_peak, write_large_checkpoint  # noqa: E402
from k2core_numba.backend import NumbaBackend  # noqa: E402
from k2core_torch.backend import TorchBackend, cuda_missing  # noqa: E402

ALL = Want(logits="all")
IDS = [index * 7 % 300 for index in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=11)


def logits_of(model, ids=IDS):
    """Logits of a fresh sequence."""
    return model.forward([SequenceInput(handle=model.new_sequence(), token_ids=ids)], ALL).logits


@pytest.mark.parametrize("numerics", TorchBackend.numerics)
def test_the_eager_way_keeps_to_every_contract(numerics):
    """The equations as they are written pass the whole kit, as the fast way does in the suite."""
    subject = Subject(name="torch eager", backend=TorchBackend("eager"), device="cpu", numerics=numerics)
    found = [*check_ops(subject, count=4), *check_models(subject), *check_promises(subject)]
    wrong = [str(one) for one in found if not one.holds]
    assert len(found) > 50 and not wrong, "\n".join(wrong)


def test_the_way_comes_from_the_environment(folder, monkeypatch):
    """K2CORE_TORCH_PATH chooses, and the model says which; anything else is a ConfigError."""
    assert TorchBackend().load(folder).info()["kernel_path"] == "fast"
    monkeypatch.setenv("K2CORE_TORCH_PATH", "eager")
    assert TorchBackend().load(folder).info()["kernel_path"] == "eager"
    monkeypatch.setenv("K2CORE_TORCH_PATH", "slow")
    with pytest.raises(ConfigError, match="K2CORE_TORCH_PATH is 'slow'"):
        TorchBackend().load(folder)


@pytest.mark.parametrize("way", ["fast", "eager"])
@pytest.mark.parametrize("overrides", [{}, {"first_k_dense_replace": 0}, {"first_k_dense_replace": 3}])
def test_plain_experts_are_taken_too(tmp_path, way, overrides):
    """A checkpoint whose experts are bfloat16 gives the oracle's logits."""
    folder = write_tiny_checkpoint(tmp_path, seed=3, quantised=False, **overrides)
    expected = oracle_forward(Checkpoint.open(folder), IDS)
    assert np.abs(logits_of(TorchBackend(way).load(folder)) - expected.logits).max() <= 1e-3


@pytest.mark.parametrize("experts", [1, 3, 50])
def test_kept_experts_change_nothing(folder, experts):
    """Unpacked experts within a limit give the same logits; hits and misses are told."""
    one = 3 * 4 * 64 * 32
    model = TorchBackend().load(folder, expert_bytes=experts * one)
    assert np.abs(logits_of(model) - logits_of(TorchBackend().load(folder))).max() <= 1e-4
    before = model.info()
    logits_of(model)
    after = model.info()
    assert int(after["expert_hits"]) + int(after["expert_misses"]) > int(before["expert_hits"]) + int(before["expert_misses"])
    if experts == 50:
        assert after["expert_misses"] == before["expert_misses"]
    with pytest.raises(CapacityError, match=f"one takes {one:,} unpacked"):
        TorchBackend().load(folder, expert_bytes=one - 1)


@pytest.mark.parametrize("numerics", ["exact"])
def test_attention_here_and_experts_on_numba(folder, numerics):
    """A model whose experts lie on Numba has the logits of one backend alone, in either direction."""
    expected = logits_of(NumbaBackend().load(folder))
    mixed = TorchBackend().load(folder, numerics=numerics, moe=NumbaBackend().load_experts(folder))
    assert np.abs(logits_of(mixed) - expected).max() <= 1e-3
    assert mixed.info()["experts"] == "numba"
    other = NumbaBackend().load(folder, moe=TorchBackend().load_experts(folder))
    assert np.abs(logits_of(other) - expected).max() <= 1e-3


def test_borrowed_experts_are_not_read_from_the_own_file(tmp_path):
    """With another's experts a damaged expert of the own file does no harm: nobody reads it."""
    folder = write_tiny_checkpoint(tmp_path / "one", seed=4)
    damaged = write_tiny_checkpoint(tmp_path / "two", seed=4)
    name = "model.layers.1.mlp.experts.0.up_proj.weight_scale"
    entry = Checkpoint.open(damaged)._places[name].entries[name]
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(entry.begin)
        file.write(b"\xc0\x7f")
    mixed = TorchBackend().load(damaged, moe=NumbaBackend().load_experts(folder))
    assert np.abs(logits_of(mixed) - logits_of(TorchBackend().load(folder))).max() <= 1e-3


def test_loading_and_running_takes_little_more_than_the_file(tmp_path, capsys):
    """The peak of anonymous memory and resident file pages is at most 1.10 times the file, above the process's own."""
    peak = measure_peak("torch", write_large_checkpoint(tmp_path))
    with capsys.disabled():
        print(f"\n  {peak}", end="")
    assert peak.share <= 1.10


def test_probing_imports_no_torch():
    """Listing and probing leaves PyTorch unimported."""
    code = (
        "import sys; from k2core_torch.backend import TorchBackend as B;"
        "print(type(B().probe()).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["Available", "False"]


def test_missing_torch_is_a_reason(monkeypatch, folder):
    """Where PyTorch is not installed, probe says so and load raises the same line."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(TorchBackend().probe(), NotAvailable)
    with pytest.raises(Unavailable, match=r"torch is not installed. Install it with: pip install 'k2core\[torch\]'"):
        TorchBackend().load(folder)


def test_why_there_is_no_cuda(tmp_path):
    """A build without CUDA and a machine without a driver are named; where both are there, CUDA may be tried."""
    assert "built without CUDA" in cuda_missing("2.13.0+cpu", tmp_path)
    assert "no NVIDIA driver" in cuda_missing("2.13.0", tmp_path / "version")
    assert cuda_missing("2.13.0", tmp_path) == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_is_refused_with_its_reason(folder):
    """Asking for a device that is not there says why, and the CPU goes on."""
    found = TorchBackend().probe()
    assert isinstance(found, Available) and "cuda" in found.missing
    with pytest.raises(Unavailable, match="has no device 'cuda': "):
        TorchBackend().load(folder, device="cuda")
