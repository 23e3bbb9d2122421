"""Handles: fork, truncate, free, memory, and refusals that change nothing."""

import numpy as np
import pytest
from histories import Histories, extend, fresh, keep
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from k2core.errors import CapacityError, K2Error, ShapeError
from k2core.interfaces import Routing, SequenceInput, Want
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_numba.backend import NumbaBackend
from k2core_numba.pages import PageStore, Sequence


@pytest.mark.parametrize("length", [1, 16, 63, 64, 65, 100])
def test_a_fork_goes_its_own_way(model, length):
    """Parent and fork write after the shared part without seeing each other, wherever the cut lies in a page."""
    ids = [index % 100 for index in range(100)]
    parent = model.new_sequence()
    extend(model, parent, ids)
    child = model.fork(parent, length)
    assert model.length(child) == length
    np.testing.assert_array_equal(extend(model, child, [7, 8]), fresh(model, [*ids[:length], 7, 8]))
    np.testing.assert_array_equal(extend(model, parent, [9]), fresh(model, [*ids, 9]))
    model.free(parent)
    np.testing.assert_array_equal(extend(model, child, [3]), fresh(model, [*ids[:length], 7, 8, 3]))


def test_a_fork_costs_nothing_until_it_writes(model):
    """Shared pages belong to nobody alone; freeing one owner gives them to the other."""
    assert model.fork_is_shared
    parent = model.new_sequence()
    extend(model, parent, [1] * 100)
    page = model.bytes_of(parent) // 2
    child = model.fork(parent, 100)
    assert model.bytes_of(parent) == model.bytes_of(child) == 0
    extend(model, child, [2])
    assert model.bytes_of(child) == model.bytes_of(parent) == page
    model.free(child)
    assert model.bytes_of(parent) == 2 * page


def test_the_cache_holds_latents_only(model):
    """A page's bytes are positions times layers times rank + rope float32, nothing expanded."""
    handle = model.new_sequence()
    extend(model, handle, [1])
    assert model.bytes_of(handle) == 64 * model.geometry.cache_values_per_token * 4


def pages_of(model):
    """How many pages all live sequences hold, each counted once."""
    return len({id(page) for sequence in model._sequences.live.values() for page in sequence.pages})


class Shared(Histories):
    """Histories of a model that shares pages, and gives the same bits however its tokens are computed."""

    same = staticmethod(np.testing.assert_array_equal)

    @invariant()
    def memory_is_told(self):
        """What the model says it uses is what its sequences hold, each page counted once."""
        assert self.model.used_blocks() == pages_of(self.model)


def test_any_history_leaves_what_its_ids_say(tmp_path):
    """Whatever was forked, cut and freed before, a sequence's next logits depend on its ids alone."""
    model = NumbaBackend().load(write_tiny_checkpoint(tmp_path, seed=2, max_position_embeddings=100_000))
    keep(model, examples=15, steps=25, kind=Shared)
    model.close()


class Scarce(PageStore):
    """A store on a machine that has memory for *left* more pages."""

    left = 0

    def _page(self):
        self.left -= 1
        if self.left < 0:
            raise MemoryError
        return super()._page()


