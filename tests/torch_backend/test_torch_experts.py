"""Routed experts: unpacking, a limit of memory here and on another device, and experts that are lent or borrowed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402  # only where PyTorch is installed
from hypothesis import strategies as st  # noqa: E402

from k2core.errors import CapacityError, CheckpointError, K2Error, ShapeError  # noqa: E402
from k2core.interfaces import SequenceInput, Want  # noqa: E402
from k2core.model.checkpoint import Checkpoint  # noqa: E402
from k2core.model.int4 import dequantise, quantise  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_torch.backend import TorchBackend  # noqa: E402
from k2core_torch.experts import Experts  # noqa: E402
from k2core_torch.kept import Kept  # noqa: E402
from k2core_torch.packed import Packed, half_table, size_of  # noqa: E402
from k2core_torch.tensors import Tensors  # noqa: E402

ELSEWHERE = "cpu:0"  # what is not "cpu" is another device to the code, and this one is here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=11)


def logits_of(model, ids=range(60)):
    """Logits of a fresh sequence."""
    return model.forward([SequenceInput(handle=model.new_sequence(), token_ids=ids)], Want(logits="all")).logits


def given_experts(geometry, tokens=9):
    """Tensors that experts sum: states, ids and weights."""
    random = np.random.default_rng(tokens)
    ids = np.stack([random.permutation(geometry.n_routed_experts)[: geometry.num_experts_per_tok] for _ in range(tokens)])
    states, weights = random.standard_normal((tokens, geometry.hidden_size)), random.random(ids.shape)
    return torch.tensor(states, dtype=torch.float32), torch.tensor(ids), torch.tensor(weights, dtype=torch.float32)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), groups=st.integers(1, 5), group=st.sampled_from([8, 16, 32, 48]), seed=st.integers(0, 2**32 - 1))
def test_both_ways_to_unpack_give_every_code_times_its_scale(rows, groups, group, seed):
    """Shifts and the table agree with the format to the bit, whatever the group and whichever of the 16 codes."""
    random = np.random.default_rng(seed)
    _, scale = quantise(random.standard_normal((rows, groups * group)).astype(np.float32), group)
    words = random.integers(-(2**31), 2**31, (rows, groups * group // 8)).astype(np.int32)
    packed = Packed(torch.from_numpy(words), torch.from_numpy(scale.view(np.int16)).view(torch.bfloat16))
    expected = dequantise(words, scale)
    np.testing.assert_array_equal(packed.unpacked_by_words().numpy(), expected)
    np.testing.assert_array_equal(packed.unpacked(half_table("cpu")).numpy(), expected)


@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 6), asked=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40))
def test_those_used_least_recently_make_room(limit, asked):
    """A cache holds exactly the last different experts that fit, makes room before it makes one, and counts both outcomes."""
    kept, recent = Kept(limit * 10 + 9, 10, "packed"), []
    for key in asked:
        was_there = key in recent
        recent = [key, *(other for other in recent if other != key)][:limit]
        hits = kept.hits
        assert kept.get(*key, lambda key=key: (len(kept), key))[1] == key
        assert kept.hits == hits + was_there
        assert set(kept._values) == set(recent)
    assert all(others < limit for others, _ in kept._values.values())
    assert kept.hits + kept.misses == len(asked)


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("fits", [1, 3, 99])
def test_a_limit_on_another_device_holds_experts_as_they_are_stored(tmp_path, quantised, fits):
    """There a limit counts packed bytes, experts that are used move there, and sums are the same as without a limit."""
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, seed=4, quantised=quantised))
    options = {"numerics": "exact", "way": "fast", "is_small": False}
    plain = Experts(Tensors(checkpoint, "cpu"), limit=None, **options)
    one = sum(size_of(matrix) for matrix in plain._layers[1][0])
    limited = Experts(Tensors(checkpoint, ELSEWHERE), limit=fits * one, **options)
    given = given_experts(checkpoint.geometry)
    for layer in (1, 2, 1):
        assert torch.equal(limited.sum(layer, *given), plain.sum(layer, *given))
        assert len(limited._kept) <= fits
    assert (limited._kept.size, limited.info()["expert_bytes"]) == (one, str(fits * one))
    assert (limited._kept.hits > 0) == (fits == 99)
    with pytest.raises(CapacityError, match=f"one takes {one:,} packed"):
        Experts(Tensors(checkpoint, ELSEWHERE), limit=one - 1, **options)


def test_a_layer_that_lies_together_is_held_once(folder):
    """Where words are laid together, an expert of its own is a view of them, here and on another device."""
    checkpoint = Checkpoint.open(folder)
    for device in ("cpu", ELSEWHERE):
        experts = Experts(Tensors(checkpoint, device), "exact", way="fast", limit=None, is_small=True)
        for expert in experts._layers[1]:
            for one, whole in zip(expert, experts._together[1], strict=True):
                assert one.words.untyped_storage().data_ptr() == whole.words.untyped_storage().data_ptr()


@pytest.mark.parametrize("way", ["fast", "eager"])
@pytest.mark.parametrize("numerics", TorchBackend.numerics)
def test_the_expert_seam_repeats_the_forward(folder, way, numerics):
    """route, experts and forward of the seam belong together, by one token or many, and leave what they are given alone."""
    model = TorchBackend(way).load(folder, numerics=numerics)
    layer, moe = model.geometry.moe_layers.start, model.moe
    x = np.random.default_rng(3).standard_normal((20, model.geometry.hidden_size)).astype(np.float32)
    given, tolerance = x.copy(), 1e-5 if numerics == "exact" else 0.02
    routing, whole = moe.route(layer, x), moe.forward(layer, x)
    routed = moe.experts(layer, x, routing)
    for row in range(20):
        alone = moe.route(layer, x[row : row + 1])
        np.testing.assert_array_equal(np.sort(alone.expert_ids[0]), np.sort(routing.expert_ids[row]))
        np.testing.assert_allclose(moe.experts(layer, x[row : row + 1], alone)[0], routed[row], atol=tolerance)
        np.testing.assert_allclose(moe.forward(layer, x[row : row + 1])[0], whole[row], atol=tolerance)
    assert not np.allclose(whole, routed)
    assert moe.experts(layer, x[:0], moe.route(layer, x[:0])).shape == (0, model.geometry.hidden_size)
    np.testing.assert_array_equal(x, given)


@pytest.mark.parametrize("numerics", TorchBackend.numerics)
def test_lent_experts_give_the_models_own_numbers(folder, numerics):
    """With experts of a second backend of the same kind a model has the logits that it has alone, and says whose they are."""
    own = logits_of(TorchBackend().load(folder, numerics=numerics))
    lent = TorchBackend().load_experts(folder, numerics=numerics, expert_bytes=1 << 20)
    mixed = TorchBackend().load(folder, numerics=numerics, moe=lent)
    assert np.abs(logits_of(mixed) - own).max() <= (1e-4 if numerics == "exact" else 0.1)
    assert mixed.info()["experts"] == "torch" and int(mixed.info()["expert_misses"]) > 0


class Other:
    """Another backend's experts that do as they are told."""

    def __init__(self, answer):
        self.answer = answer

    def experts(self, layer, x, routing):
        """The answer to a call."""
        assert (x.dtype, routing.expert_ids.dtype, routing.weights.dtype) == (np.float32, np.int32, np.float32)
        return self.answer(layer, x)

    def info(self):
        """No name."""
        return {}

    def close(self):
        """Nothing to give back."""


