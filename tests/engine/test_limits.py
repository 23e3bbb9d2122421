"""How far two models may differ: what a contract says of two that keep it, and what somebody accepts."""

from types import SimpleNamespace

import numpy as np
import pytest
from engine.test_engine import USER, engine, turn
from hypothesis import given
from hypothesis import strategies as st

from k2core.conformance.contracts import numerics_contract
from k2core.conformance.whole_model import GEOMETRIES, nmse
from k2core.engine.limits import EXACT_DELTA, Limit, between, limit_of, median_of, of_rounding, row_errors
from k2core.engine.switch import SwitchRefused
from k2core.errors import InputError
from k2core.interfaces import Want
from k2core.model.checkpoint import Checkpoint
from k2core.oracle.forward import forward
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core.testing.formats import ByteTokenizer
from k2core.testing.loaded import HashModel


class Rounded(HashModel):
    """A model in w4a16: logits off by a mean square of 1e-6, at some places of *far*², each of its own random direction."""

    numerics = "w4a16"

    def __init__(self, is_far=lambda place: False, *, far=0.1, **options):
        super().__init__(**options)
        sizes = {"num_hidden_layers": 4, "moe_layers": range(1, 4)}
        self.geometry = SimpleNamespace(**vars(self.geometry), **sizes)
        self.is_far, self.far, self.directions = is_far, far, np.random.default_rng(0)

    def forward(self, batch, want=Want()):  # noqa: B008  # frozen record
        """As the other does, but for these."""
        starts = [self.length(one.handle) for one in batch]
        step = super().forward(batch, want)
        row = 0
        for one, start in zip(batch, starts, strict=True):
            count = len(one.token_ids)
            rows = one.rows if one.rows is not None else {"last": 1, "all": count, "none": 0}[want.logits]
            for place in range(start + count - rows, start + count):
                logits, off = step.logits[row], self.directions.normal(size=step.logits.shape[1])
                size = (self.far if self.is_far(place) else 1e-3) * np.linalg.norm(logits) / np.linalg.norm(off)
                logits += (size * off).astype(np.float32)
                row += 1
        return step


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("numerics", ["w4a16", "w4a8"])
def test_what_rounding_alone_does_is_about_what_the_oracle_measures(tmp_path, name, numerics):
    """The error that the limit is derived from is at least the measured one, and no more than ten times it."""
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, seed=7, **GEOMETRIES[name]))
    ids = np.random.default_rng(0).integers(0, checkpoint.geometry.vocab_size, 40).tolist()
    exact = forward(checkpoint, ids)
    rounded = forward(checkpoint, ids, numerics_contract(numerics).rounding, exact.expert_ids)
    measured = nmse(rounded.logits, exact.logits)
    derived = of_rounding(numerics, checkpoint.geometry)

    assert measured <= derived <= 10 * measured
    assert between(numerics, checkpoint.geometry) == pytest.approx(4 * numerics_contract(numerics).nmse_factor * derived)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), angle=st.floats(0, np.pi))
def test_two_that_keep_the_contract_are_within_the_limit(seed, share, angle):
    """Whatever direction their errors take, opposite ones included, they are no further apart than twice the root."""
    rng, most = np.random.default_rng(seed), 2.0 * 1e-5
    exact, one, other = (rng.normal(size=500) for _ in range(3))
    one, other = (each / np.linalg.norm(each) for each in (one, other))
    other = np.cos(angle) * one + np.sin(angle) * other
    length = np.linalg.norm(exact) * np.sqrt(most)
    first, second = exact + length * one, exact + share * length / max(1, np.linalg.norm(other)) * other
    (error,) = row_errors(first[None], second[None])
    assert error <= 4 * most * 1.02  # relative to the first, which is √most off


def test_a_limit_is_the_contracts_or_what_is_accepted():
    """Exact has one of logits, other numerics one of errors; two numerics have none, and a limit goes before either."""
    exact, rounded, other = HashModel(), Rounded(), Rounded()
    other.numerics = "w4a8"
    assert limit_of(exact, exact, None) == Limit(most=EXACT_DELTA)
    assert limit_of(rounded, rounded, None) == Limit(most=between("w4a16", rounded.geometry), measure="error")
    assert limit_of(rounded, other, 0.25) == limit_of(rounded, rounded, 0.25) == Limit(most=0.25)
    with pytest.raises(InputError, match=r"from numerics 'w4a16' to 'w4a8'.*limit=X.*--shadow-limit X.*session\.use"):
        limit_of(rounded, other, None)
    assert [str(Limit(most=most)) for most in (1e-3, 0.25, 5.0)] == ["limit 1e-03", "limit 2.50e-01", "limit 5e+00"]


def test_errors_by_definition():
    """Squares over squares by row; the median of rows; nothing is infinite but what is no number."""
    first = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
    second = np.array([[3.0, 4.5], [1.0, 0.0], [0.0, 0.0], [2.0, np.nan]])
    found = row_errors(first, second)
    assert found.tolist() == [0.01, 0.0, 0.0, np.inf]
    assert median_of(found[:3]) == 0.0 and median_of(found) == np.inf


def test_a_switch_within_rounded_numerics_is_judged_by_the_median():
    """A quarter of rows far apart is no refusal, three quarters are, and one that is no number; figures say so."""
    with engine(Rounded(vocab=ByteTokenizer.vocab_size)) as made:
        turn(made, [USER], max_tokens=40)
        report = made.use(Rounded(lambda place: place % 4 == 0, vocab=ByteTokenizer.vocab_size), backend="other")
        assert report.is_within and report.measure == "error" and report.max_delta > 100 * EXACT_DELTA
        assert f"tokens: median error {report.error:.1e} (limit {report.limit:.2e}), max |Δlogit|" in str(report)
        with pytest.raises(SwitchRefused, match=r"the models differ: 64 tokens: median error \S+ \(limit"):
            made.use(Rounded(lambda place: place % 4, vocab=ByteTokenizer.vocab_size), backend="other")
        with pytest.raises(SwitchRefused, match="median error inf"):
            broken = Rounded(lambda place: place == 70, far=float("nan"), vocab=ByteTokenizer.vocab_size)
            made.use(broken, backend="other")
        assert made.use(Rounded(lambda place: True, vocab=ByteTokenizer.vocab_size), backend="other", limit=50.0).limit == 50.0
