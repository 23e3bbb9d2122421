"""Small random checkpoints in exactly the real layout, for tests of backends and of what stands on them. NumPy only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from k2core.conformance.models import model_config
from k2core.model.config import Geometry
from k2core.model.int4 import quantise
from k2core.model.layout import PROJECTIONS, Expected, expert_name, expert_shape, is_packed, plain_tensors
from k2core.model.quantisation import family_config
from k2core.model.safetensors_reader import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tiny_config(*, quantised: bool = True, **overrides: Any) -> dict[str, Any]:
    """The ``config.json`` of a tiny model, ``specs/k2core_specs/models/tiny.toml``; *overrides* replace top-level keys."""
    config = model_config("tiny")
    if quantised:
        config["quantization_config"] = family_config()
    return config | overrides


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