def frozen_zeros(layer, x):
    """Zeros that cannot be written to, not contiguous, and float64."""
    zeros = np.zeros((x.shape[1], x.shape[0])).T
    zeros.flags.writeable = False
    return zeros


def test_what_another_backend_gives_may_be_any_array(folder):
    """An array that is read-only, of another layout or another float type is taken as it is meant, without a warning."""
    model = TorchBackend().load(folder, moe=Other(frozen_zeros))
    assert np.isfinite(logits_of(model)).all() and model.info()["experts"] == "another"
    wrong = TorchBackend().load(folder, moe=Other(lambda layer, x: x[:, 1:]))
    with pytest.raises(ShapeError, match=r"another backend's experts gave \(60, 63\), expected \(60, 64\)"):
        logits_of(wrong)


def test_experts_that_fail_in_the_middle_change_nothing(folder):
    """When another backend fails behind a layer that has written, the sequence is as before and goes on."""
    failing = []

    def answer(layer, x):
        if layer == 2 and failing:
            raise K2Error("the other backend is gone")
        return np.zeros_like(x)

    model = TorchBackend().load(folder, moe=Other(answer))
    handle = model.new_sequence()
    model.forward([SequenceInput(handle=handle, token_ids=[1, 2, 3])])
    failing.append(True)
    with pytest.raises(K2Error, match="gone"):
        model.forward([SequenceInput(handle=handle, token_ids=[9, 9])])
    failing.clear()
    assert model.length(handle) == 3
    after = model.forward([SequenceInput(handle=handle, token_ids=[4])]).logits[0]
    np.testing.assert_allclose(after, logits_of(model, [1, 2, 3, 4])[-1], atol=1e-4)


@pytest.mark.parametrize("limit", [None, 1 << 20])
@pytest.mark.parametrize("quantised", [True, False])
def test_a_damaged_expert_is_named_when_loaded(tmp_path, quantised, limit):
    """NaN in a scale or a plain matrix is refused by the tensor's name, with a limit of memory too, and in experts alone."""
    folder = write_tiny_checkpoint(tmp_path, seed=4, quantised=quantised)
    name = f"model.layers.2.mlp.experts.3.down_proj.weight{'_scale' if quantised else ''}"
    entry = Checkpoint.open(folder)._places[name].entries[name]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.begin)
        file.write(b"\xc0\x7f")  # a NaN of bfloat16
    for load in (TorchBackend().load, TorchBackend().load_experts):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as refused:
            load(folder, expert_bytes=limit)
        assert "\n" not in str(refused.value)
