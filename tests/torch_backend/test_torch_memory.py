"""Memory of large checkpoints: the file once, and no more of the experts than a limit allows."""

import pytest

pytest.importorskip("torch")

from k2core.testing.memory import measure_peak, write_large_checkpoint  # only where PyTorch is installed
from k2core_torch.backend import TorchBackend


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A checkpoint of more than 300 MB."""
    return write_large_checkpoint(tmp_path_factory.mktemp("memory"), num_hidden_layers=6)


@pytest.mark.soak
@pytest.mark.parametrize("way", ["fast", "eager"])
@pytest.mark.parametrize("numerics", TorchBackend.numerics)
def test_a_larger_file_is_held_once(larger, numerics, way, capsys, monkeypatch):
    """Loading and running takes at most 1.10 times a file of more than 300 MB, on both ways and with both numerics."""
    monkeypatch.setenv("K2CORE_TORCH_PATH", way)
    peak = measure_peak("torch", larger, numerics=numerics)
    with capsys.disabled():
        print(f"\n  {way} {numerics}: {peak}", end="")
    assert peak.file_bytes >= 300e6 and peak.info["kernel_path"] == way
    assert peak.share <= 1.10


@pytest.mark.soak
def test_a_limit_leaves_experts_in_the_file(larger, capsys):
    """With a limit of memory the file's pages of experts are given back: most of the file is not resident."""
    peak = measure_peak("torch", larger, expert_bytes=20 << 20)
    with capsys.disabled():
        print(f"\n  limit of 20 MiB: {peak}", end="")
    assert peak.share <= 0.75
