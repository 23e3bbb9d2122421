"""Experts in a bounded cache, lent and taken: the bits are those of all experts together, whatever fits."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.errors import CapacityError, CheckpointError, K2Error, ShapeError
from k2core.interfaces import Routing, SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.footprint import footprint
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_numba.backend import NumbaBackend
from k2core_numba.expert_cache import SHARE
from k2core_numba.experts import NumbaExperts

ALL = Want(logits="all", routing=True, hidden=True)
EXPERTS, LAYERS, TOP_K = 6, (1, 2), 2
IDS = [index * 7 % 300 for index in range(90)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A checkpoint of two layers with six experts each."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("many"), seed=5, n_routed_experts=EXPERTS, num_experts_per_tok=TOP_K)


@pytest.fixture(scope="module")
def one_expert(many):
    """Bytes of a repacked expert."""
    return NumbaExperts(Checkpoint.open(many), None, threads=1)._cache.expert_bytes


def step_of(model, ids=IDS, cuts=(40, 41, 90)):
    """Everything that a model gives for some tokens, in pieces."""
    handle, start, steps = model.new_sequence(), 0, []
    for end in cuts:
        steps.append(model.forward([SequenceInput(handle=handle, token_ids=ids[start:end])], ALL))
        start = end
    model.free(handle)
    return [array for step in steps for array in (step.logits, step.hidden, *(one.weights for one in step.routing))]


@pytest.mark.parametrize("slots", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bounded_cache_gives_the_bits_of_all_experts(many, one_expert, slots, threads, monkeypatch):
    """Logits, hidden states and routing are bit for bit those of the forward in one call, however few experts fit."""
    monkeypatch.setenv("K2CORE_THREADS", str(threads))
    whole = NumbaBackend().load(many)
    bounded = NumbaBackend().load(many, expert_bytes=slots * one_expert)
    for got, expected in zip(step_of(bounded), step_of(whole), strict=True):
        np.testing.assert_array_equal(got, expected)
    told = bounded.info()
    assert int(told["expert_bytes"]) == min(slots, EXPERTS * len(LAYERS)) * one_expert
    assert int(told["expert_misses"]) >= min(slots, EXPERTS)
    whole.close()
    bounded.close()


@settings(max_examples=40)
@given(data=st.data())
def test_hits_and_misses_are_those_of_least_recently_used(many, one_expert, data):
    """Any sequence of requests hits and misses as a model of such a cache does, and gives the bits of the whole model."""
    slots = data.draw(st.integers(1, 12))
    experts = NumbaBackend().load_experts(many, expert_bytes=slots * one_expert)
    whole = experts_of(many)
    expected: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = misses = 0
    for _ in range(data.draw(st.integers(1, 8))):
        layer, tokens = data.draw(st.sampled_from(LAYERS)), data.draw(st.integers(1, 3))
        choose = st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K, unique=True)
        ids = np.array([data.draw(choose) for _ in range(tokens)], np.int32)
        draw = np.random.default_rng(len(ids))
        x, weights = draw.standard_normal((tokens, 64)).astype(np.float32), draw.random(ids.shape).astype(np.float32)
        routing = Routing(expert_ids=ids, weights=weights)
        np.testing.assert_array_equal(experts.experts(layer, x, routing), whole.experts(layer, x, routing))
        wanted = sorted(set(ids.reshape(-1).tolist()))
        for first in range(0, len(wanted), slots):
            group = [(layer, expert) for expert in wanted[first : first + slots]]
            for key in group:
                if key in expected:
                    expected.move_to_end(key)
            for key in group:
                if key in expected:
                    hits += 1
                    continue
                misses += 1
                if len(expected) == slots:
                    expected.popitem(last=False)
                expected[key] = None
    told = experts.info()
    assert (int(told["expert_hits"]), int(told["expert_misses"])) == (hits, misses)
    experts.close()


_whole = {}


def experts_of(folder):
    """The seam of the model with all experts."""
    if folder not in _whole:
        _whole[folder] = NumbaBackend().load(folder).moe
    return _whole[folder]


def test_lent_experts_give_the_own_bits(many):
    """Attention here and experts there, both on this backend, are bit for bit the whole; closing the one closes the other."""
    whole = NumbaBackend().load(many)
    lent = NumbaBackend().load_experts(many)
    model = NumbaBackend().load(many, moe=lent)
    for got, expected in zip(step_of(model), step_of(whole), strict=True):
        np.testing.assert_array_equal(got, expected)
    model.close()
    with pytest.raises(K2Error, match="closed"):
        lent.experts(1, np.ones((1, 64), np.float32), Routing(expert_ids=np.zeros((1, 2), np.int32), weights=np.ones((1, 2))))


def test_a_limit_below_one_expert_is_refused(many, one_expert):
    """The error says both sizes."""
    with pytest.raises(CapacityError, match=f"within {one_expert - 1:,} bytes: one takes {one_expert:,}"):
        NumbaBackend().load(many, expert_bytes=one_expert - 1)


def test_a_limit_beyond_what_the_machine_can_address_is_refused(many, monkeypatch):
    """Where memory for the slots cannot be had, the error says how much was asked for."""

    def nothing(shape, dtype):
        raise MemoryError

    monkeypatch.setattr("k2core_numba.expert_layout.aligned_zeros", nothing)
    with pytest.raises(CapacityError, match=r"cannot keep 12 experts: no memory for [\d,]+ bytes"):
        NumbaBackend().load_experts(many)


@pytest.mark.parametrize("slots", [0, 1, 5, 12])
def test_unasked_experts_take_what_the_rest_of_the_model_leaves(many, one_expert, slots, monkeypatch):
    """The default is all experts where they fit beside everything else, else as many as fit, and an error where none does."""
    plain = footprint(Checkpoint.open(many).geometry).plain
    free = plain + int((slots + 0.5) * one_expert / SHARE)
    monkeypatch.setattr("k2core_numba.expert_cache.free_bytes", lambda: free)
    if not slots:
        with pytest.raises(CapacityError, match=f"one takes {one_expert:,}"):
            NumbaBackend().load(many)
        return
    model, lent = NumbaBackend().load(many), NumbaBackend().load_experts(many)
    assert model.info().get("expert_bytes") == (None if slots == 12 else str(slots * one_expert))
    assert lent.info()["expert_bytes"] == str(slots * one_expert)
    model.close()


def test_a_model_without_experts_takes_a_limit(tmp_path):
    """Where all layers are dense there is nothing to limit, and nothing to lend."""
    folder = write_tiny_checkpoint(tmp_path, seed=1, first_k_dense_replace=3)
    model = NumbaBackend().load(folder, expert_bytes=1)
    whole = NumbaBackend().load(folder)
    np.testing.assert_array_equal(step_of(model)[0], step_of(whole)[0])
    with pytest.raises(CheckpointError, match="all its layers are dense"):
        NumbaBackend().load_experts(folder)


def test_unpacked_experts_are_not_lent(tmp_path):
    """Lending refuses bfloat16 experts as loading does; a model with experts elsewhere does not look at its own."""
    folder = write_tiny_checkpoint(tmp_path, seed=5, quantised=False)
    with pytest.raises(CheckpointError, match="pack-quantized"):
        NumbaBackend().load_experts(folder)
    NumbaBackend().load(folder, moe=Strange(lambda x: x)).close()


class Strange:
    """Experts of a stranger's backend."""

    def __init__(self, answer):
        self._answer, self.closed = answer, 0

    def experts(self, layer, x, routing):
        """Whatever *answer* makes of x."""
        return self._answer(x)

    def info(self):
        """Says as little as possible."""
        return {}

    def close(self):
        """Counted."""
        self.closed += 1


def test_a_strangers_experts_are_held_to_their_shape(many):
    """A sum of another shape is refused in a forward and at the seam; the sequence is as long as before, and all is closed."""
    strange = Strange(lambda x: x[0])
    model = NumbaBackend().load(many, moe=strange)
    handle = model.new_sequence()
    with pytest.raises(ShapeError, match=r"another backend's experts gave \(64,\), expected \(2, 64\)"):
        model.forward([SequenceInput(handle=handle, token_ids=[1, 2])])
    with pytest.raises(ShapeError, match=r"gave \(64,\), expected \(3, 64\)"):
        model.moe.forward(1, np.ones((3, 64), np.float32))
    assert (model.length(handle), model.used_blocks()) == (0, 0)
    assert model.info()["experts"] == "another"
    model.close()
    assert strange.closed == 1
