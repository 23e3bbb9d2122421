"""Handles: any history, forks that copy, memory that is given back, and refusals that change nothing."""

import gc
import weakref

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import histories
from histories import alike, extend, fresh

from k2core.errors import CapacityError, K2Error
from k2core.interfaces import Routing, SequenceInput, Want
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_onnx.backend import OnnxBackend
from k2core_onnx.on_device import Cached
from k2core_onnx.session import Session


@pytest.fixture(scope="module", params=[False, True], ids=["arrays", "bound"])
def model(request, tmp_path_factory):
    """A small model with many positions, its states in arrays or bound to the device."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=2, max_position_embeddings=100_000)
    loaded = OnnxBackend(bound=request.param).load(folder)
    yield loaded
    loaded.close()


def test_any_history_leaves_what_its_ids_say(model):
    """Whatever was forked, cut and refused and freed before, a sequence's next logits depend on its ids alone."""
    histories.keep(model)


def test_a_fork_is_a_copy(model):
    """Parent and fork have memory of their own from the beginning, and the model says so."""
    assert not model.fork_is_shared
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
    """Nothing holds on to the latents of a sequence that was freed, though its last run was given them by reference."""
    handle = model.new_sequence()
    extend(model, handle, [1] * 70)
    record = model._sequences.live[handle]
    kept = weakref.ref(record if isinstance(record, Cached) else record.latents)
    del record
    model.free(handle)
    gc.collect()
    assert kept() is None


def test_memory_that_is_not_there_is_a_capacity_error(model, monkeypatch):
    """When ONNX Runtime has no memory in the middle of a forward the sequence is as before, and goes on."""
    handle = model.new_sequence()
    extend(model, handle, [1, 2, 3])
    name, calls = "bound" if "bound" in model.info()["kernel_path"] else "run", []
    run = getattr(Session, name)

    def scarce(self, **inputs):
        calls.append(self)
        if len(calls) == 4:
            raise MemoryError
        return run(self, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Session, name, scarce)
        with pytest.raises(CapacityError, match="no memory for 2 tokens of 1 sequences"):
            extend(model, handle, [4, 5])
    assert model.length(handle) == 3
    alike(extend(model, handle, [4, 5]), fresh(model, [1, 2, 3, 4, 5]))
    model.free(handle)


def test_what_onnx_runtime_says_of_memory_is_understood():
    """Its own exception for memory that it cannot get becomes a MemoryError; another one stays what it is."""

    class Failing:
        def __init__(self, line):
            self.line = line

        def get_outputs(self):
            return []

        def run(self, outputs, inputs):
            raise RuntimeError(self.line)

    with pytest.raises(MemoryError, match="Failed to allocate"):
        Session(Failing("bfc_arena.cc: Failed to allocate memory for requested buffer of size 8"), {}, "cpu").run()
    with pytest.raises(RuntimeError, match="pre-allocated output"):
        Session(Failing("the pre-allocated output has another shape"), {}, "cpu").run()


def test_a_closed_model_says_so(tmp_path):
    """After close every use is one clear error, of the model, its seam and experts that it was lent."""
    folder = write_tiny_checkpoint(tmp_path, seed=2)
    lent = OnnxBackend().load_experts(folder)
    model = OnnxBackend().load(folder, moe=lent)
    handle = model.new_sequence()
    extend(model, handle, [1])
    model.close()
    model.close()
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


def test_what_is_told_is_text_with_names(model):
    """A report names backend, device, numerics, threads, version and whose experts they are; tokens take what they take."""
    told = model.info()
    assert (told["backend"], told["device"], told["numerics"]) == ("onnx", "cpu", "exact")
    assert {"threads", "onnxruntime", "kernel_path"} <= set(told)
    handle = model.new_sequence()
    model.forward([SequenceInput(handle=handle, token_ids=[1] * 1000)], Want(logits="none"))
    assert model.bytes_of(handle) <= 1000 * model.memory().bytes_per_token
    model.free(handle)
