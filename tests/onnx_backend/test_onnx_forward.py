"""The whole model against the oracle, however its tokens are cut and mixed, and what a checkpoint may look like."""

import json

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from hypothesis import given, settings  # only where ONNX Runtime is installed
from hypothesis import strategies as st

from k2core.conformance.kit import Subject, check_ops
from k2core.conformance.promises import check_promises
from k2core.conformance.whole_model import check_models
from k2core.errors import CheckpointError, ConfigError
from k2core.interfaces import SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.quantisation import family_config
from k2core.oracle.forward import forward as oracle_forward
from k2core.oracle.rounding import Rounding
from k2core.testing.checkpoints import tiny_config, tiny_tensors, write_safetensors, write_tiny_checkpoint
from k2core_numba.backend import NumbaBackend
from k2core_onnx import parts
from k2core_onnx.backend import OnnxBackend

EVERYTHING = Want(logits="all", routing=True, hidden=True)
ALL = Want(logits="all")


def some_ids(geometry, count, seed=0):
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, geometry.vocab_size, count).tolist()


def step_of(model, ids, want=EVERYTHING):
    """A fresh sequence in one forward."""
    handle = model.new_sequence()
    step = model.forward([SequenceInput(handle=handle, token_ids=ids)], want)
    model.free(handle)
    return step