@given(data=st.data())
@settings(max_examples=60)
def test_pages_are_counted_once(data):
    """The count of pages is that of a recount after any growth, fork, cut, copy and growth that fails, and ends at 0."""
    store = Scarce(1, 2, 16)
    live = [Sequence()]
    for _ in range(data.draw(st.integers(1, 25))):
        sequence = data.draw(st.sampled_from(live))
        match data.draw(st.sampled_from(["grow", "fork", "cut", "free", "new"])):
            case "grow":
                store.left = data.draw(st.integers(0, 6))
                some = data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=3, unique_by=id))
                growth = [(sequence, data.draw(st.integers(1, 50))) for sequence in some]
                before = [list(sequence.pages) for sequence in live]
                try:
                    store.reserve(growth)
                except CapacityError:
                    assert [sequence.pages for sequence in live] == before
                else:
                    for sequence, count in growth:
                        assert all(page.owners == 1 for page in sequence.pages[sequence.length // 16 :])
                        sequence.length += count
                        assert len(sequence.pages) == -(-sequence.length // 16)
            case "fork":
                live.append(store.fork(sequence, data.draw(st.integers(0, sequence.length))))
            case "cut":
                store.truncate(sequence, data.draw(st.integers(0, sequence.length)))
            case "free":
                store.truncate(sequence, 0)
            case "new":
                live.append(Sequence())
        held = [page for sequence in live for page in sequence.pages]
        assert store.used == len(set(map(id, held)))
        assert all(page.owners == sum(page is other for other in held) for page in held)
        for sequence in live:
            assert sequence.table[: len(sequence.pages)].tolist() == [page.address for page in sequence.pages]
            assert sequence.table_address == sequence.table.ctypes.data
    for sequence in live:
        store.truncate(sequence, 0)
    assert store.used == 0


def test_memory_is_told_in_blocks(model):
    """Bytes of a position, positions of a block, blocks that forks share counted once, and what the machine has left."""
    assert model.used_blocks() == 0
    parent = model.new_sequence()
    extend(model, parent, [1] * 130)
    memory = model.memory()
    assert memory.bytes_per_token == model.geometry.cache_values_per_token * 4
    assert (memory.block_tokens, model.used_blocks()) == (64, 3)
    assert model.bytes_of(parent) == 3 * memory.block_tokens * memory.bytes_per_token
    assert memory.free_bytes is None or memory.free_bytes > 0
    child = model.fork(parent, 130)
    assert model.used_blocks() == 3
    extend(model, child, [2])
    assert model.used_blocks() == 4
    model.free(parent)
    model.free(child)
    assert model.used_blocks() == 0


def test_refusals_change_nothing(model):
    """Every malformed batch is a K2Error, and the sequences are as long as before and go on with the same bits."""
    good, other = model.new_sequence(), model.new_sequence()
    extend(model, good, [1, 2, 3])
    vocab, most = model.geometry.vocab_size, model.geometry.max_position_embeddings
    fine = SequenceInput(handle=other, token_ids=[1])
    for batch, complaint in (
        ([], "empty"),
        ([fine, SequenceInput(handle=good, token_ids=[])], "no new tokens"),
        ([fine, SequenceInput(handle=good, token_ids=[vocab])], f"token id {vocab}"),
        ([fine, SequenceInput(handle=good, token_ids=[-1])], "token id -1"),
        ([fine, SequenceInput(handle=999, token_ids=[1])], "no sequence with handle 999"),
        ([fine, fine], "twice"),
        ([fine, SequenceInput(handle=good, token_ids=[1, 2], rows=3)], f"3 rows of sequence {good}"),
        ([fine, SequenceInput(handle=good, token_ids=[1, 2], rows=-1)], f"-1 rows of sequence {good}"),
        ([fine, SequenceInput(handle=good, token_ids=[1] * (most - 2))], f"{most} positions"),
    ):
        with pytest.raises(K2Error, match=complaint):
            model.forward(batch)
        assert (model.length(good), model.length(other)) == (3, 0)
        assert model.used_blocks() == 1
    np.testing.assert_array_equal(extend(model, good, [4]), fresh(model, [1, 2, 3, 4]))


def test_the_last_position_can_be_used(model):
    """A sequence may be as long as the model has positions, and not longer."""
    handle, most = model.new_sequence(), model.geometry.max_position_embeddings
    model.forward([SequenceInput(handle=handle, token_ids=[1] * most)], Want(logits="none"))
    assert model.length(handle) == most
    with pytest.raises(K2Error, match="positions"):
        extend(model, handle, [1])


def test_dead_handles_and_bad_lengths_are_refused(model):
    """A freed handle is unknown to every method; a cut must lie within the sequence."""
    handle = model.new_sequence()
    extend(model, handle, [1, 2])
    for wrong in (-1, 3):
        with pytest.raises(K2Error, match="it has 2 tokens"):
            model.truncate(handle, wrong)
        with pytest.raises(K2Error, match="it has 2 tokens"):
            model.fork(handle, wrong)
    model.free(handle)
    for call in (
        model.length, model.bytes_of, model.free, lambda h: model.fork(h, 0), lambda h: model.truncate(h, 0),
    ):  # fmt: skip
        with pytest.raises(K2Error, match=f"no sequence with handle {handle}"):
            call(handle)


def test_the_expert_seam_refuses_what_does_not_fit(model):
    """A dense layer, a wrong width, a wrong routing and an expert that does not exist are one clear error each."""
    layer, hidden = model.geometry.moe_layers.start, model.geometry.hidden_size
    x = np.ones((2, hidden), np.float32)
    routing = model.moe.route(layer, x)
    with pytest.raises(K2Error, match="layer 0 has no experts"):
        model.moe.route(0, x)
    with pytest.raises(ShapeError, match="expected"):
        model.moe.route(layer, x[:, 1:])
    with pytest.raises(ShapeError, match="routing has"):
        model.moe.experts(layer, x[:1], routing)
    with pytest.raises(K2Error, match="expert ids reach"):
        model.moe.experts(layer, x, Routing(expert_ids=routing.expert_ids + 100, weights=routing.weights))


def test_a_closed_model_says_so(folder):
    """After close every use is one clear error."""
    model = NumbaBackend().load(folder)
    handle = model.new_sequence()
    extend(model, handle, [1])
    model.close()
    model.close()
    assert model.used_blocks() == 0
    with pytest.raises(K2Error, match="closed"):
        model.forward([SequenceInput(handle=handle, token_ids=[1])])
    with pytest.raises(K2Error, match="closed"):
        model.moe.route(2, np.ones((1, 4), np.float32))
