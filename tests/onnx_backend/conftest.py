"""Models on the onnx backend; nothing here imports ONNX Runtime before it is known to be there."""

from pathlib import Path

import pytest

from k2core.testing.checkpoints import write_tiny_checkpoint

ODD = {
    "hidden_size": 96, "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": 19, "kv_lora_rank": 21,
    "qk_nope_head_dim": 13, "qk_rope_head_dim": 6, "v_head_dim": 11, "intermediate_size": 50, "n_routed_experts": 7,
    "num_experts_per_tok": 3, "n_shared_experts": 2, "vocab_size": 133, "norm_topk_prob": False, "first_k_dense_replace": 2,
}  # fmt: skip


@pytest.fixture(scope="session", params=["even", "odd"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint: one of round sizes, one where hardly a size is a multiple of anything."""
    overrides = ODD if request.param == "odd" else {}
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), seed=11, **overrides)
