"""The kit itself: it accepts what is right, refuses what is wrong by far, and says where."""

import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.conformance.cases import cases, drawn_case, make_case
from k2core.conformance.contracts import contracts, numerics_contract, read_contract, read_numerics
from k2core.conformance.judged import Judged
from k2core.conformance.kit import Subject, check_ops
from k2core.conformance.probes.all import PROBES
from k2core.conformance.promises import check_promises
from k2core.conformance.properties import PROPERTIES
from k2core.conformance.records import evaluate
from k2core.conformance.report import Refused
from k2core.conformance.spec_files import SpecError
from k2core.conformance.subjects import Missing, discovered
from k2core.conformance.whole_model import check_models
from k2core.errors import ShapeError
from k2core.interfaces import Available, NotAvailable
from k2core.testing.reference import MISTAKES, ReferenceBackend, ReferenceModel

LEAST_FACTOR = 10  # by which a planted mistake must exceed what is allowed
RMS_NORM = files("k2core_specs").joinpath("ops/rms_norm.toml").read_text(encoding="utf-8")


def subject(*mistakes, name="reference"):
    """The reference backend with what is planted."""
    return Subject(name=name, backend=ReferenceBackend(*mistakes), device="cpu", numerics="exact")


def test_the_reference_backend_keeps_to_every_contract():
    """A plain NumPy backend, written without regard to the kit, passes all of it."""
    found = (*check_ops(subject(), count=8), *check_models(subject()), *check_promises(subject()))
    wrong = [str(one) for one in found if not one.holds]
    assert not wrong, "\n".join(wrong)


def test_planted_mistakes_are_refused_by_far(capsys):
    """Each of ten mistakes exceeds its limit at least tenfold in some op; the factors are printed."""
    factors = {}
    for mistake in MISTAKES:
        found = [(one.worst, one.op) for one in check_ops(subject(mistake), count=8)]
        factors[mistake], op = max(found)
        with capsys.disabled():
            print(f"\n  planted {mistake:18} {factors[mistake]:10.3g} times its limit, in {op}", end="")
    assert len(factors) == 10
    assert min(factors.values()) >= LEAST_FACTOR, factors


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_seen_in_whole_models(mistake):
    """Each of ten mistakes breaks the rules end to end, too, on some geometry."""
    assert any(not one.holds for one in check_models(subject(mistake)))


def test_a_difference_says_where():
    """A refusal names op, backend, sizes, seed, place, both numbers and what is allowed."""
    wrong = next(one for one in check_ops(subject("no_offset"), only=["moe_experts"]) if not one.holds)
    assert wrong.difference is not None and wrong.difference.factor > LEAST_FACTOR
    number = r"-?[\d.e+-]+"
    assert re.fullmatch(
        rf"moe_experts on reference \(exact\), within_bound: y\[\d+, \d+\] is {number}, expected {number} ± {number} "
        rf"\({number} times\)\. Case: tokens=\d+ hidden=\d+ inner=\d+ experts=\d+ top_k=\d+ seed=\d+",
        str(wrong),
    )


class Forgetful(ReferenceModel):
    """A model whose truncate keeps the rest in the cache."""

    def truncate(self, handle, length):
        """Only the number changes."""
        self._sequences.cut(handle, length, "truncate").length = length


class Claiming(ReferenceModel):
    """A model that declares what NumPy does not give."""

    batch_invariant = True