def agrees(step, expected, decided=100):
    """Logits within 1e-3 of float64, the greedy token where it leads by 2e-3, routing where it is no tie."""
    assert np.abs(step.logits - expected.logits).max() <= 1e-3
    assert np.abs(step.hidden - expected.hidden).max() <= 1e-3
    best = np.sort(expected.logits)
    clear = best[:, -1] - best[:, -2] > 2e-3
    assert clear.sum() > decided
    np.testing.assert_array_equal(step.logits.argmax(-1)[clear], expected.logits.argmax(-1)[clear])
    sure = expected.router_margin > 1e-5
    for routing, chosen in zip(step.routing, expected.expert_ids, strict=True):
        assert (routing.expert_ids.dtype, routing.weights.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(np.sort(routing.expert_ids[sure]), np.sort(chosen[sure]))


@pytest.fixture(scope="module", params=[False, True], ids=["arrays", "bound"])
def model(request, both):
    """One loaded model for what draws many examples, its states in arrays or bound to the device."""
    loaded = OnnxBackend(bound=request.param).load(both)
    yield loaded
    loaded.close()


def test_logits_agree_with_the_oracle(model, both):
    """Round and odd sizes are within the bounds of every backend with numerics exact."""
    ids = some_ids(model.geometry, 150)
    agrees(step_of(model, ids), oracle_forward(Checkpoint.open(both), ids))


@pytest.mark.parametrize(
    "overrides",
    [
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 3},
        {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
        {"num_experts_per_tok": 4},
        {"n_routed_experts": 1, "num_experts_per_tok": 1},
        {"rope_scaling": None},
        {"qk_rope_head_dim": 2, "num_attention_heads": 1, "num_key_value_heads": 1},
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_geometries_of_the_family(tmp_path, overrides):
    """Dense layers from none to all, either normalisation, all experts or the only one, plain rotary positions, one pair."""
    folder = write_tiny_checkpoint(tmp_path, seed=6, **overrides)
    model, ids = OnnxBackend().load(folder), list(range(40, 100))
    agrees(step_of(model, ids), oracle_forward(Checkpoint.open(folder), ids), decided=40)


@pytest.mark.parametrize("fast", [1.0, 32.0])
@pytest.mark.parametrize("factor", [32.0, 64.0])
def test_every_yarn_of_the_family(tmp_path, factor, fast):
    """Both factors and both beta_fast of released models, over positions beyond the original ones."""
    scaling = tiny_config()["rope_scaling"] | {"factor": factor, "beta_fast": fast, "original_max_position_embeddings": 32}
    folder = write_tiny_checkpoint(tmp_path, seed=7, rope_scaling=scaling)
    ids = list(range(100))
    agrees(step_of(OnnxBackend().load(folder), ids), oracle_forward(Checkpoint.open(folder), ids), decided=60)


def test_384_experts(tmp_path):
    """A layer with the family's 384 experts and 8 of them per token is the oracle's, by one token and by many."""
    sizes = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "hidden_size": 32, "moe_intermediate_size": 32}
    folder = write_tiny_checkpoint(tmp_path, seed=8, n_routed_experts=384, num_experts_per_tok=8, **sizes)
    model, ids = OnnxBackend().load(folder), list(range(120))
    expected = oracle_forward(Checkpoint.open(folder), ids)
    agrees(step_of(model, ids), expected, decided=60)
    assert np.abs(step_of(model, ids[:1]).logits - expected.logits[:1]).max() <= 1e-3


@pytest.mark.parametrize("numerics", ["exact", "w4a8"])
@pytest.mark.parametrize("group", [16, 32, 48, 64, 96, 192])
def test_groups_become_blocks(tmp_path, group, numerics):
    """Groups that are no power of two are split into blocks that are; w4a8 rounds by at most 32 values, whatever the group."""
    sizes = {"hidden_size": 192, "moe_intermediate_size": 192, "quantization_config": family_config(group)}
    folder = write_tiny_checkpoint(tmp_path, seed=9, **sizes)
    checkpoint, ids = Checkpoint.open(folder), list(range(60))
    step, expected = step_of(OnnxBackend().load(folder, numerics=numerics), ids), oracle_forward(checkpoint, ids)
    if numerics == "exact":
        assert np.abs(step.logits - expected.logits).max() <= 1e-3
        return
    taken = [routing.expert_ids for routing in step.routing]
    rounded = oracle_forward(checkpoint, ids, Rounding(experts="int8"), taken).logits
    exact = oracle_forward(checkpoint, ids, choices=taken).logits
    assert 0 < ((step.logits - exact) ** 2).sum() <= 2 * ((rounded - exact) ** 2).sum()


def test_w4a8_rounds_as_its_oracle_does(both):
    """Activations of routed experts alone are rounded, by 32 to nearest of 127 steps: the rounding oracle's logits come."""
    ids = list(range(100))
    checkpoint, step = Checkpoint.open(both), step_of(OnnxBackend().load(both, numerics="w4a8"), ids)
    taken = [routing.expert_ids for routing in step.routing]
    expected = oracle_forward(checkpoint, ids, Rounding(experts="int8"), taken).logits
    exact = oracle_forward(checkpoint, ids, choices=taken).logits
    energy = ((expected - exact) ** 2).sum()
    assert ((step.logits - exact) ** 2).sum() <= 2 * energy
    assert ((step.logits - expected) ** 2).sum() <= 0.1 * energy  # what is left are values on an edge between two steps


@settings(max_examples=20, deadline=None)
@given(rounds=st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=5))
def test_cuts_and_batch_mates_change_little(rounds, model):
    """Three prompts in random pieces of a common batch have the logits that each has alone in one piece."""
    prompts = [some_ids(model.geometry, sum(one[place] for one in rounds), place) for place in range(3)]
    handles, got = [model.new_sequence() for _ in prompts], [[], [], []]
    for counts in filter(any, rounds):
        starts = [model.length(handle) for handle in handles]
        batch = [
            SequenceInput(handle=handles[place], token_ids=prompts[place][starts[place] : starts[place] + counts[place]])
            for place in range(3)
            if counts[place]
        ]
        parts = np.split(model.forward(batch, ALL).logits, np.cumsum(counts)[:-1])
        for place in range(3):
            got[place].append(parts[place])
    for handle, prompt, parts in zip(handles, prompts, got, strict=True):
        if prompt:
            assert np.abs(np.concatenate(parts) - step_of(model, prompt).logits).max() <= 1e-3
        model.free(handle)


def test_long_prompts_go_in_pieces(model, monkeypatch):
    """Where the scores of a prompt would be too many, its tokens go through attention a few at a time."""
    ids = some_ids(model.geometry, 90)
    whole = step_of(model, ids)
    monkeypatch.setattr(parts, "SCORES", 90 * model.geometry.num_attention_heads * 7)
    assert np.abs(step_of(model, ids).logits - whole.logits).max() <= 1e-3


def test_the_expert_seam_repeats_the_forward(model):
    """route, experts and forward of the seam belong together, by one token or many, and leave what they are given alone."""
    layer, moe = model.geometry.moe_layers.start, model.moe
    x = np.random.default_rng(3).standard_normal((9, model.geometry.hidden_size)).astype(np.float32)
    given = x.copy()
    routing, whole = moe.route(layer, x), moe.forward(layer, x)
    routed = moe.experts(layer, x, routing)
    for row in range(9):
        alone = moe.route(layer, x[row : row + 1])
        np.testing.assert_array_equal(np.sort(alone.expert_ids[0]), np.sort(routing.expert_ids[row]))
        np.testing.assert_allclose(moe.experts(layer, x[row : row + 1], alone)[0], routed[row], atol=1e-5)
        np.testing.assert_allclose(moe.forward(layer, x[row : row + 1])[0], whole[row], atol=1e-5)
    assert not np.allclose(whole, routed)
    assert moe.experts(layer, x[:0], moe.route(layer, x[:0])).shape == (0, model.geometry.hidden_size)
    np.testing.assert_array_equal(x, given)


@pytest.mark.parametrize("numerics", OnnxBackend.numerics)
def test_bound_states_keep_to_every_contract(numerics):
    """With states and caches that stay on the device the whole kit passes, as it does with arrays in the suite."""
    subject = Subject(name="onnx bound", backend=OnnxBackend(bound=True), device="cpu", numerics=numerics)
    found = [*check_ops(subject, count=2), *check_models(subject), *check_promises(subject)]
    wrong = [str(one) for one in found if not one.holds]
    assert len(found) > 50 and not wrong, "\n".join(wrong)


def test_bound_states_meet_other_backends_experts(both):
    """Attention bound to the device beside experts of another backend gives what one backend does."""
    ids = list(range(30))
    mixed = step_of(OnnxBackend(bound=True).load(both, moe=NumbaBackend().load_experts(both)), ids)
    np.testing.assert_allclose(mixed.logits, step_of(OnnxBackend().load(both), ids).logits, atol=1e-3)
    np.testing.assert_array_equal(mixed.routing[0].expert_ids, step_of(NumbaBackend().load(both), ids).routing[0].expert_ids)


def test_a_tie_goes_to_the_lower_expert(tmp_path):
    """Experts with the same weights of the router and the same bias are taken in their order."""
    config = tiny_config(n_routed_experts=8, num_experts_per_tok=3)
    tensors = tiny_tensors(Geometry.from_config(config), seed=1)
    for layer in (1, 2):
        gate = tensors[f"model.layers.{layer}.mlp.gate.weight"]
        gate[:] = gate[:1]
        tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"][:] = [0, 0, 1, 0, 0, 1, 0, 0]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    for routing in step_of(OnnxBackend().load(tmp_path), list(range(30))).routing:
        np.testing.assert_array_equal(routing.expert_ids, np.tile([2, 5, 0], (30, 1)))


def test_shards_and_either_type_of_stated_shapes(tmp_path):
    """Shards with an index, stated shapes as int32, and plain weights as float32 change nothing."""
    whole = step_of(OnnxBackend().load(write_tiny_checkpoint(tmp_path / "whole", seed=2)), list(range(50)))
    shards = write_tiny_checkpoint(tmp_path / "shards", seed=2, shards=3)
    config = tiny_config()
    tensors = {
        name: value.astype(np.int32 if name.endswith("weight_shape") else np.float32)
        if name.endswith("weight_shape") or (value.dtype == ml_dtypes.bfloat16 and not name.endswith("weight_scale"))
        else value
        for name, value in tiny_tensors(Geometry.from_config(config), seed=2).items()
    }
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(other / "model.safetensors", tensors)
    for folder in (shards, other):
        np.testing.assert_array_equal(step_of(OnnxBackend().load(folder), list(range(50))).logits, whole.logits)


def test_groups_without_blocks_are_named(tmp_path):
    """A group of 8 is one line with the tensor and what is taken."""
    folder = write_tiny_checkpoint(tmp_path, quantization_config=family_config(8))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.0\.gate_proj: its groups have 8 columns"):
        OnnxBackend().load(folder)


def test_threads_come_from_the_environment(both, monkeypatch):
    """K2CORE_THREADS is told back and changes little; what is no positive number is a ConfigError."""
    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("K2CORE_THREADS", threads)
        model = OnnxBackend().load(both)
        assert model.info()["threads"] == threads
        found.append(step_of(model, list(range(60))).logits)
    assert np.abs(found[0] - found[1]).max() <= 1e-4
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv("K2CORE_THREADS", wrong)
        with pytest.raises(ConfigError, match="K2CORE_THREADS"):
            OnnxBackend().load(both)
