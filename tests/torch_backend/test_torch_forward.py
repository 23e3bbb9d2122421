"""The whole model against the oracle on both ways, however its tokens are cut and mixed, whatever a checkpoint looks like."""

import json

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings  # only where PyTorch is installed
from hypothesis import strategies as st

from k2core.conformance.whole_model import GEOMETRIES
from k2core.interfaces import SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.quantisation import family_config
from k2core.oracle.forward import forward as oracle_forward
from k2core.oracle.rounding import Rounding
from k2core.testing.checkpoints import tiny_config, tiny_tensors, write_safetensors, write_tiny_checkpoint
from k2core_torch import attention, attention_fast, contiguous
from k2core_torch import model as torch_model
from k2core_torch.backend import TorchBackend

EVERYTHING = Want(logits="all", routing=True, hidden=True)
ALL = Want(logits="all")
ROUNDED = Rounding(dense="bfloat16", experts="bfloat16", attention="bfloat16")
WAYS = ["fast", "eager"]


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


@pytest.fixture(scope="module", params=["tiny", "odd"])
def folder(request, tmp_path_factory):
    """A tiny checkpoint: one of round sizes, one where hardly a size is a multiple of anything."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), seed=11, **GEOMETRIES[request.param])


@pytest.fixture(scope="module", params=WAYS)
def model(request, folder):
    """Either way, loaded once for what draws many examples."""
    loaded = TorchBackend(request.param).load(folder)
    yield loaded
    loaded.close()


def test_logits_agree_with_the_oracle(model, folder):
    """Round and odd sizes are within the bounds of every backend with numerics exact."""
    ids = some_ids(model.geometry, 150)
    agrees(step_of(model, ids), oracle_forward(Checkpoint.open(folder), ids))


@pytest.mark.parametrize("size", ["mapped", "small"])
def test_weights_as_they_lie_give_the_same_numbers(folder, monkeypatch, size):
    """A large model's weights stay bfloat16 views and its experts apart; converted per use they give the oracle's numbers."""
    monkeypatch.setattr(torch_model, "SMALL", 0 if size == "mapped" else 1 << 40)
    monkeypatch.setattr("k2core_torch.routed.SMALL", 0 if size == "mapped" else 1 << 40)
    monkeypatch.setattr("k2core_torch.products.PIECE", 1000)
    model = TorchBackend("fast").load(folder)
    ids = some_ids(model.geometry, 100)
    agrees(step_of(model, ids), oracle_forward(Checkpoint.open(folder), ids), decided=60)


@pytest.mark.parametrize("way", WAYS)
def test_w4a16_rounds_as_its_oracle_does(folder, way):
    """Logits are at most twice as far from float64 as the oracle's that rounds to bfloat16, NMSE; and not as near as exact."""
    checkpoint, ids = Checkpoint.open(folder), list(range(100))
    step = step_of(TorchBackend(way).load(folder, numerics="w4a16"), ids)
    taken = [routing.expert_ids for routing in step.routing]
    exact = oracle_forward(checkpoint, ids, choices=taken).logits
    rounded = oracle_forward(checkpoint, ids, ROUNDED, taken).logits
    error = ((step.logits - exact) ** 2).sum()
    assert 0 < error <= 2 * ((rounded - exact) ** 2).sum()
    assert np.abs(step.logits - exact).max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "overrides",
    [
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 3},
        {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
        {"n_routed_experts": 1, "num_experts_per_tok": 1},
        {"rope_scaling": None},
        {"qk_rope_head_dim": 2, "num_attention_heads": 1, "num_key_value_heads": 1},
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_geometries_of_the_family(tmp_path, overrides, way):
    """Dense layers from none to all, either normalisation, the only expert, plain rotary positions, one pair."""
    folder = write_tiny_checkpoint(tmp_path, seed=6, **overrides)
    ids = list(range(40, 100))
    agrees(step_of(TorchBackend(way).load(folder), ids), oracle_forward(Checkpoint.open(folder), ids), decided=40)


@pytest.mark.parametrize("fast", [1.0, 32.0])
@pytest.mark.parametrize("factor", [32.0, 64.0])
def test_every_yarn_of_the_family(tmp_path, factor, fast):
    """Both factors and both beta_fast of released models, over positions beyond the original ones."""
    scaling = tiny_config()["rope_scaling"] | {"factor": factor, "beta_fast": fast, "original_max_position_embeddings": 32}
    folder = write_tiny_checkpoint(tmp_path, seed=7, rope_scaling=scaling)
    agrees(step_of(TorchBackend().load(folder), range(100)), oracle_forward(Checkpoint.open(folder), range(100)), decided=60)


@pytest.mark.parametrize("way", WAYS)
def test_384_experts(tmp_path, way):
    """A layer with the family's 384 experts and 8 of them per token is the oracle's, by one token and by many."""
    sizes = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "hidden_size": 32, "moe_intermediate_size": 32}
    folder = write_tiny_checkpoint(tmp_path, seed=8, n_routed_experts=384, num_experts_per_tok=8, **sizes)
    model, ids = TorchBackend(way).load(folder), list(range(120))
    expected = oracle_forward(Checkpoint.open(folder), ids)
    agrees(step_of(model, ids), expected, decided=60)
    assert np.abs(step_of(model, ids[:1]).logits - expected.logits[:1]).max() <= 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_experts_may_be_packed_plain_or_both(tmp_path, way):
    """Where the config leaves some experts plain they are taken as they lie, beside packed ones of the same layer."""
    quantised = family_config()
    quantised["ignore"] = [*quantised["ignore"], "re:.*layers.1.mlp.experts.[02].*"]
    folder = write_tiny_checkpoint(tmp_path, seed=3, quantization_config=quantised)
    ids = list(range(60))
    agrees(step_of(TorchBackend(way).load(folder), ids), oracle_forward(Checkpoint.open(folder), ids), decided=30)


