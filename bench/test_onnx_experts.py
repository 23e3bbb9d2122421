"""The onnx backend's routed experts by sizes, one `QMoE` a layer and a `MatMulNBits` a matrix; run with ``-s``.

Answers are compared before anything is timed. Rounds of all are interleaved.
"""

import statistics
import time

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from k2core.interfaces import Routing
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_onnx.backend import OnnxBackend

SIZES = [  # hidden, of an expert, experts, chosen
    (192, 128, 8, 2),
    (192, 128, 64, 8),
    (512, 256, 32, 4),
    (1024, 256, 64, 8),
    (2048, 768, 32, 8),
]
WAYS = (("matmul", "exact"), ("matmul", "w4a8"), ("qmoe", "exact"))
TOKENS = (1, 4, 32)
ROUNDS = 15


@pytest.mark.parametrize(("hidden", "intermediate", "count", "top_k"), SIZES)
def test_speed_of_experts(tmp_path, hidden, intermediate, count, top_k):
    """A line per number of tokens: µs of each way, medians."""
    folder = write_tiny_checkpoint(
        tmp_path, hidden_size=hidden, moe_intermediate_size=intermediate, n_routed_experts=count, num_experts_per_tok=top_k,
        num_hidden_layers=2,
    )  # fmt: skip
    models = {way: OnnxBackend(experts=way[0]).load_experts(folder, numerics=way[1]) for way in WAYS}
    rng = np.random.default_rng(0)
    print(f"\n{count} experts of {hidden} × {intermediate}, {top_k} a token, µs")
    for tokens in TOKENS:
        x = rng.standard_normal((tokens, hidden)).astype(np.float32)
        ids = np.stack([rng.permutation(count)[:top_k] for _ in range(tokens)]).astype(np.int32)
        routing = Routing(expert_ids=ids, weights=rng.random((tokens, top_k)).astype(np.float32))
        expected = models[WAYS[0]].experts(1, x, routing)
        for way, model in models.items():
            error = np.abs(model.experts(1, x, routing) - expected).max() / np.abs(expected).max()
            assert error < (1e-5 if way[1] == "exact" else 0.05)
        times = {way: [] for way in models}
        for _ in range(ROUNDS):
            for way, model in models.items():
                start = time.perf_counter()
                model.experts(1, x, routing)
                times[way].append(time.perf_counter() - start)
        told = (f"{' '.join(way)} {1e6 * statistics.median(found):9,.0f}" for way, found in times.items())
        print(f"{tokens:4} tokens   " + "   ".join(told))
