"""Pages of sequences: whose they are after any history, what they hold, and what a device without memory leaves."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402  # only where PyTorch is installed
from hypothesis import strategies as st  # noqa: E402

from k2core.model.config import Geometry  # noqa: E402
from k2core.testing.checkpoints import tiny_config  # noqa: E402
from k2core_torch.caching import LEAST  # noqa: E402
from k2core_torch.paged import FIRST, Paged, pages_for  # noqa: E402

GEOMETRY = Geometry.from_config(tiny_config())


def owned(paged, sequences):
    """Every page is page 0, free, or one sequence's, and a sequence has enough of them."""
    numbers = [number for one in sequences for number in one.numbers]
    assert sorted([0, *paged._free, *numbers]) == list(range(len(paged.layers[0])))
    assert all(len(one.numbers) == pages_for(one.length) for one in sequences)
    assert len({len(layer) for layer in paged.layers}) == 1


def filled(paged, sequence, value):
    """Write a number to all positions of a sequence, in every layer."""
    for layer in paged.layers:
        layer[sequence.numbers] = value


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pages_are_somebodys(data):
    """Whatever is reserved, copied, cut and dropped; a copy holds what its parent did, also behind a growth."""
    paged, sequences = Paged(GEOMETRY, "exact", device="cpu"), []
    for step in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["new", "reserve", "copy", "cut", "drop"])) if sequences else "new"
        if action == "new":
            sequences.append(paged.empty())
            continue
        one = data.draw(st.sampled_from(sequences))
        if action == "reserve":
            grown = {id(each): (each, data.draw(st.integers(1, 700))) for each in (one, data.draw(st.sampled_from(sequences)))}
            paged.reserve(grown.values())
            for each, count in grown.values():
                each.length += count
            filled(paged, one, float(step))
        elif action == "copy":
            length = data.draw(st.integers(0, one.length))
            sequences.append(paged.copy(one, length))
            for layer in paged.layers:
                assert torch.equal(layer[sequences[-1].numbers], layer[one.numbers[: pages_for(length)]])
        elif action == "cut":
            paged.cut(one, data.draw(st.integers(0, one.length)))
        else:
            paged.drop(one)
            sequences.remove(one)
        owned(paged, sequences)
    for one in sequences:
        paged.drop(one)
    owned(paged, [])


def test_who_keeps_addresses_is_told_before_they_change():
    """And not where nothing moves."""
    paged, told = Paged(GEOMETRY, "exact", device="cpu"), []
    paged.moves = lambda: told.append(len(paged.layers[0]))
    one = paged.empty()
    paged.reserve([(one, (FIRST - 1) * LEAST)])
    assert not told
    one.length = (FIRST - 1) * LEAST
    paged.reserve([(one, 1)])
    assert told == [FIRST] and len(paged.layers[0]) == 2 * FIRST and paged.grown == 1


@pytest.mark.parametrize(("most", "grows"), [(2 * FIRST, True), (FIRST + 3, True), (FIRST + 2, False)])
def test_where_twice_as_many_do_not_fit_the_needed_ones_may(monkeypatch, most, grows):
    """Pages are added one by one where the device has no more; where it has not even these, everything is as before."""
    paged = Paged(GEOMETRY, "exact", device="cpu")
    one = paged.empty()
    new_zeros = torch.Tensor.new_zeros

    def scarce(tensor, shape):
        if shape[0] > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return new_zeros(tensor, shape)

    monkeypatch.setattr(torch.Tensor, "new_zeros", scarce)
    if grows:
        paged.reserve([(one, (FIRST + 2) * LEAST)])
        one.length = (FIRST + 2) * LEAST
    else:
        with pytest.raises(RuntimeError, match="can't allocate"):
            paged.reserve([(one, (FIRST + 2) * LEAST)])
    owned(paged, [one])
    paged.drop(one)
    owned(paged, [])
