"""Damage that is found late: an expert is read when it is first needed, behind layers that have run already."""

import numpy as np
import pytest

from k2core.errors import CheckpointError, K2Error
from k2core.interfaces import Routing, SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_numba.backend import NumbaBackend

NAN = b"\xc0\x7f"  # of bfloat16
EXPERTS = 6
SCALE = "model.layers.2.mlp.experts.3.up_proj.weight_scale"


def spoil(folder, name):
    """Write a NaN over a tensor's first value; gives what was there."""
    entry = Checkpoint.open(folder)._places[name].entries[name]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.begin)
        before = file.read(2)
        file.seek(entry.begin)
        file.write(NAN)
    return before


@pytest.fixture
def damaged(tmp_path):
    """A checkpoint whose layer 2 has a damaged expert, and one that is whole."""
    whole = write_tiny_checkpoint(tmp_path / "whole", seed=1, n_routed_experts=EXPERTS)
    folder = write_tiny_checkpoint(tmp_path / "damaged", seed=1, n_routed_experts=EXPERTS)
    spoil(folder, SCALE)
    return folder, whole


def ask(experts, ids):
    """The sum of two experts of layer 2."""
    x = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    return experts.experts(2, x, Routing(expert_ids=np.array([ids]), weights=np.ones((1, 2), np.float32)))


@pytest.mark.parametrize("slots", [1, 2, 3, 12])
def test_a_damaged_expert_leaves_the_others_right(damaged, slots):
    """Reading it is an error that names its tensor, as often as it is tried; whoever else lies in the cache keeps its bits."""
    folder, whole = damaged
    expected = NumbaBackend().load_experts(whole)
    bytes_of_one = int(expected.info()["expert_bytes"]) // (2 * EXPERTS)
    experts = NumbaBackend().load_experts(folder, expert_bytes=slots * bytes_of_one)
    for ids in ([0, 1], [1, 2], [4, 5], [0, 2], [5, 0]):
        np.testing.assert_array_equal(ask(experts, ids), ask(expected, ids))
        with pytest.raises(CheckpointError, match=SCALE.replace(".", r"\.")):
            ask(experts, [ids[0], 3])
        np.testing.assert_array_equal(ask(experts, ids), ask(expected, ids))


def test_a_forward_that_fails_late_changes_nothing(damaged):
    """The sequence is as long as before, holds as many blocks, and goes on with the bits of a whole checkpoint's."""
    folder, whole = damaged
    model, expected = (NumbaBackend().load(one, expert_bytes=1 << 20) for one in (folder, whole))
    handle, other = model.new_sequence(), expected.new_sequence()
    ids, failed = [], 0
    for token in np.random.default_rng(0).integers(0, 300, 120).tolist():
        long = [*range(100, 170), token]  # runs over the end of a block
        for attempt in ([token], long):
            blocks = model.used_blocks()
            try:
                got = model.forward([SequenceInput(handle=handle, token_ids=attempt)], Want(logits="all")).logits
            except CheckpointError:
                failed += 1
                assert (model.length(handle), model.used_blocks()) == (len(ids), blocks)
                continue
            same = expected.forward([SequenceInput(handle=other, token_ids=attempt)], Want(logits="all")).logits
            np.testing.assert_array_equal(got, same)
            ids += attempt
    assert failed
    assert len(ids) > 20
    model.close()
    expected.close()


def test_only_experts_are_read_for_lending(tmp_path):
    """Experts are lent from a checkpoint whose every other weight is damaged, to a model that cannot read its own."""
    whole = write_tiny_checkpoint(tmp_path / "whole", seed=3)
    bare = write_tiny_checkpoint(tmp_path / "bare", seed=3)
    rest = write_tiny_checkpoint(tmp_path / "rest", seed=3)
    for name in Checkpoint.open(whole).names():
        if name.endswith((".weight_packed", ".weight_shape")):
            continue  # any bits are weights
        if "e_score_correction_bias" not in name:
            spoil(rest if ".experts." in name else bare, name)
    model = NumbaBackend().load(rest, moe=NumbaBackend().load_experts(bare))
    expected = NumbaBackend().load(whole)
    for one in (model, expected):
        one.handle = one.new_sequence()
    got, same = (one.forward([SequenceInput(handle=one.handle, token_ids=range(40))]).logits for one in (model, expected))
    np.testing.assert_array_equal(got, same)
    model.close()
    with pytest.raises(K2Error, match="closed"):
        model.moe.experts(1, np.ones((1, 64), np.float32), Routing(expert_ids=np.array([[0, 1]]), weights=np.ones((1, 2))))
