"""Specifications hold: golden cases, geometries with their sources, formats as the code writes them."""

import json
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import k2core_specs
from k2core.cli.models import describe
from k2core.conformance.cases import drawn_case, make_case
from k2core.conformance.contracts import contracts, read_contract, read_numerics
from k2core.conformance.kit import Subject, check_ops
from k2core.conformance.models import NAMES, model_config, model_spec, read_model
from k2core.conformance.probes.all import PROBES
from k2core.conformance.probes.base import Layer
from k2core.conformance.spec_files import SpecError
from k2core.messages import Message
from k2core.model.config import Geometry
from k2core.model.int4 import PackedMatrix, dequantise, pack, unpack
from k2core.model.quantisation import family_config
from k2core.oracle.moe_route import moe_route
from k2core.oracle.rounding import EXACT
from k2core.testing.checkpoints import tiny_config
from k2core.testing.reference import ReferenceBackend
from k2core_kimi import markers

SPECS = files("k2core_specs")
CASES = SPECS.joinpath("cases")
READERS = {"ops": read_contract, "models": read_model, "numerics.toml": read_numerics}
REFERENCE = Subject(name="reference", backend=ReferenceBackend(), device="cpu", numerics="exact")


def golden(name):
    """The lines of one file of cases."""
    return [json.loads(line) for line in CASES.joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def k2_geometry(**scaling):
    """Kimi K2's geometry with some of its position scaling replaced."""
    config = model_config("kimi_k2")
    return Geometry.from_config({**config, "rope_scaling": {**config["rope_scaling"], **scaling}})


@pytest.mark.parametrize("case", golden("int4_dequant"), ids=lambda case: case["why"][:30])
def test_golden_words_are_dequantised(case):
    """Words and scales that can be worked out by hand give their values exactly, and pack back to the words."""
    words = np.array(case["words"], np.int32)
    np.testing.assert_array_equal(dequantise(words, np.array(case["scale"], np.float32)), case["values"])
    np.testing.assert_array_equal(pack(unpack(words)), words)


@pytest.mark.parametrize("case", golden("moe_route"), ids=lambda case: case["why"][:30])
def test_golden_choices_are_made(case):
    """Ties, biases and scaling that can be worked out by hand."""
    arrays = (np.array(case[name]) for name in ("x", "router", "bias"))
    ids, weights = moe_route(*arrays, case["top_k"], normalise=case["normalise"], factor=case["factor"])
    assert ids.tolist() == case["expert_ids"]
    np.testing.assert_allclose(weights, case["weights"], rtol=1e-6)


@pytest.mark.parametrize("case", golden("rope_yarn"), ids=lambda case: case["why"][:30])
def test_golden_frequencies_are_those_of_the_family(case):
    """Frequencies and softmax scales of published geometries."""
    geometry = k2_geometry(factor=case["factor"], beta_fast=case["beta_fast"])
    assert (geometry.qk_rope_head_dim, geometry.rope_theta) == (case["dim"], case["theta"])
    np.testing.assert_allclose(geometry.inv_freq[case["indices"]], case["inv_freq"], rtol=1e-5)
    assert geometry.softmax_scale == pytest.approx(case["softmax_scale"], rel=1e-6)


def test_kimi_k2_has_the_published_sizes():
    """Parameters, cache and experts that follow from the geometry are those that others report."""
    spec = model_spec("kimi_k2")
    derived = spec["derived"]
    geometry = Geometry.from_config({**model_config("kimi_k2"), "quantization_config": family_config()})
    described = describe(geometry)
    unread = (geometry.vocab_size - 1) * geometry.hidden_size
    assert described["parameters"]["all"] == derived["parameters"]
    assert described["parameters"]["active"] + unread == derived["active_parameters"]
    assert geometry.cache_values_per_token * 2 == derived["cache_bytes_per_token_bfloat16"]
    matrix = geometry.hidden_size * geometry.moe_intermediate_size
    assert 3 * (matrix // 2 + matrix // 32 * 2) == derived["expert_bytes"]
    assert geometry.softmax_scale == pytest.approx(derived["softmax_scale"], rel=1e-6)
    assert all(one["from"] for key, one in spec["config"].items() if key != "rope_scaling")


def test_nano_is_what_is_shipped():
    """The embedded model's config.json says what its specification says."""
    import k2core_nano

    shipped = json.loads((Path(k2core_nano.__file__).parent / "weights" / "config.json").read_text(encoding="utf-8"))
    for key, value in model_config("nano").items():
        assert shipped[key] == value, key


def test_tiny_is_what_tests_load():
    """The config of tiny checkpoints is the specification's."""
    assert tiny_config(quantised=False) == model_config("tiny")


def edited(folder, path, old, new):
    """A copy of a specification with one edit, and what reads it."""
    text = SPECS.joinpath(path).read_text(encoding="utf-8")
    assert old in text
    file = folder / Path(path).name
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file, READERS[path.partition("/")[0]]


TOKENS = "tokens = { least = 1, most = 12 }"
LIMITS = "hidden = { least = 32, most = 160, multiple = 32 }"
SIZES = f"[axes]\n{TOKENS}\n{LIMITS}\n\n[profiles.k2]\ntokens = 4\nhidden = 7168\n"
GATE = 'gate = { shape = ["experts", "inner", "hidden"], values = "int4", fan_in = "hidden" }\n'
CHOICE = 'values = "choice", below = "experts"'
Y = '[outputs.y]\nshape = ["tokens", "hidden"]\ndtype = "float32"\n'
IDS = 'expert_ids = { shape = ["tokens", "top_k"], dtype = "int32" }'
FACTOR = '\nfactor = { value = 4.0, from = "o" }'
HIDDEN = 'hidden_size = { value = 64, from = "o" }'
CHOSEN = 'num_experts_per_tok = { value = 2, from = "o" }'
MOE, ROUTE, NORM, ROPE = (f"ops/{op}.toml" for op in ("moe_experts", "moe_route", "rms_norm", "rope_yarn"))
MLA, HEAD, INT4 = (f"ops/{op}.toml" for op in ("mla_attention", "lm_head", "int4_dequant"))
NUMERICS, TINY = "numerics.toml", "models/tiny.toml"
WRONG = [
    # what is no value of its kind
    (MOE, TOKENS, 'tokens = { least = "one", most = 12 }', "key 'axes.tokens.least' is 'one'"),
    (MOE, TOKENS, "tokens = { least = 1.5, most = 12 }", "key 'axes.tokens.least' is 1.5"),
    (MOE, TOKENS, "tokens = { least = true, most = 12 }", "key 'axes.tokens.least' is True"),
    (MOE, TOKENS, "tokens = { least = 1, most = [] }", "key 'axes.tokens.most' is []"),
    (MOE, TOKENS, 'tokens = { least = 1, most = 12, multiple = "x" }', "key 'axes.tokens.multiple' is 'x'"),
    (MOE, TOKENS, "tokens = 3", "key 'axes.tokens' is 3"),
    (NORM, "spread = [1e-3, 1.0, 30.0]", 'spread = "wide"', "key 'inputs.x.spread' is 'wide'"),
    (NORM, "spread = [1e-3, 1.0, 30.0]", "spread = 2", "key 'inputs.x.spread' is 2"),
    (NORM, "spread = [1e-3, 1.0, 30.0]", "spread = []", "key 'inputs.x.spread' is []"),
    (NORM, "spread = [1e-3, 1.0, 30.0]", "spread = [0.0]", "key 'inputs.x.spread' is [0.0]"),
    (NORM, 'shape = ["hidden"]', "shape = 3", "key 'inputs.gain.shape' is 3"),
    (NORM, 'shape = ["hidden"]', "shape = [32]", "key 'inputs.gain.shape' is [32]"),
    (NORM, SIZES, f"profiles = 3\n{SIZES.partition('[profiles')[0]}", "key 'profiles' is 3"),
    (NORM, SIZES, f"{SIZES.partition('.k2')[0]}]\nk2 = 3\n", "key 'profiles.k2' is 3"),
    (NORM, "eps = [1e-6, 1e-5, 1e-2]", 'eps = ["small"]', "key 'parameters.eps' is ['small']"),
    (NORM, "eps = [1e-6, 1e-5, 1e-2]", "eps = [0.0]", "key 'parameters.eps' is [0.0]"),
    (NORM, 'summary = "', 'summary = "" # "', "key 'summary' is ''"),
    (NUMERICS, "logit_delta = 1e-3", 'logit_delta = "x"', "key 'exact.model.logit_delta' is 'x'"),
    (NUMERICS, "nmse_factor = 2.0", 'nmse_factor = "2"', "key 'w4a16.model.nmse_factor' is '2'"),
    (NUMERICS, "[w4a16.model]", "model = 3\n[w4a16.rules]", "key 'w4a16.rules' is"),
    (TINY, HIDDEN, 'hidden_size = { value = "x", from = "o" }', "key 'hidden_size' is 'x'"),
    (TINY, HIDDEN, 'hidden_size = { value = -64, from = "o" }', "key 'hidden_size' is -64"),
    (TINY, HIDDEN, 'hidden_size = { value = 65, from = "o" }', "key 'hidden_size' is 65"),
    (TINY, HIDDEN, "", "key 'hidden_size' is missing"),
    (TINY, HIDDEN, "hidden_size = 64", "key 'config.hidden_size' is 64"),
    (TINY, HIDDEN, "hidden_size = { value = 64, from = 3 }", "key 'config.hidden_size.from' is 3"),
    (TINY, FACTOR, FACTOR.replace('"o"', '"x"'), "key 'config.rope_scaling.factor.from' is 'x'"),
    (TINY, "[sources]", "[source]", "key 'sources' is missing"),
    (TINY, "[config]", "[config", "cannot read specification"),
    # what cannot be satisfied
    (MOE, "top_k = 8", "top_k = 13", "key 'profiles.k2.top_k' is 13"),
    (MOE, "hidden = 7168", "hidden = 7169", "key 'profiles.k2.hidden' is 7169"),
    (MOE, "hidden = 7168", "hidden = -32", "key 'profiles.k2.hidden' is -32"),
    (HEAD, 'fan_in = "hidden"', 'fan_in = "0"', "key 'inputs.weight.fan_in' is '0'"),
    (MOE, CHOICE, 'values = "choice", below = "width"', "key 'inputs.expert_ids.below' is 'width'"),
    (MOE, CHOICE, 'values = "choice", below = []', "key 'inputs.expert_ids.below' is []"),
    (MOE, CHOICE, 'values = "choice"', "key 'inputs.expert_ids.below' is missing"),
    (ROPE, "least = 2, most = 16", "least = 2, most = 40", "key 'axes' is"),
    (MLA, "rope = { least = 2, most = 16, multiple = 2 }", "rope = { least = 2, most = 16 }", "key 'axes' is"),
    (NORM, "multiple = 32", "multiple = 16", "key 'axes' is"),
    (TINY, CHOSEN, 'num_experts_per_tok = { value = 5, from = "o" }', "key 'num_experts_per_tok' is 5"),
    # what is not what the op's probe reads and judges by
    (MOE, GATE, f"gate_proj{GATE.removeprefix('gate')}", "key 'gate' is missing"),
    (MOE, GATE, "", "key 'gate' is missing"),
    (MOE, GATE, f"{GATE}more{GATE.removeprefix('gate')}", "key 'inputs.more' is"),
    (MOE, GATE, GATE.replace('"inner", "hidden"]', '"hidden", "inner"]'), "key 'inputs.gate' is"),
    (MOE, GATE, GATE.replace('"experts"', '"experts + 1"'), "key 'inputs.gate' is"),
    (MOE, GATE, GATE.replace("int4", "normal"), "key 'inputs.gate' is"),
    (MOE, CHOICE, 'values = "choice", below = "tokens"', "key 'inputs.expert_ids' is"),
    (MOE, CHOICE, 'values = "positive"', "key 'inputs.expert_ids' is"),
    (MOE, 'x = { shape = ["tokens", "hidden"]', 'x = { shape = ["hidden", "tokens"]', "key 'inputs.x' is"),
    (ROPE, "offset = {", "shift = {", "key 'outputs.hidden.shape' is ['offset + tokens', 'hidden']"),
    (NORM, "eps = [", "epsilon = [", "key 'eps' is missing"),
    (ROUTE, "normalise = [true, false]", "", "key 'normalise' is missing"),
    (MOE, "[outputs.y]", "[outputs.z]", "key 'outputs.y' is missing"),
    (MOE, Y, Y.replace('"tokens", "hidden"', '"hidden", "tokens"'), "key 'outputs.y' is"),
    (MOE, Y, Y.replace("float32", "float33"), "key 'outputs.y.dtype' is 'float33'"),
    (MOE, Y, Y.replace("float32", "int32"), "key 'outputs.y' is"),
    (MOE, Y, f"{Y}[outputs.more]\n{Y.partition(chr(10))[2]}", "key 'outputs.more' is"),
    (ROUTE, IDS, IDS.replace('"tokens", "top_k"', '"top_k", "tokens"'), "key 'outputs.expert_ids' is"),
    (ROUTE, IDS, IDS.replace("int32", "float32"), "key 'outputs.expert_ids' is"),
    (HEAD, 'hidden"], dtype = "float32"', 'hidden"], dtype = "int32"', "key 'outputs.hidden' is"),
    (NORM, "bounds:rms_norm_bound", "bounds:linear_bound", "key 'bound.function' is 'k2core.oracle.bounds:linear_bound'"),
    (NORM, "bounds:rms_norm_bound", "bounds:none", "key 'bound.function' is 'k2core.oracle.bounds:none'"),
    (NORM, 'function = "k2core.oracle.bounds:rms_norm_bound"', "", "key 'bound.function' is missing"),
    (INT4, "[bound]", '[bound]\nfunction = "k2core.oracle.bounds:linear_bound"', "key 'bound.function' is 'k2core"),
    (NORM, "k2core.oracle.rms_norm:rms_norm", "k2core.oracle.linear:linear", "key 'oracle' is 'k2core.oracle.linear:linear'"),
    (NORM, '["within_bound"', '["fork_leaves_the_parent"', "key 'properties' is ['fork_leaves_the_parent'"),
    (ROPE, '["within_bound"]', '["within_bound", 3]', "key 'properties' is ['within_bound', 3]"),
    (INT4, '"inputs_are_unchanged"', '"tokens_are_independent"', "key 'properties' is ['within_bound', 'tokens_are"),
    (TINY, 'name = "tiny"', 'name = "small"', "key 'name' is 'small', expected 'tiny'"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "old", "new", "complaint"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_specification_is_one_line_with_file_and_key(tmp_path, path, old, new, complaint):
    """One key at a time: no value of its kind, not to be satisfied, or not what the op's probe reads and judges by."""
    file, read = edited(tmp_path, path, old, new)
    with pytest.raises(SpecError) as refused:
        read(file)
    assert complaint in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("folder", ["ops", "models", "numerics.toml"])
def test_what_is_shipped_is_right(folder):
    """Every specification that is shipped is read without a complaint."""
    place = SPECS.joinpath(folder)
    found = [one for one in (place.iterdir() if place.is_dir() else [place]) if one.name.endswith(".toml")]
    assert found and all(READERS[folder](file) for file in found)


def test_a_case_that_no_checkpoint_can_have_is_no_fault_of_a_backend():
    """Whatever the reading let through, sizes that fail before a backend has a part in it are told of the contract's file."""
    case = drawn_case(contracts()["mla_attention"], 0)
    odd = make_case(case.contract, {**case.axes, "rope": 3}, case.parameters, seed=0)
    with pytest.raises(SpecError, match=r"mla_attention.toml: key 'axes' allows .*rope=3.* expected an even number") as refused:
        REFERENCE.check(odd, "within_bound")
    assert "\n" not in str(refused.value)


def test_a_wrong_numerics_is_no_fault_of_a_backend(tmp_path, monkeypatch):
    """What is wrong with the numerics ends the check, instead of being told of every op on every backend."""
    file, read = edited(tmp_path, NUMERICS, 'dense = "none"', 'dense = "some"')
    monkeypatch.setattr("k2core.conformance.kit.numerics_contract", lambda name: read(file)[name])
    with pytest.raises(SpecError, match=r"numerics.toml: key 'exact.dense' is 'some'"):
        list(check_ops(REFERENCE, count=1))


@pytest.mark.parametrize("op", PROBES)
def test_what_a_contract_names_is_what_its_probe_calls(op):
    """The bound that is named is called while a case is judged, and so is an equation of the oracle's module."""
    probe, case = PROBES[op], drawn_case(contracts()[op], 0)
    layer: Layer = probe.layer(case)
    with REFERENCE.loaded(layer) as model:
        outputs = probe.run(model, case, [range(case.axes.get("tokens", 0))])
    called = set()
    sys.setprofile(lambda frame, *_: called.add((frame.f_globals.get("__name__"), frame.f_code.co_name)))
    try:
        assert all(one.worst <= 1 for one in probe.judge(case, layer.geometry, outputs, EXACT))
    finally:
        sys.setprofile(None)
    assert probe.bound is None or tuple(probe.bound.split(":")) in called
    assert probe.oracle.partition(":")[0] in {module for module, _ in called}


def test_an_unknown_model_is_told():
    """The error names what there is."""
    with pytest.raises(SpecError, match=", ".join(NAMES)):
        model_spec("k3")


def test_the_int4_format_is_what_the_code_reads():
    """Offset, order and group of the format's file are those of `k2core.model.int4`."""
    spec = k2core_specs.load("formats/int4_group32.toml")
    codes = np.arange(spec["least_code"], spec["most_code"] + 1, dtype=np.int8).reshape(2, 8)
    words = pack(codes).view(np.uint32)
    for row, word in zip(codes, words[:, 0], strict=True):
        for column, code in enumerate(row):
            assert (int(word) >> (spec["bits"] * column)) & 15 == code + spec["offset"]
    matrix = PackedMatrix(packed=np.zeros((2, 8), np.int32), scale=np.ones((2, 2), np.float32), shape=(2, 64))
    assert matrix.group == spec["group"]
    assert spec["codes_per_word"] * spec["bits"] == 32


def test_calls_are_written_as_the_format_says():
    """Markers and ids of the call format are those of the family's plugin, and the example is what they make."""
    spec = k2core_specs.load("formats/tool_call.toml")
    assert spec["section"] == [markers.SECTION, markers.SECTION_END]
    assert spec["call"] == [markers.CALL, markers.ARGUMENTS, markers.CALL_END]
    begin, arguments, end = spec["call"]
    written = "".join(
        begin + spec["id"].format(**call) + arguments + call["arguments"] + end for call in spec["example"]["calls"]
    )
    assert spec["section"][0] + written + spec["section"][1] == spec["example"]["text"]
    for call in spec["example"]["calls"]:
        assert markers.native_id(call["name"], call["index"]) == spec["id"].format(**call)


def test_messages_are_rendered_as_the_format_says():
    """The examples of the chat format are what the family's chat format renders."""
    from k2core_kimi.chat_format import KimiChatFormat
    from k2core_kimi.tokenizer import KimiTokenizer
    from k2core_nano import WEIGHTS

    spec = k2core_specs.load("formats/chat.toml")
    tokenizer = KimiTokenizer.open(WEIGHTS)
    chat = KimiChatFormat(tokenizer)
    for example in spec["examples"]:
        ids = chat.render([Message(**one) for one in example["messages"]])
        assert tokenizer.decode(ids) == example["text"]
    assert [tokenizer.decode([one]) for one in chat.stop_ids][:1] == [spec["stop"]]
