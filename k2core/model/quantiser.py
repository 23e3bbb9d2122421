"""A bfloat16 checkpoint made into the family's INT4 form, tensor by tensor: memory does not grow with the model.

Routed experts are rounded to the grid -7 … 7 with one bfloat16 scale per group; everything else is copied byte for byte. The
folder is written beside its place and takes it once it is whole.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from attrs import define, frozen
from numpy.typing import NDArray

from k2core.errors import CheckpointError, InputError
from k2core.model.checkpoint import INDEX, SINGLE, Checkpoint
from k2core.model.config import read_json_object
from k2core.model.finite import require_finite
from k2core.model.int4 import dequantise, quantise
from k2core.model.layout import PROJECTIONS, expert_name, packed_tensors
from k2core.model.quantisation import family_config
from k2core.model.safetensors_reader import SafetensorsFile, TensorEntry

ITEM = {"I32": 4, "I64": 8, "BF16": 2}
Progress = Callable[[str, int, int], None]


@frozen(kw_only=True)
class LayerError:
    """What rounding did to the experts of one layer.

    Attributes:
        relative: root of Σ (w - ŵ)² over Σ w².
        worst, worst_name: of a single matrix, and which.
    """

    layer: int
    relative: float
    worst: float
    worst_name: str


@define
class _Sum:
    error: float = 0.0
    total: float = 0.0
    worst: float = 0.0
    worst_name: str = ""


def quantise_checkpoint(source: Path, target: Path, *, group: int = 32, progress: Progress | None = None) -> list[LayerError]:
    """Write the INT4 form of a checkpoint.

    Args:
        source: its folder.
        target: must not exist, or be empty.
        group: columns per scale.
        progress: called with (what, done, total) per file.

    Returns:
        The error of each layer's experts.

    Raises:
        CheckpointError: the source is malformed, quantised already, without experts, holds a number that is not finite, or a
            shape that the group does not divide; names the tensor.
        InputError: the target is not empty, or cannot be written.
    """
    checkpoint = Checkpoint.open(source)
    _see_quantisable(checkpoint, group)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"cannot write to {target}: it is there already. Give a folder that does not exist.")
    beside = target.with_name(f".{target.name}.partial")
    sums: dict[int, _Sum] = {}
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _write(checkpoint, beside, group, sums, progress)
        if target.exists():
            target.rmdir()
        beside.rename(target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return [
        LayerError(layer=layer, relative=math.sqrt(one.error / (one.total or 1.0)), worst=one.worst, worst_name=one.worst_name)
        for layer, one in sorted(sums.items())
    ]


def _see_quantisable(checkpoint: Checkpoint, group: int) -> None:
    g = checkpoint.geometry
    if not g.moe_layers:
        raise CheckpointError(f"cannot quantise {checkpoint.folder}: it has no routed experts, and nothing else is quantised")
    if checkpoint.experts_are_packed:
        raise CheckpointError(f"cannot quantise {checkpoint.folder}: its experts are INT4 already")
    if group < 8 or group % 8:
        raise InputError(f"cannot quantise in groups of {group}: give a multiple of 8")
    for what, columns in (("gate_proj and up_proj", g.hidden_size), ("down_proj", g.moe_intermediate_size)):
        if columns % group:
            raise CheckpointError(
                f"cannot quantise {checkpoint.folder}: {what} of its experts have {columns} columns, "
                f"which groups of {group} do not divide"
            )


def _write(checkpoint: Checkpoint, folder: Path, group: int, sums: dict[int, _Sum], progress: Progress | None) -> None:
    experts = {
        f"{expert_name(layer, expert, projection)}.weight": layer
        for layer in checkpoint.geometry.moe_layers
        for expert in range(checkpoint.geometry.n_routed_experts)
        for projection in PROJECTIONS
    }
    weight_map: dict[str, str] = {}
    total, files = 0, sorted(checkpoint.files.items())
    for number, (name, file) in enumerate(files, 1):
        entries = _write_file(file, folder / name, experts, group, sums)
        weight_map |= dict.fromkeys(entries, name)
        total += sum(entries.values())
        if progress is not None:
            progress("quantising", number, len(files))
    if SINGLE not in checkpoint.files:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = read_json_object(checkpoint.folder / "config.json")
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    inner["quantization_config"] = family_config(group)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for one in checkpoint.folder.iterdir():
        if one.is_file() and one.name not in (*checkpoint.files, INDEX, "config.json"):
            shutil.copy2(one, folder / one.name)


def _write_file(
    file: SafetensorsFile, path: Path, experts: Mapping[str, int], group: int, sums: dict[int, _Sum]
) -> dict[str, int]:
    """One file; returns the bytes of each tensor in it."""
    stated: list[tuple[str, str, tuple[int, ...]]] = []  # shapes first: their items are the widest
    streamed: list[tuple[str, str, tuple[int, ...]]] = []
    for name, entry in file.entries.items():
        if name in experts:
            words, scales, both = packed_tensors(name.removesuffix(".weight"), (entry.shape[0], entry.shape[1]), group)
            stated.append((both.name, "I64", both.shape))
            streamed += [(words.name, "I32", words.shape), (scales.name, "BF16", scales.shape)]
        else:
            streamed.append((name, entry.dtype, entry.shape))
    header: dict[str, Any] = {"__metadata__": dict(file.metadata)} if file.metadata else {}
    at = 0
    sizes: dict[str, int] = {}
    for name, dtype, shape in stated + streamed:
        size = math.prod(shape) * (ITEM[dtype] if name not in file.entries else _item(file.entries[name]))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        sizes[name], at = size, at + size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, entry in file.entries.items():
            if name in experts:
                out.write(np.array(entry.shape, np.int64).tobytes())
        for name in file.entries:
            if name in experts:
                _write_packed(out, file.view(name), name, group, sums.setdefault(experts[name], _Sum()))
            else:
                for piece in _bytes(file.view(name)):
                    out.write(piece)
            file.give_back(name)
    return sizes


def _write_packed(out: BinaryIO, weight: NDArray[Any], name: str, group: int, into: _Sum) -> None:
    require_finite(weight, name)
    words, scales = quantise(weight, group)
    out.write(words.tobytes())
    out.write(scales.tobytes())
    exact = weight.astype(np.float64)
    error = float(np.square(exact - dequantise(words, scales)).sum())
    total = float(np.square(exact).sum())
    into.error, into.total = into.error + error, into.total + total
    relative = math.sqrt(error / total) if total else 0.0
    if relative >= into.worst:
        into.worst, into.worst_name = relative, name


def _item(entry: TensorEntry) -> int:
    return (entry.end - entry.begin) // max(1, math.prod(entry.shape))


def _bytes(array: NDArray[Any], size: int = 1 << 24) -> Iterator[memoryview]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return (flat[at : at + size].data for at in range(0, len(flat), size))