def test_shards_and_either_type_of_stated_shapes(tmp_path):
    """Shards with an index, stated shapes as int32, and plain weights as float32 change nothing."""
    whole = step_of(TorchBackend().load(write_tiny_checkpoint(tmp_path / "whole", seed=2)), range(50))
    shards = write_tiny_checkpoint(tmp_path / "shards", seed=2, shards=3)
    config, other = tiny_config(), tmp_path / "other"
    tensors = tiny_tensors(Geometry.from_config(config), seed=2)
    for name, value in tensors.items():
        if name.endswith("weight_shape"):
            tensors[name] = value.astype(np.int32)
        elif value.dtype == ml_dtypes.bfloat16 and not name.endswith("weight_scale"):
            tensors[name] = value.astype(np.float32)
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(other / "model.safetensors", tensors)
    for folder in (shards, other):
        assert np.abs(step_of(TorchBackend().load(folder), range(50)).logits - whole.logits).max() <= 1e-4


@settings(max_examples=15, deadline=None)
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
            assert np.abs(np.concatenate(parts) - step_of(model, prompt, ALL).logits).max() <= 1e-3
        model.free(handle)


@pytest.mark.parametrize("numerics", TorchBackend.numerics)
def test_decoding_together_is_decoding_apart(folder, numerics, monkeypatch):
    """One token each of sequences of many lengths is the same whether ops go over all of them or over one after the other."""
    model, found = TorchBackend("fast").load(folder, numerics=numerics), []
    for padded in (0, 1 << 40):
        monkeypatch.setattr(contiguous, "PADDED", padded)
        handles = [model.new_sequence() for _ in range(5)]
        batch = [
            SequenceInput(handle=one, token_ids=some_ids(model.geometry, 1 + 17 * at, at)) for at, one in enumerate(handles)
        ]
        model.forward(batch)
        found.append([model.forward([SequenceInput(handle=one, token_ids=[3]) for one in handles]).logits for _ in range(3)])
    difference = np.abs(np.array(found[0]) - np.array(found[1])).max()
    assert difference <= (1e-4 if numerics == "exact" else 0.05)


def test_long_prompts_go_in_pieces(model, monkeypatch):
    """Where the scores of a prompt would be too many, its tokens go through attention a few at a time, and through experts."""
    ids = some_ids(model.geometry, 90)
    whole = step_of(model, ids)
    for module in (attention, attention_fast):
        monkeypatch.setattr(module, "SCORES", 90 * model.geometry.num_attention_heads * 7)
    monkeypatch.setattr(attention_fast, "EXPANDED", 3 * 90 * (model.geometry.qk_head_dim + model.geometry.v_head_dim))
    monkeypatch.setattr(torch_model, "CHUNK", 11)
    assert np.abs(step_of(model, ids).logits - whole.logits).max() <= 1e-3
