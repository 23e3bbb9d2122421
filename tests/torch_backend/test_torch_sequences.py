"""Handles: any history on every way that can run here, forks that copy, memory given back, refusals that change nothing."""

import gc
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import histories  # noqa: E402  # only where PyTorch is installed
from histories import alike, extend, fresh  # noqa: E402
from torch_backend.ways import INTERPRETED, WAYS  # noqa: E402

from k2core.errors import CapacityError, K2Error  # noqa: E402
from k2core.interfaces import Routing, SequenceInput, Want  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_torch.backend import TorchBackend  # noqa: E402
from k2core_torch.caching import LEAST  # noqa: E402
from k2core_torch.paged import Paged  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small checkpoint with many positions."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=2, max_position_embeddings=100_000)


@pytest.fixture(scope="module", params=WAYS, ids=" on ".join)
def model(request, folder):
    """Every way."""
    way, device = request.param
    loaded = TorchBackend(way).load(folder, device=device)
    yield loaded
    loaded.close()


def test_any_history_leaves_what_its_ids_say(model):
    """Whatever was forked, cut, refused and freed before, a sequence's next logits depend on its ids alone."""
    histories.keep(model, *((3, 10) if INTERPRETED else ()))


def test_a_fork_is_a_copy(model):
    """Parent and fork have memory of their own from the beginning, and the model says so."""
    assert not model.fork_is_shared and not model.batch_invariant
    parent = model.new_sequence()
    extend(model, parent, [1] * 100)
    before = model.bytes_of(parent)
    child = model.fork(parent, 100)
    assert (model.bytes_of(parent), model.used_blocks()) == (before, 4)
    assert model.bytes_of(child) > 0
    alike(extend(model, child, [2]), extend(model, parent, [2]))
    for handle in (parent, child):
        model.free(handle)


def test_a_freed_sequence_leaves_no_memory_behind(model):
    """Nothing holds on to the latents of a sequence that was freed; pages are there for the next one."""
    if isinstance(model._cache, Paged):
        spare = model._cache.spare_bytes()
        fresh(model, [1] * 70)
        assert model._cache.spare_bytes() >= spare
        return
    handle = model.new_sequence()
    extend(model, handle, [1] * 70)
    kept = weakref.ref(model._sequences.live[handle].values)
    model.free(handle)
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(("numerics", "width"), [("exact", 4), ("w4a16", 2)])
def test_the_cache_holds_latents_only(folder, numerics, width):
    """A token takes rank + rope values per layer, float32 in exact and bfloat16 in w4a16; at most twice that is held."""
    model = TorchBackend().load(folder, numerics=numerics)
    handle, token = model.new_sequence(), model.geometry.cache_values_per_token * width
    model.forward([SequenceInput(handle=handle, token_ids=[1] * LEAST)], Want(logits="none"))
    assert model.bytes_of(handle) == LEAST * token
    model.forward([SequenceInput(handle=handle, token_ids=[1] * 1000)], Want(logits="none"))
    assert model.bytes_of(handle) <= 2 * 1064 * token and model.memory().bytes_per_token == 2 * token


def test_memory_that_is_not_there_is_a_capacity_error(model, monkeypatch):
    """When PyTorch has no memory in the middle of a forward, one line says so with numbers, and the sequence goes on."""
    handle = model.new_sequence()
    extend(model, handle, [1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(type(model._cache), "reserve", lambda self, growth: torch.empty(1 << 50))
        with pytest.raises(
            CapacityError, match=r"no memory on \w+ for 2 tokens of 1 sequences, where [\d,]+ bytes are free"
        ) as e:
            extend(model, handle, [4, 5])
    assert "\n" not in str(e.value)
    assert model.length(handle) == 3
    alike(extend(model, handle, [4, 5]), fresh(model, [1, 2, 3, 4, 5]))
    model.free(handle)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_full_float32_whatever_the_process_has_set(folder, precision):
    """A setting that allows TF32 or bfloat16 inside products is put aside for a forward, and comes back."""
    seen = []

    class Looking:
        def experts(self, layer, x, routing):
            seen.append(torch.get_float32_matmul_precision())
            return np.zeros(x.shape, np.float32)

        def info(self):
            return {}

        def close(self):
            pass

    model = TorchBackend().load(folder, moe=Looking())
    torch.set_float32_matmul_precision(precision)
    try:
        extend(model, model.new_sequence(), [1])
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


def test_threads_of_the_process_come_back(model):
    """A small step is computed by one thread; afterwards PyTorch has as many as before."""
    before = torch.get_num_threads()
    fresh(model, [1, 2])
    with pytest.raises(K2Error):
        extend(model, 10**6, [1])
    assert torch.get_num_threads() == before


def test_a_closed_model_says_so(folder):
    """After close every use is one clear error, of the model, its seam and experts that it was lent; weights are let go."""
    lent = TorchBackend().load_experts(folder)
    model = TorchBackend().load(folder, moe=lent)
    handle = model.new_sequence()
    extend(model, handle, [1])
    weights = [weakref.ref(model._head), weakref.ref(model._attention[0].output), weakref.ref(model.moe._routers[1])]
    model.close()
    model.close()
    gc.collect()
    assert [one() for one in weights] == [None] * 3
    x = np.ones((1, model.geometry.hidden_size), np.float32)
    routing = Routing(expert_ids=np.array([[0, 1]], np.int32), weights=np.ones((1, 2), np.float32))
    for call in (
        model.new_sequence, lambda: extend(model, handle, [1]), lambda: model.length(handle), model.memory,
        lambda: model.moe.route(1, x), lambda: model.moe.forward(1, x), lambda: model.moe.experts(1, x, routing),
        lambda: lent.experts(1, x, routing),
    ):  # fmt: skip
        with pytest.raises(K2Error, match="closed"):
            call()
    assert model.used_blocks() == 0
