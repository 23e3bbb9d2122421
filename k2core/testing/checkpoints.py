"""Small random checkpoints in exactly the real layout, for tests of backends and of what stands on them. NumPy only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from k2core.model.config import Geometry
from k2core.model.int4 import quantise
from k2core.model.layout import PROJECTIONS, Expected, expert_name, expert_shape, is_packed, plain_tensors
from k2core.model.safetensors_reader import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tiny_config(*, quantised: bool = True, **overrides: Any) -> dict[str, Any]:
    """The ``config.json`` of a tiny model; *overrides* replace top-level keys."""
    config: dict[str, Any] = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "kimi_k2",
        "attention_bias": False,
        "bos_token_id": 64,
        "eos_token_id": 66,
        "pad_token_id": 319,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "kv_lora_rank": 32,
        "max_position_embeddings": 512,
        "moe_intermediate_size": 32,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 2,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.827,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "v_head_dim": 16,
        "vocab_size": 320,
    }
    if quantised:
        config["quantization_config"] = quantization_config()
    return config | overrides


def quantization_config(group_size: int = 32) -> dict[str, Any]:
    """The family's ``quantization_config``: routed experts only, INT4, symmetric, in groups."""
    weights: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": group_size,
        "num_bits": 4,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def tiny_tensors(geometry: Geometry, *, seed: int) -> dict[str, NDArray[Any]]:
    """Random tensors of every name that *geometry* asks for, scaled so that activations neither die nor explode."""
    random = np.random.default_rng(seed)
    tensors = {expected.name: _random(expected, random) for expected in plain_tensors(geometry)}
    for layer in geometry.moe_layers:
        for expert in range(geometry.n_routed_experts):
            for projection in PROJECTIONS:
                name, (rows, cols) = expert_name(layer, expert, projection), expert_shape(geometry, projection)
                weight = (random.standard_normal((rows, cols)) * cols**-0.5).astype(np.float32)
                if is_packed(geometry, name):
                    assert geometry.quantisation is not None
                    packed, scale = quantise(weight, geometry.quantisation.group_size)
                    tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"] = packed, scale
                    tensors[f"{name}.weight_shape"] = np.array([rows, cols], np.int64)
                else:
                    tensors[f"{name}.weight"] = weight.astype(ml_dtypes.bfloat16)
    return tensors


def write_tiny_checkpoint(folder: Path, *, seed: int = 0, quantised: bool = True, shards: int = 1, **overrides: Any) -> Path:
    """Write a valid tiny random K2 checkpoint.

    Args:
        folder: created if missing.
        seed: of the weights; the same seed gives the same bytes.
        quantised: routed experts as INT4 group 32, else bfloat16.
        shards: number of files; more than one comes with an index.
        overrides: keys of config.json to replace, e.g. ``num_hidden_layers=2``.

    Returns:
        *folder*.
    """
    config = tiny_config(quantised=quantised, **overrides)
    tensors = tiny_tensors(Geometry.from_config(config), seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard::shards]}
        weight_map |= dict.fromkeys(part, file)
        write_safetensors(folder / file, part)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> Path:
    """Write arrays as one safetensors file, widest items first so that every tensor is aligned.

    Returns:
        *path*.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        tensor = tensors[name]
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            stream.write(np.ascontiguousarray(tensors[name]).tobytes())
    return path


def _random(expected: Expected, random: np.random.Generator) -> NDArray[Any]:
    shape = expected.shape
    if expected.name.endswith("norm.weight"):
        return (1 + 0.1 * random.standard_normal(shape)).astype(ml_dtypes.bfloat16)
    if expected.name.endswith("e_score_correction_bias"):
        return (0.1 * random.standard_normal(shape)).astype(np.float32)
    scale = 1.0 if expected.name == "model.embed_tokens.weight" else shape[-1] ** -0.5
    return (scale * random.standard_normal(shape)).astype(ml_dtypes.bfloat16)
