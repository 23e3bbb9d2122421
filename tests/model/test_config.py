"""Geometry: what is read from config.json, what is derived from it, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k2core.errors import CheckpointError
from k2core.model.config import Geometry
from k2core.model.quantisation import family_config
from k2core.testing.checkpoints import tiny_config

POINTS = [0, 8, 9, 12, 19, 20, 31]
REAL_SCALING = {
    "type": "yarn",
    "factor": 64.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def real_rope(**changes: object) -> Geometry:
    """A geometry with the released model's head sizes and rotation."""
    heads: dict[str, Any] = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512, "rope_theta": 50000.0}
    return Geometry.from_config(tiny_config(**heads, num_hidden_layers=61, rope_scaling=REAL_SCALING | changes))


class TestDerived:
    """Figures computed from the released model's constants."""

    def test_inverse_frequencies_with_beta_fast_1(self) -> None:
        """A step: pairs 0 to 19 untouched, 20 to 31 divided by the factor."""
        expected = [1, 0.066874, 0.0476886, 0.0172936, 0.00162176, 1.80702e-05, 4.38221e-07]

        assert real_rope().inv_freq[POINTS] == pytest.approx(expected, rel=2e-6)

    def test_inverse_frequencies_with_beta_fast_32(self) -> None:
        """A ramp from pair 8 to pair 20: beta_fast comes from the file."""
        expected = [1, 0.066874, 0.0437767, 0.0116192, 0.000158375, 1.80702e-05, 4.38221e-07]

        assert real_rope(beta_fast=32.0).inv_freq[POINTS] == pytest.approx(expected, rel=5e-6)

    @pytest.mark.parametrize(("factor", "scale"), [(64.0, 0.1446796), (32.0, 0.1308608), (1.0, 192**-0.5)])
    def test_softmax_scale(self, factor: float, scale: float) -> None:
        """The scale carries the squared YaRN magnitude, and cos and sin carry none."""
        geometry = real_rope(factor=factor)

        assert geometry.softmax_scale == pytest.approx(scale, rel=1e-6)
        assert geometry.rope_multiplier == 1.0

    def test_cache_values(self) -> None:
        """576 values per token and layer: 70,272 bytes per token in bfloat16."""
        geometry = real_rope()

        assert geometry.cache_values_per_layer == 576
        assert geometry.cache_values_per_token * 2 == 70_272

    def test_without_scaling(self) -> None:
        """Plain rotary positions: powers of theta and the plain scale."""
        geometry = Geometry.from_config(tiny_config(rope_scaling=None))

        assert geometry.rope_scaling is None
        assert geometry.softmax_scale == 24**-0.5
        np.testing.assert_allclose(geometry.inv_freq, [1, 0.1, 0.01, 0.001], rtol=1e-12)

    def test_newer_key_for_the_rotation(self) -> None:
        """`rope_parameters` with theta inside means the same as `rope_theta` and `rope_scaling`."""
        old = tiny_config()
        new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
        scaling = {("rope_type" if key == "type" else key): value for key, value in old["rope_scaling"].items()}
        new["rope_parameters"] = {**scaling, "rope_theta": old["rope_theta"]}

        assert Geometry.from_config(new) == Geometry.from_config(old)


class TestLatentNorm:
    """The eps of the latent norms: the file's own key wins over either convention."""

    @pytest.mark.parametrize(
        ("key", "convention", "eps"),
        [(None, "config", 1e-5), (None, "class_default", 1e-6), (3e-6, "config", 3e-6), (3e-6, "class_default", 3e-6)],
    )
    def test_eps(self, key: float | None, convention: str, eps: float) -> None:
        """Each combination of key and convention."""
        config = tiny_config()
        config |= {} if key is None else {"latent_norm_eps": key}

        assert Geometry.from_config(config, latent_norm=convention).latent_norm_eps == eps  # type: ignore[arg-type]


