"""Memory while loading and running: anonymous pages and resident pages of files, against the file's size."""

import pytest

from k2core.testing.memory import measure_peak, write_large_checkpoint

FAR = 10**12  # bytes, more than any of these takes: experts are read when they are needed, and all stay
MANY = {"num_experts_per_tok": 8}  # so that some tokens visit nearly all experts
SOAK = {"hidden_size": 2048, "moe_intermediate_size": 1024, "num_hidden_layers": 8, **MANY}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of about 240 MB."""
    return write_large_checkpoint(tmp_path_factory.mktemp("memory"), **MANY)


def told(peak, capsys):
    """Print it beside the test."""
    with capsys.disabled():
        print(f"\n  {peak}", end="")
    return peak


@pytest.mark.parametrize("options", [{}, {"expert_bytes": FAR}], ids=["at-once", "when-needed"])
def test_loading_and_running_takes_little_more_than_the_file(large, options, capsys):
    """The peak is at most 1.10 times the file beyond the process's own, whether experts are read at once or when needed."""
    assert told(measure_peak("numba", large, tokens=64, **options), capsys).share <= 1.10


def test_a_model_larger_than_its_memory_runs(large, capsys):
    """With room for a quarter of the experts the peak falls by what they would take, and hits and misses are told."""
    limit = 50_000_000
    every = int(measure_peak("numba", large, expert_bytes=FAR).info["expert_bytes"])
    peak = told(measure_peak("numba", large, expert_bytes=limit), capsys)
    assert peak.share <= (peak.file_bytes - every + limit) / peak.file_bytes + 0.10
    assert int(peak.info["expert_bytes"]) <= limit
    assert int(peak.info["expert_hits"]) >= 0
    assert int(peak.info["expert_misses"]) > limit / (every / 192)


@pytest.mark.soak
def test_a_large_model_takes_little_more_than_its_file(tmp_path, capsys):
    """The same for 1.8 GB, whose experts are read when they are needed: all of them, and as many as 300 MB hold."""
    folder = write_large_checkpoint(tmp_path, **SOAK)
    for limit, most in ((None, 1.10), (300_000_000, 0.40)):
        peak = told(measure_peak("numba", folder, tokens=160, expert_bytes=limit), capsys)
        assert peak.file_bytes > 1.5e9
        assert peak.share <= most
        assert "expert_misses" in peak.info
