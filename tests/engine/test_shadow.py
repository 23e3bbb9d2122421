"""Two models side by side: the first answers as if alone, and where the second parts from it is found and logged once."""

import numpy as np
import pytest
from engine.test_limits import Rounded
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from k2core.engine.shadow import ShadowModel
from k2core.errors import InputError, K2Error
from k2core.interfaces import SequenceInput, Step, Want
from k2core.testing.loaded import HashModel

ALL, LAST = Want(logits="all"), Want()


class Parting(HashModel):
    """A model whose logits move by 0.01 at one position of every sequence."""

    def __init__(self, position):
        super().__init__()
        self.position = position

    def forward(self, batch, want=LAST):
        """As usual, but for that position."""
        starts = [self.length(one.handle) for one in batch]
        step = super().forward(batch, want)
        row = 0
        for one, start in zip(batch, starts, strict=True):
            count = len(one.token_ids)
            rows = one.rows if one.rows is not None else {"last": 1, "all": count, "none": 0}[want.logits]
            for place in range(count - rows, count):
                step.logits[row] += 0.01 * (start + place == self.position)
                row += 1
        return step


class Failing(HashModel):
    """A model that stops working after two forwards."""

    def forward(self, batch, want=LAST):
        """Twice."""
        if self.forwards == 2:
            raise K2Error("the second machine is on fire")
        return super().forward(batch, want)


def test_whatever_a_shadow_does_wrong_is_its_own(monkeypatch):
    """Any exception, or logits of another shape, leave it alone with the reason."""
    for wrong, reason in (
        (ValueError("no\nidea"), "raised ValueError: no idea"),
        (None, "its logits are (1, 319), expected (1, 320)"),
    ):
        other = HashModel()
        plain = other.forward

        def forward(batch, want=LAST, wrong=wrong, plain=plain):
            if wrong is not None:
                raise wrong
            step = plain(batch, want)
            return Step(logits=step.logits[:, :-1])

        monkeypatch.setattr(other, "forward", forward)
        model, alone = ShadowModel(HashModel(), other, "other"), HashModel()
        ids = [SequenceInput(handle=model.new_sequence(), token_ids=[1, 2])]
        alone.new_sequence()
        np.testing.assert_array_equal(model.forward(ids).logits, alone.forward(ids).logits)
        assert model.report.failure == reason


@settings(max_examples=40)
@given(data=st.data())
def test_the_first_answers_as_if_alone(data):
    """Whatever is forked, cut, freed and forwarded, every number is the first model's, and the two agree."""
    alone, model = HashModel(), ShadowModel(HashModel(), HashModel(), "other")
    handles = {alone.new_sequence(): model.new_sequence()}
    for _ in range(data.draw(st.integers(1, 12))):
        own = data.draw(st.sampled_from(sorted(handles)))
        length = data.draw(st.integers(0, alone.length(own)))
        match data.draw(st.sampled_from(["forward", "fork", "cut", "free", "new"])):
            case "forward":
                ids = data.draw(st.lists(st.integers(0, 319), min_size=1, max_size=5))
                rows = data.draw(st.none() | st.integers(0, len(ids)))
                steps = [
                    one.forward([SequenceInput(handle=handle, token_ids=ids, rows=rows)], ALL)
                    for one, handle in ((alone, own), (model, handles[own]))
                ]
                np.testing.assert_array_equal(steps[0].logits, steps[1].logits)
            case "fork":
                handles[alone.fork(own, length)] = model.fork(handles[own], length)
            case "cut":
                alone.truncate(own, length)
                model.truncate(handles[own], length)
            case "free" if len(handles) > 1:
                alone.free(own)
                model.free(handles.pop(own))
            case "new":
                handles[alone.new_sequence()] = model.new_sequence()
    assert all(alone.length(own) == model.length(handle) for own, handle in handles.items())
    assert model.report.first is None and not model.report.failure
    assert model.report.max_delta == 0


