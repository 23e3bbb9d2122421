"""A bfloat16 checkpoint made INT4: what is rounded and by how much, what is copied, what is refused without a trace."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from k2core.errors import CheckpointError, InputError
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.int4 import PackedMatrix, quantise
from k2core.model.layout import PROJECTIONS, plain_tensors
from k2core.model.quantiser import quantise_checkpoint
from k2core.testing.checkpoints import tiny_config, tiny_tensors, write_safetensors, write_tiny_checkpoint


@pytest.mark.parametrize("shards", [1, 3])
def test_experts_are_rounded_and_the_rest_is_copied(tmp_path, shards):
    """Every expert is the quantiser's, within half a step; every other tensor and file is the same, byte for byte."""
    source = write_tiny_checkpoint(tmp_path / "plain", seed=1, quantised=False, shards=shards)
    (source / "tokenizer_config.json").write_text("{}")
    errors = quantise_checkpoint(source, tmp_path / "int4")
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "int4")
    assert after.experts_are_packed and len(after.files) == shards
    for one in plain_tensors(after.geometry):
        np.testing.assert_array_equal(after.tensor(one.name), before.tensor(one.name))
    lost, kept = {}, {}
    for layer in after.geometry.moe_layers:
        for expert in range(after.geometry.n_routed_experts):
            for projection in PROJECTIONS:
                exact, packed = before.expert(layer, expert, projection), after.expert(layer, expert, projection)
                assert isinstance(packed, PackedMatrix)
                words, scale = quantise(exact)
                np.testing.assert_array_equal(packed.packed, words)
                np.testing.assert_array_equal(packed.scale, scale)
                difference = exact.astype(np.float64) - packed.dequantise()
                step = np.repeat(scale.astype(np.float64), 32, axis=1)
                assert (np.abs(difference) <= step * (0.5 + 7 * 2.0**-8)).all()
                lost[layer] = lost.get(layer, 0.0) + np.square(difference).sum()
                kept[layer] = kept.get(layer, 0.0) + np.square(exact.astype(np.float64)).sum()
    assert {one.layer: one.relative for one in errors} == pytest.approx(
        {layer: float(np.sqrt(lost[layer] / kept[layer])) for layer in lost}
    )
    assert all(one.worst >= one.relative > 0.05 and "mlp.experts." in one.worst_name for one in errors)
    assert (tmp_path / "int4" / "tokenizer_config.json").read_text() == "{}"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["int4", "plain"]


def test_a_backend_loads_what_was_made(tmp_path):
    """The new folder is a checkpoint like any other: the oracle and a backend agree on it."""
    from k2core.interfaces import SequenceInput, Want
    from k2core.oracle.forward import forward
    from k2core_numba.backend import NumbaBackend

    quantise_checkpoint(write_tiny_checkpoint(tmp_path / "plain", seed=2, quantised=False), tmp_path / "int4")
    model = NumbaBackend().load(tmp_path / "int4")
    step = model.forward([SequenceInput(handle=model.new_sequence(), token_ids=[1, 2, 3])], Want(logits="all"))
    assert np.abs(step.logits - forward(Checkpoint.open(tmp_path / "int4"), [1, 2, 3]).logits).max() <= 1e-3


def damaged(folder):
    """A plain checkpoint with a NaN in one expert."""
    config = tiny_config(quantised=False)
    tensors = tiny_tensors(Geometry.from_config(config), seed=3)
    tensors["model.layers.2.mlp.experts.1.up_proj.weight"][3, 4] = ml_dtypes.bfloat16(np.nan)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize(
    ("make", "group", "kind", "complaint"),
    [
        (lambda place: write_tiny_checkpoint(place), 32, CheckpointError, "INT4 already"),
        (damaged, 32, CheckpointError, "model.layers.2.mlp.experts.1.up_proj.weight"),
        (lambda place: write_tiny_checkpoint(place, quantised=False), 24, CheckpointError, "64 columns, which groups of 24"),
        (lambda place: write_tiny_checkpoint(place, quantised=False), 12, InputError, "groups of 12: give a multiple of 8"),
        (
            lambda place: write_tiny_checkpoint(place, quantised=False, first_k_dense_replace=3),
            32,
            CheckpointError,
            "no routed experts",
        ),
        (lambda place: place, 32, CheckpointError, "no such folder"),
    ],
)
def test_what_cannot_be_quantised_is_refused_without_a_trace(tmp_path, make, group, kind, complaint):
    """One line, and nothing half-written is left."""
    source = make(tmp_path / "source")
    with pytest.raises(kind, match=complaint):
        quantise_checkpoint(source, tmp_path / "target", group=group)
    assert [one.name for one in tmp_path.iterdir() if one != source] == []


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    """A target with something in it is refused and stays as it is; an empty one is taken."""
    source = write_tiny_checkpoint(tmp_path / "plain", quantised=False)
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="there already"):
        quantise_checkpoint(source, target)
    assert [one.read_text() for one in target.iterdir()] == ["mine"]
    (target / "mine.txt").unlink()
    quantise_checkpoint(source, target)
    assert Checkpoint.open(target).experts_are_packed


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """Where the system has no room, that is the error, and what was written so far is gone."""
    source = write_tiny_checkpoint(tmp_path / "plain", quantised=False)
    (source / "extra.bin").write_bytes(b"x")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(InputError, match="No space left on device"):
        quantise_checkpoint(source, tmp_path / "target")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["plain"]
