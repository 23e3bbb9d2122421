"""Sizes of the embedded model and their Hugging Face config.json form.

Field names and meaning: the public config.json of Kimi-K2-Thinking (DeepSeek-V3 architecture).
"""

import math
from typing import Any

import torch
from attrs import frozen
from torch import Tensor


@frozen(kw_only=True)
class Geometry:
    """Everything that fixes the model's shapes and its forward formulas."""

    vocab_size: int = 3072
    hidden_size: int = 192
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    intermediate_size: int = 512
    n_routed_experts: int = 16
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    moe_intermediate_size: int = 128
    num_attention_heads: int = 4
    q_lora_rank: int = 96
    kv_lora_rank: int = 96
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 32
    v_head_dim: int = 64
    rope_theta: float = 10000.0
    rope_factor: float = 4.0
    rope_original_max: int = 1024
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_mscale: float = 1.0
    rope_mscale_all_dim: float = 1.0
    max_position_embeddings: int = 4096
    routed_scaling_factor: float = 1.5
    rms_norm_eps: float = 1e-5

    @property
    def softmax_scale(self) -> float:
        """(nope + rope)^-1/2 times the squared YaRN magnitude."""
        return float((self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * self._magnitude(self.rope_mscale_all_dim) ** 2)

    def _magnitude(self, coefficient: float) -> float:
        return 1.0 if self.rope_factor <= 1 else 0.1 * coefficient * math.log(self.rope_factor) + 1.0

    def rotations(self) -> Tensor:
        """(max_position_embeddings, qk_rope_head_dim / 2) complex64: each position's YaRN rotation of pairs (2i, 2i + 1)."""
        dim, base = self.qk_rope_head_dim, self.rope_theta

        def corrected(turns: float) -> float:
            return dim * math.log(self.rope_original_max / (2 * math.pi * turns)) / (2 * math.log(base))

        low = max(math.floor(corrected(self.rope_beta_fast)), 0)
        high = float(min(math.ceil(corrected(self.rope_beta_slow)), dim - 1))
        high += 0.001 if high == low else 0.0
        index = torch.arange(dim // 2, dtype=torch.float64)
        ramp = ((index - low) / (high - low)).clamp(0, 1)
        frequency = base ** (-2 * index / dim) * ((1 - ramp) + ramp / self.rope_factor)
        angle = torch.outer(torch.arange(self.max_position_embeddings, dtype=torch.float64), frequency)
        ratio = self._magnitude(self.rope_mscale) / self._magnitude(self.rope_mscale_all_dim)
        return torch.polar(torch.full_like(angle, ratio), angle).to(torch.complex64)

    def config(self, *, bos_token_id: int, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
        """The config.json of a Hugging Face folder with INT4 group-32 routed experts."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "kimi_k2",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "aux_loss_alpha": 0.001,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "ep_size": 1,
            "first_k_dense_replace": self.first_k_dense_replace,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "kv_lora_rank": self.kv_lora_rank,
            "latent_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "moe_intermediate_size": self.moe_intermediate_size,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": self.n_routed_experts,
            "n_shared_experts": self.n_shared_experts,
            "norm_topk_prob": True,
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_attention_heads,
            "num_nextn_predict_layers": 0,
            "pad_token_id": pad_token_id,
            "pretraining_tp": 1,
            "q_lora_rank": self.q_lora_rank,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "quantization_config": _quantization_config(),
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": {
                "type": "yarn",
                "factor": self.rope_factor,
                "original_max_position_embeddings": self.rope_original_max,
                "beta_fast": self.rope_beta_fast,
                "beta_slow": self.rope_beta_slow,
                "mscale": self.rope_mscale,
                "mscale_all_dim": self.rope_mscale_all_dim,
            },
            "rope_theta": self.rope_theta,
            "routed_scaling_factor": self.routed_scaling_factor,
            "scoring_func": "sigmoid",
            "seq_aux": True,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "v_head_dim": self.v_head_dim,
            "vocab_size": self.vocab_size,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Geometry":
        """The geometry a config.json describes (inverse of `config`)."""
        rope = config["rope_scaling"]
        own = {name: config[name] for name in cls.__annotations__ if name in config}
        return cls(
            **own,
            rope_factor=rope["factor"],
            rope_original_max=rope["original_max_position_embeddings"],
            rope_beta_fast=rope["beta_fast"],
            rope_beta_slow=rope["beta_slow"],
            rope_mscale=rope["mscale"],
            rope_mscale_all_dim=rope["mscale_all_dim"],
        )


def _quantization_config() -> dict[str, Any]:
    return {
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": 32,
                    "num_bits": 4,
                    "observer": "minmax",
                    "observer_kwargs": {},
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
