"""Checkpoint folders: single file and shards, packed and plain, and every way to be incomplete."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from k2core.errors import CheckpointError
from k2core.model.checkpoint import Checkpoint
from k2core.model.int4 import PackedMatrix
from k2core.model.safetensors_reader import SafetensorsFile
from k2core.testing.checkpoints import tiny_config, write_safetensors, write_tiny_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid checkpoint in one file; tests do not change it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("whole"), seed=5)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same weights in three shards."""
    return write_tiny_checkpoint(tmp_path / "sharded", seed=5, shards=3)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace tensors of a folder's only file."""
    path = folder / "model.safetensors"
    file = SafetensorsFile.open(path)
    tensors = {name: file.view(name).copy() for name in file.entries}
    del file
    change(tensors)
    path.unlink()
    write_safetensors(path, tensors)


def test_shards_hold_the_same(whole: Path, sharded: Path) -> None:
    """One file or three: same names, same bytes; the fingerprints differ because the files do."""
    one, three = Checkpoint.open(whole), Checkpoint.open(str(sharded))

    assert one.names() == three.names() and one.tensor_bytes == three.tensor_bytes
    for name in one.names():
        assert one.tensor(name).tobytes() == three.tensor(name).tobytes()
    assert one.fingerprint() != three.fingerprint()
    assert one.size_bytes == (whole / "model.safetensors").stat().st_size


def test_experts(whole: Path, tmp_path: Path) -> None:
    """A packed expert is what the same weights are when plain, up to INT4; down_proj has the shape turned."""
    packed = Checkpoint.open(whole)
    plain = Checkpoint.open(write_tiny_checkpoint(tmp_path, seed=5, quantised=False))
    down, reference = packed.expert(2, 3, "down_proj"), plain.expert(2, 3, "down_proj")

    assert packed.experts_are_packed and not plain.experts_are_packed
    assert isinstance(down, PackedMatrix) and down.shape == (64, 32) and down.packed.shape == (64, 4)
    assert isinstance(reference, np.ndarray) and reference.dtype == ml_dtypes.bfloat16
    error = np.abs(down.dequantise() - reference.astype(np.float32))
    assert error.max() <= np.abs(reference.astype(np.float32)).max() * 0.51 / 7


@pytest.mark.parametrize(("layer", "expert"), [(0, 0), (3, 0), (1, 4), (1, -1)])
def test_no_such_expert(whole: Path, layer: int, expert: int) -> None:
    """Asking for an expert of a dense layer or beyond the last names the valid range."""
    with pytest.raises(CheckpointError, match="layers 1 to 2 have experts 0 to 3"):
        Checkpoint.open(whole).expert(layer, expert, "gate_proj")


def test_tensor_checks_what_is_asked(whole: Path) -> None:
    """A dtype or shape that differs is an error that names file, tensor and both."""
    checkpoint = Checkpoint.open(whole)

    assert checkpoint.tensor("model.norm.weight", ("float32", ml_dtypes.bfloat16), (64,)).shape == (64,)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor 'model\.norm\.weight' is BF16 \(64,\), expected float32"
    ):
        checkpoint.tensor("model.norm.weight", np.float32)
    with pytest.raises(CheckpointError, match=r"expected shape \(65,\)"):
        checkpoint.tensor("model.norm.weight", None, (65,))
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.nrom\.weight'"):
        checkpoint.tensor("model.nrom.weight")


def test_fingerprint_sees_every_bit(copy: Path) -> None:
    """One flipped bit of a weight, or of the config, changes the fingerprint; opening again does not."""
    before = Checkpoint.open(copy).fingerprint()
    assert Checkpoint.open(copy).fingerprint() == before
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(content)

    changed = Checkpoint.open(copy).fingerprint()
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")

    assert len({before, changed, Checkpoint.open(copy).fingerprint()}) == 3


def test_int32_shapes_and_minus_eight_are_accepted(copy: Path) -> None:
    """weight_shape may be int32, and a code of -8 is a weight like any other."""
    name = "model.layers.1.mlp.experts.0.gate_proj"

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{name}.weight_shape"] = tensors[f"{name}.weight_shape"].astype(np.int32)
        tensors[f"{name}.weight_packed"][0, 0] = 0

    rewrite(copy, change)
    matrix = Checkpoint.open(copy).expert(1, 0, "gate_proj")

    assert isinstance(matrix, PackedMatrix)
    assert (matrix.dequantise()[0, :8] == -8 * matrix.scale[0, 0].astype(np.float32)).all()


