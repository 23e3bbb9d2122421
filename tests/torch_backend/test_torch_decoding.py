"""Decoding in fixed shapes: the same numbers as any forward, nothing read back, and shapes that are used again."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  # only where PyTorch is installed
from torch_backend.ways import KERNELS  # noqa: E402

from k2core.errors import CapacityError  # noqa: E402
from k2core.interfaces import SequenceInput, Want  # noqa: E402
from k2core.testing.checkpoints import write_tiny_checkpoint  # noqa: E402
from k2core_torch.backend import TorchBackend  # noqa: E402

if not KERNELS:
    pytest.skip("needs CUDA, or TRITON_INTERPRET=1 (test_kernels.py runs this file so)", allow_module_level=True)

EVERYTHING = Want(logits="all", routing=True, hidden=True)
READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "is_nonzero", "equal"}
LENGTHS = (3, 64, 129)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small checkpoint with many positions."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3, max_position_embeddings=100_000)


@pytest.fixture(params=KERNELS, ids=" on ".join)
def model(request, folder):
    """A way whose decoding has fixed shapes."""
    way, device = request.param
    loaded = TorchBackend(way).load(folder, device=device)
    yield loaded
    loaded.close()


def sequences_of(model, lengths=LENGTHS):
    """Sequences of some lengths, drawn."""
    draw, handles = np.random.default_rng(7), []
    for length in lengths:
        handles.append(model.new_sequence())
        model.forward([SequenceInput(handle=handles[-1], token_ids=draw.integers(0, 133, length).tolist())])
    return handles


def decode(model, handles, token=5, want=EVERYTHING):
    """One more token for each."""
    return model.forward([SequenceInput(handle=handle, token_ids=[token]) for handle in handles], want)


def test_decoding_gives_what_any_forward_gives(model):
    """Logits, states and routing of one token each are those of the forward of any shape, at the same positions."""
    handles = sequences_of(model)
    got = [decode(model, handles, token) for token in (5, 6)]
    for handle, length in zip(handles, LENGTHS, strict=True):
        model.truncate(handle, length)
    model._decoder = None
    for step, token in zip(got, (5, 6), strict=True):
        expected = decode(model, handles, token)
        np.testing.assert_allclose(step.logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(step.hidden, expected.hidden, atol=1e-4)
        for one, other in zip(step.routing, expected.routing, strict=True):
            np.testing.assert_array_equal(one.expert_ids, other.expert_ids)
            np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)


def test_rows_that_are_not_asked_for_do_not_come(model):
    """Of three sequences that decode, the logits of the one that is asked for come, in its place."""
    handles = sequences_of(model)
    expected = decode(model, handles).logits
    for handle, length in zip(handles, LENGTHS, strict=True):
        model.truncate(handle, length)
    batch = [SequenceInput(handle=handle, token_ids=[5], rows=int(place == 1)) for place, handle in enumerate(handles)]
    step = model.forward(batch)
    assert step.hidden is None and step.routing is None
    np.testing.assert_allclose(step.logits, expected[1:2], atol=1e-6)


def test_a_shape_is_made_once(model):
    """Steps of as many sequences use one shape until a sequence needs more pages; a cache that grows makes them anew."""
    handles, decoder = sequences_of(model), model._decoder
    for token in range(4):
        decode(model, handles, token)
    assert list(decoder._shapes) == [(4, 4)]
    first = decoder._shapes[4, 4]
    decode(model, handles[:1])
    assert list(decoder._shapes) == [(4, 4), (1, 4)] and decoder._shapes[4, 4] is first
    grown = model._cache.grown
    handles += sequences_of(model, (64 * 16 + 1,))
    assert model._cache.grown > grown
    decode(model, handles)
    assert list(decoder._shapes) == [(4, 32)]
    model.close()
    assert not decoder._shapes and not model._cache.layers


def test_what_fails_gives_its_pages_back(model, monkeypatch):
    """A forward or a fork without memory leaves every sequence its pages and no more, and the next forward goes on."""
    short, long = sequences_of(model, (3, 200))
    expected = decode(model, [short, long]).logits
    for handle, length in ((short, 3), (long, 200)):
        model.truncate(handle, length)
    before = model.used_blocks(), model._cache.spare_bytes()
    batch = [SequenceInput(handle=short, token_ids=[1] * 300), SequenceInput(handle=long, token_ids=[1])]
    with monkeypatch.context() as patch:
        patch.setattr(model, "_through", lambda *given: torch.empty(1 << 50))
        with pytest.raises(CapacityError):
            model.forward(batch)
        patch.setattr(model._cache, "_on_device", lambda numbers: torch.empty(1 << 50))
        with pytest.raises(CapacityError):
            model.fork(long, 150)
    assert (model.length(short), model.length(long)) == (3, 200)
    assert (model.used_blocks(), model._cache.spare_bytes() >= before[1]) == (before[0], True)
    np.testing.assert_allclose(decode(model, [short, long]).logits, expected, atol=1e-5)
    for handle in (short, long):
        model.free(handle)
    assert model.used_blocks() == 0 and len(model._cache._free) == model._cache._count - 1


def test_nothing_is_read_back_while_a_shape_computes(model):
    """No op asks the device for a value, or makes a tensor whose size depends on one: such a forward could not be recorded."""
    handles, met = sequences_of(model), []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            met.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    decode(model, handles)
    given = model._decoder._shapes[4, 4].given
    with torch.inference_mode(), Watching():
        model._decoder._once(given)
    assert "bmm" in met and not READS & set(met)