@pytest.mark.parametrize("cuts", [(9,), (4, 5), (1,) * 9, (5, 1, 3)])
def test_the_first_divergence_is_logged_once_with_its_place(cuts):
    """Position, difference and both best tokens are told, whatever the forwards are cut into; later ones are counted only."""
    model = ShadowModel(HashModel(), Parting(5), "other")
    handle, ids = model.new_sequence(), list(range(9))
    with capture_logs() as logs:
        for count in cuts:
            model.forward([SequenceInput(handle=handle, token_ids=ids[:count])], ALL)
            ids = ids[count:]
        again = model.new_sequence()
        model.forward([SequenceInput(handle=again, token_ids=list(range(9)))], ALL)
    first = model.report.first
    assert (first.handle, first.position, model.report.rows) == (handle, 5, 18)
    assert first.delta == pytest.approx(0.01, rel=1e-3) and first.best == first.other_best
    told = [one for one in logs if one["event"] == "model.diverged"]
    assert len(told) == 1 and told[0]["position"] == 5 and told[0]["shadow"] == "other"
    assert "other diverges first at position 5" in str(model.report)


def test_a_shadow_that_fails_is_left_alone_aloud():
    """Its failure is logged once, the answers go on, and the report says why nothing more is compared."""
    model = ShadowModel(HashModel(), Failing(), "other")
    handle, rows = model.new_sequence(), []
    with capture_logs() as logs:
        for token in range(5):
            rows.append(model.forward([SequenceInput(handle=handle, token_ids=[token])]).logits)
        model.free(model.fork(handle, 2))
    alone = HashModel()
    one = alone.new_sequence()
    for token, row in enumerate(rows):
        np.testing.assert_array_equal(row, alone.forward([SequenceInput(handle=one, token_ids=[token])]).logits)
    assert [entry["event"] for entry in logs] == ["model.shadow_failed"]
    assert model.report.rows == 2 and "on fire" in str(model.report)


def test_refusals_of_the_first_are_refusals():
    """A bad batch raises as ever and leaves both models as they were."""
    model = ShadowModel(HashModel(), HashModel(), "other")
    handle = model.new_sequence()
    with pytest.raises(K2Error, match="vocabulary"):
        model.forward([SequenceInput(handle=handle, token_ids=[320])])
    model.forward([SequenceInput(handle=handle, token_ids=[1])])
    assert model.report.first is None and not model.report.failure and model.report.rows == 1


def test_numerics_without_a_contract_need_a_limit():
    """Two numerics that no contract covers are refused, both models closed; with a limit they are compared."""
    other = HashModel()
    other.numerics = "w4a8"
    with pytest.raises(InputError, match="limit"):
        ShadowModel(HashModel(), other, "other")
    model = ShadowModel(HashModel(), other, "other", limit=0.5)
    assert model.report.limit == 0.5


def test_rounded_numerics_diverge_where_most_rows_do():
    """A few rows far apart are a router's coins; from where more than half of the last ones are, it is a divergence."""
    model = ShadowModel(Rounded(), Rounded(lambda place: place in (0, 9, 20, 31) or place >= 100), "other")
    handle, told = model.new_sequence(), []
    with capture_logs() as logs:
        for place in range(160):
            model.forward([SequenceInput(handle=handle, token_ids=[place % 7])])
            told.append(str(model.report))
    assert told[0].startswith("other is beyond its limit so far, on 1 row, median error ")
    assert told[40].startswith("other agrees on 41 rows, median error") and "max |Δlogit|" in told[40]
    first = model.report.first
    assert first.position == 100 and first.error > model.report.limit
    assert [one["position"] for one in logs if one["event"] == "model.diverged"] == [100]
    assert f"diverges first at position 100: error {first.error:.1e} (limit" in told[140]
    assert told[130].startswith("other agrees")


def test_rounded_numerics_that_are_wrong_throughout_are_found_soon():
    """Five rows are enough, and a row that is no number is one at once."""
    model = ShadowModel(Rounded(), Rounded(lambda place: True), "other")
    handle = model.new_sequence()
    for place in range(5):
        assert model.report.first is None
        model.forward([SequenceInput(handle=handle, token_ids=[place])])
    assert model.report.first.position == 0
    other = Rounded(lambda place: place == 1, far=float("nan"))
    model = ShadowModel(Rounded(), other, "other")
    model.forward([SequenceInput(handle=model.new_sequence(), token_ids=[1, 2, 3])], ALL)
    assert model.report.first.position == 1 and model.report.error == float("inf")


def test_memory_and_names_are_of_both():
    """A token takes the memory of both caches, and the identity names the shadow."""
    model = ShadowModel(HashModel(bytes_per_token=100), HashModel(bytes_per_token=60, free_bytes=10**6), "other")
    assert model.memory().bytes_per_token == 160
    assert model.memory().free_bytes == 10**6
    assert model.info()["shadow"] == "other"
    model.close()