class Scribbling(ReferenceModel):
    """A model whose seam writes into what it is given."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        route = self.moe.route
        self.moe.route = lambda layer, x: (route(layer, x), x.fill(0))[0]


@pytest.mark.parametrize(
    ("model", "op", "prop"),
    [
        (Forgetful, "mla_attention", "truncate_is_never_seen"),
        (Claiming, "mla_attention", "prefill_is_token_by_token"),
        (Scribbling, "moe_route", "inputs_are_unchanged"),
    ],
)
def test_broken_promises_are_found(model, op, prop, monkeypatch):
    """A cache that remembers, bits that depend on the batch and changed inputs are each found by their property."""
    monkeypatch.setattr("k2core.testing.reference.ReferenceModel", model)
    found = {one.property: one for one in check_ops(subject(), count=12, only=[op])}
    assert not found[prop].holds


def test_what_a_backend_raises_is_an_outcome():
    """A backend that cannot load a case fails that op with its line; the others go on."""
    backend = ReferenceBackend()
    load = backend.load

    def refusing(checkpoint, **options):
        model = load(checkpoint, **options)
        if len(model.geometry.moe_layers):
            raise ShapeError("no experts today")
        return model

    backend.load = refusing
    found = list(check_ops(Subject(name="picky", backend=backend, device="cpu", numerics="exact"), count=1))
    assert {one.op for one in found if one.error} == {"int4_dequant", "moe_route", "moe_experts", "moe_forward"}
    assert all("no experts today" in one.error for one in found if not one.holds)
    assert all(one.holds for one in found if not one.op.startswith(("moe", "int4")))


def test_every_probe_has_a_contract_and_every_property_is_asked_for():
    """Specifications and code name the same ops and the same properties."""
    assert set(contracts()) == set(PROBES)
    assert {prop for contract in contracts().values() for prop in contract.properties} == set(PROPERTIES)


@pytest.mark.parametrize("op", PROBES)
@settings(max_examples=20)
@given(data=st.data())
def test_cases_are_what_the_contract_says(op, data):
    """Sizes lie in their ranges, arrays have their shapes, and the same seed gives the same case."""
    contract = contracts()[op]
    case = data.draw(cases(contract))
    sizes = {}
    for axis in contract.axes:
        assert case.axes[axis.name] in axis.sizes(sizes)
        sizes[axis.name] = case.axes[axis.name]
    for one in contract.inputs:
        shape = tuple(evaluate(expression, sizes) for expression in one.shape)
        value = case.inputs[one.name]
        assert (len(value), *value[0].shape) == shape if one.values == "int4" else value.shape == shape
    again = make_case(contract, case.axes, case.parameters, case.seed)
    for name, value in case.inputs.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(again.inputs[name], value)
    assert drawn_case(contract, case.seed).axes == drawn_case(contract, case.seed).axes


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "rms_norm"', 'name = "norm"', "key 'name' is 'norm', expected 'rms_norm'"),
        ('source = "', 'origin = "', "key 'source' is missing"),
        ('oracle = "k2core.oracle.rms_norm:rms_norm"', 'oracle = "k2core.oracle.rms_norm:rms"', "key 'oracle' is"),
        ("least = 1, most = 12", "least = 13, most = 12", "key 'axes.tokens' is"),
        ("least = 32, most = 160, multiple = 32", "least = 33, most = 60, multiple = 32", "key 'axes.hidden' is"),
        ("least = 1, most = 12", 'least = 1, most = "experts"', "key 'axes.tokens.most' is 'experts'"),
        ('shape = ["hidden"]', 'shape = ["width"]', "key 'inputs.gain.shape' is ['width']"),
        ('shape = ["hidden"]', 'shape = ["hidden - 1"]', "key 'inputs.gain.shape' is ['hidden - 1']"),
        ('values = "gain"', 'values = "gains"', "key 'inputs.gain.values' is 'gains'"),
        ('"within_bound", ', '"within_bounds", ', "key 'properties' is ['within_bounds', "),
        ("eps = [1e-6, 1e-5, 1e-2]", "eps = []", "key 'parameters.eps' is []"),
        ("tokens = 4\nhidden = 7168", "tokens = 4", "key 'profiles.k2.hidden' is missing"),
        ('derivation = """', 'reason = """', "key 'bound.derivation' is"),
        ("rms_norm_bound", "rms_norm_limit", "key 'bound.function' is"),
        ("[bound]", "[bound", "cannot read specification"),
        ("[axes]", "[more]\nkey = 1\n\n[axes]", "key 'more' is"),
    ],
)
def test_a_wrong_specification_is_told_with_file_and_key(tmp_path, old, new, complaint):
    """What is missing, unknown, impossible or no TOML is one line that names the file and the key."""
    assert old in RMS_NORM
    file = tmp_path / "rms_norm.toml"
    file.write_text(RMS_NORM.replace(old, new, 1))
    with pytest.raises(SpecError) as refused:
        read_contract(file)
    assert complaint in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[w4a8]", "[w4a9]", "key 'w4a9' is"),
        ('experts = "int8"', 'experts = "int7"', "key 'w4a8.experts' is 'int7'"),
        ("nmse_factor = 2.0", "nmse_factor = -2.0", "key 'w4a16.model.nmse_factor' is -2.0"),
        ("greedy_margin = 2e-3", "", "key 'exact.model.greedy_margin' is missing"),
    ],
)
def test_a_wrong_numerics_is_told_with_file_and_key(tmp_path, old, new, complaint):
    """The same for the numerics."""
    text = files("k2core_specs").joinpath("numerics.toml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "numerics.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(SpecError, match=re.escape(complaint)):
        read_numerics(file)


def test_each_numerics_has_an_entry_of_its_own():
    """Three numerics round three different things."""
    roundings = {numerics_contract(name).rounding for name in ("exact", "w4a16", "w4a8")}
    assert len(roundings) == 3


def test_judging_is_of_equal_shapes_and_of_numbers():
    """A wrong shape is an error of its own, NaN is infinitely wrong, and equality is enough where nothing is allowed."""
    zeros = np.zeros((2, 2))
    with pytest.raises(ShapeError, match="got an array"):
        Judged(output="y", got=np.zeros(2), expected=zeros, allowed=zeros)
    assert Judged(output="y", got=zeros, expected=zeros, allowed=zeros).worst == 0
    assert Judged(output="y", got=zeros + np.nan, expected=zeros, allowed=zeros + 1).worst == np.inf
    one = Judged(output="y", got=np.array([[0, 3.0], [0, 0]]), expected=zeros, allowed=zeros + 2)
    assert (one.worst, one.place) == (1.5, (0, 1))


def test_what_is_not_available_is_named():
    """Discovery gives every device and numerics that there is, and the reason for what there is not."""

    class Entry:
        def __init__(self, name, backend):
            self.name, self.backend = name, backend

        def make(self):
            return self.backend

    class Two(ReferenceBackend):
        numerics = ("exact", "w4a8")

        def probe(self):
            return Available(device="cpu", devices=("cpu", "gpu"), missing={"npu": "none is plugged in"})

    class Gone(ReferenceBackend):
        def probe(self):
            return NotAvailable(reason="its library is missing")

    class Registered:
        def entries(self, kind):
            return [Entry("two", Two()), Entry("gone", Gone())] if kind == "backend" else []

    found = list(discovered(Registered()))
    assert [(one.name, one.device, one.numerics) for one in found if isinstance(one, Subject)] == [
        ("two", "cpu", "exact"), ("two", "cpu", "w4a8"), ("two", "gpu", "exact"), ("two", "gpu", "w4a8"),
    ]  # fmt: skip
    assert {(one.name, one.reason) for one in found if isinstance(one, Missing)} == {
        ("two on npu", "none is plugged in"),
        ("gone", "its library is missing"),
    }


def test_a_refusal_can_be_caught_as_one():
    """`Subject.check` raises what it found, with the numbers."""
    with pytest.raises(Refused) as refused:
        subject("gate_up_swapped").check(drawn_case(contracts()["moe_experts"], 1), "within_bound")
    assert refused.value.difference.op == "moe_experts"