def test_real_config(assets: Path) -> None:
    """The family's own file: the backbone lies under text_config, and only routed experts are packed."""
    geometry = Geometry.read(assets / "kimi")

    assert (geometry.hidden_size, geometry.num_hidden_layers, geometry.n_routed_experts) == (7168, 61, 384)
    assert geometry.rope_scaling is not None and geometry.rope_scaling.beta_fast == 32.0
    assert geometry.moe_layers == range(1, 61) and geometry.eos_token_ids == (163586,)
    assert geometry.quantisation is not None
    packed = {
        "model.layers.7.mlp.experts.12.gate_proj": True,
        "model.layers.7.mlp.shared_experts.gate_proj": False,
        "model.layers.0.mlp.down_proj": False,
        "model.layers.3.self_attn.o_proj": False,
        "lm_head": False,
    }
    assert {name: geometry.quantisation.covers(name) for name in packed} == packed


REFUSED = [
    ({"model_type": "llama"}, "model_type"),
    ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
    ({"n_group": 8}, "n_group"),
    ({"topk_group": 4}, "topk_group"),
    ({"scoring_func": "softmax"}, "scoring_func"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ({"num_key_value_heads": 1}, "num_key_value_heads"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 72}, "hidden_size"),
    ({"moe_intermediate_size": 40}, "moe_intermediate_size"),
    ({"hidden_size": 10**40}, "hidden_size"),
    ({"vocab_size": "many"}, "vocab_size"),
    ({"q_lora_rank": None}, "q_lora_rank"),
    ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ({"first_k_dense_replace": 4}, "first_k_dense_replace"),
    ({"qk_rope_head_dim": 7}, "qk_rope_head_dim"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"norm_topk_prob": 1}, "norm_topk_prob"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type"),
    ({"rope_scaling": []}, "rope_scaling"),
    ({"rope_scaling": REAL_SCALING | {"beta_fast": 0.5}}, "rope_scaling.beta_fast"),
    ({"rope_scaling": {"type": "yarn", "factor": 64.0}}, "rope_scaling.original_max_position_embeddings"),
    ({"eos_token_id": [1, "x"]}, "eos_token_id"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config.quant_method"),
    ({"quantization_config": family_config(12)}, "group_size"),
    ({"quantization_config": family_config() | {"ignore": ["re:("]}}, "quantization_config.ignore"),
]


@pytest.mark.parametrize(("change", "key"), REFUSED, ids=[f"{key}-{number}" for number, (_, key) in enumerate(REFUSED)])
def test_refused(change: dict[str, object], key: str) -> None:
    """A wrong key gives one line with the file and the key."""
    with pytest.raises(CheckpointError) as caught:
        Geometry.from_config(tiny_config() | change, where="folder/config.json")

    line = str(caught.value)
    assert line.startswith("folder/config.json: key '") and key in line and "\n" not in line


@pytest.mark.parametrize("key", ["hidden_size", "rope_theta", "norm_topk_prob", "rms_norm_eps", "kv_lora_rank", "model_type"])
def test_missing_key(key: str) -> None:
    """A missing key is named as missing."""
    config = tiny_config()
    del config[key]

    with pytest.raises(CheckpointError, match=f"key '{key}' is missing"):
        Geometry.from_config(config)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_unreadable_file(tmp_path: Path, content: bytes) -> None:
    """Whatever is no JSON object gives one line with the file's path."""
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        Geometry.read(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    """A folder without config.json says so."""
    with pytest.raises(CheckpointError, match="no such file"):
        Geometry.read(tmp_path / "config.json")


def test_text_config_errors_name_their_place() -> None:
    """An error inside text_config names the whole path."""
    config = json.loads(json.dumps({"text_config": tiny_config(hidden_size=-1)}))

    with pytest.raises(CheckpointError, match=r"'text_config\.hidden_size' is -1"):
        Geometry.from_config(config)
