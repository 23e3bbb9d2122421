"""The family's reference in PyTorch: transformers' DeepseekV3 on exactly dequantised weights."""

import warnings

import numpy as np
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from k2core.model.int4 import PackedMatrix
from k2core.model.layout import plain_tensors

GIVEN = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "n_shared_experts", "n_routed_experts", "routed_scaling_factor", "kv_lora_rank", "q_lora_rank",
    "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim", "n_group", "topk_group", "num_experts_per_tok", "hidden_act",
    "first_k_dense_replace", "norm_topk_prob", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "attention_bias",
)  # fmt: skip


def reference_model(checkpoint, config, dtype=torch.float32):
    """The model in *dtype*, every weight exactly code * scale; norms of latents keep the class's own eps of 1e-6."""
    scaling = {key: value for key, value in config["rope_scaling"].items() if key != "type"}
    options = DeepseekV3Config(
        **{key: config[key] for key in GIVEN},
        rope_parameters={"rope_type": "yarn", "rope_theta": config["rope_theta"], **scaling},
        rope_interleave=True,
        num_mtp_layers=0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    options._attn_implementation = "eager"
    options._experts_implementation = "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DeepseekV3ForCausalLM(options).to(dtype).eval()
    state = {one.name: tensor(checkpoint.tensor(one.name), dtype) for one in plain_tensors(checkpoint.geometry)}
    for layer in checkpoint.geometry.moe_layers:
        gate, up, down = (
            torch.stack([tensor(plain(checkpoint.expert(layer, e, name)), dtype) for e in range(config["n_routed_experts"])])
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat((gate, up), 1)
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("rotary" in name for name in missing), (missing, unexpected)
    return model


def plain(matrix):
    """A matrix as plain numbers."""
    return matrix.dequantise() if isinstance(matrix, PackedMatrix) else np.asarray(matrix)


def tensor(array, dtype):
    """A copy as a tensor."""
    return torch.from_numpy(np.array(array).astype(np.float32)).to(dtype)


@torch.inference_mode()
def logits_of(model, ids):
    """Logits behind every token: (tokens, vocab)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def greedy_of(model, ids, count):
    """The most probable tokens that follow, and by how much each led: computed without a cache."""
    found, leads, ids = [], [], list(ids)
    for _ in range(count):
        last = logits_of(model, ids)[-1]
        best = np.partition(last, -2)[-2:]
        leads.append(float(best[1] - best[0]))
        found.append(int(last.argmax()))
        ids.append(found[-1])
    return found, leads