def test_further_tensors_are_left_alone(copy: Path) -> None:
    """Tensors that the forward does not need (a next-token head) do no harm."""
    rewrite(copy, lambda tensors: tensors.update({"model.layers.3.extra.weight": np.zeros(2, np.float32)}))

    assert "model.layers.3.extra.weight" in Checkpoint.open(copy).names()


EXPERT = "model.layers.1.mlp.experts.2.up_proj"
DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda t: t.pop("model.norm.weight"), "no tensor 'model.norm.weight'"),
    "missing scale": (lambda t: t.pop(f"{EXPERT}.weight_scale"), "weight_scale"),
    "missing shape": (lambda t: t.pop(f"{EXPERT}.weight_shape"), "weight_shape"),
    "wrong dtype": (lambda t: t.update({"lm_head.weight": np.zeros((320, 64), np.float16)}), "is F16"),
    "wrong shape": (
        lambda t: t.update({"lm_head.weight": np.zeros((64, 320), np.float32)}),
        r"expected BF16 or F32 \(320, 64\)",
    ),
    "wrong words": (lambda t: t.update({f"{EXPERT}.weight_packed": np.zeros((32, 7), np.int32)}), r"\(32, 8\)"),
    "stated shape": (lambda t: t.update({f"{EXPERT}.weight_shape": np.array([32, 72])}), r"says \(32, 72\)"),
    "negative shape": (lambda t: t.update({f"{EXPERT}.weight_shape": np.array([-32, -64])}), "says"),
}


@pytest.mark.parametrize(("change", "says"), DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_tensors(copy: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    """Opening fails at once, with the folder or file and the tensor."""
    rewrite(copy, change)

    with pytest.raises(CheckpointError, match=says) as caught:
        Checkpoint.open(copy)

    assert str(copy) in str(caught.value)


def test_packed_without_quantization_config(copy: Path) -> None:
    """Packed experts whose config does not say so are named as that."""
    (copy / "config.json").write_text(json.dumps(tiny_config(quantised=False)))

    with pytest.raises(CheckpointError, match=r"it is packed there, but config\.json has no quantization_config"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        5,
        "weights.bin",
        ".hidden.safetensors",
        "a\\b.safetensors",
    ],
)
def test_index_cannot_leave_the_folder(sharded: Path, shard: object) -> None:
    """A shard's name that is more than a plain file name is refused before anything is opened."""
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded.parent / "outside.safetensors")

    with pytest.raises(CheckpointError, match=r"tensor 'model\.norm\.weight' lies in"):
        Checkpoint.open(sharded)


def test_broken_index(sharded: Path) -> None:
    """A missing shard, a misplaced tensor and an index without a map are named."""
    text = (sharded / INDEX).read_text()
    index = json.loads(text)
    place = index["weight_map"]["model.norm.weight"]
    other = next(shard for shard in index["weight_map"].values() if shard != place)
    (sharded / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"model.norm.weight": other}}))
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.norm\.weight', which"):
        Checkpoint.open(sharded)

    (sharded / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="'weight_map' is missing"):
        Checkpoint.open(sharded)

    (sharded / INDEX).write_text(text)
    (sharded / place).unlink()
    with pytest.raises(CheckpointError, match=f"{place} is missing"):
        Checkpoint.open(sharded)


def test_missing_folder_and_files(tmp_path: Path, copy: Path) -> None:
    """No folder, no weights: one line each."""
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "absent")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint.open(copy)


def test_truncated_weights(copy: Path) -> None:
    """A download that broke off is refused on opening."""
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(content[:-100])

    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint.open(copy)


def test_same_seed_same_bytes(whole: Path, tmp_path: Path) -> None:
    """The writer is deterministic, and a seed matters."""
    again = write_tiny_checkpoint(tmp_path / "again", seed=5)
    other = write_tiny_checkpoint(tmp_path / "other", seed=6)

    assert Checkpoint.open(again).fingerprint() == Checkpoint.open(whole).fingerprint()
    assert Checkpoint.open(other).fingerprint() != Checkpoint.open(whole).fingerprint()
