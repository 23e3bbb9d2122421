"""Checkpoints in the released layout: every backend, and the oracle itself, against transformers' DeepseekV3."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from real_checkpoints.reference import greedy_of, logits_of, reference_model  # noqa: E402  # only where they are installed

from k2core.conformance.kit import Subject  # noqa: E402
from k2core.conformance.models import model_config  # noqa: E402
from k2core.conformance.subjects import Missing, discovered  # noqa: E402
from k2core.engine.logits import logits_of as backend_logits  # noqa: E402
from k2core.interfaces import SequenceInput, Want  # noqa: E402
from k2core.model.checkpoint import Checkpoint  # noqa: E402
from k2core.oracle.forward import forward as oracle_forward  # noqa: E402
from k2core.testing.checkpoints import tiny_config, write_safetensors, write_tiny_checkpoint  # noqa: E402

TOKENS, GREEDY = 48, 24
K2 = model_config("kimi_k2")


def scaled(**changed):
    """The family's position scaling with some of it changed."""
    return {"rope_scaling": {**K2["rope_scaling"], **changed}, "rope_theta": K2["rope_theta"], "max_position_embeddings": 4096}


VARIANTS = {
    "experts-384-top-8": {"n_routed_experts": 384, "num_experts_per_tok": 8, "num_hidden_layers": 2, **scaled()},
    "yarn-64-beta-1": scaled(),
    "yarn-64-beta-32": scaled(beta_fast=32.0),
    "yarn-32-beta-1": scaled(factor=32.0),
    "real-vocabulary": {"vocab_size": K2["vocab_size"], "num_hidden_layers": 2, **scaled()},
    "eps-of-the-family": {"rms_norm_eps": 1e-5, "latent_norm_eps": 1e-6, **scaled()},
    "shards": {"shards": 3, **scaled()},
}
SUBJECTS = [
    pytest.param(one, id=one.name if isinstance(one, Missing) else f"{one.name}-{one.device}")
    for one in discovered()
    if isinstance(one, Missing) or one.numerics == "exact"
]
_known = {}


@pytest.fixture(params=VARIANTS)
def variant(request, tmp_path_factory):
    """A checkpoint with its reference's logits and greedy tokens, made once."""
    name = request.param
    if name not in _known:
        options = {"latent_norm_eps": 1e-6, **VARIANTS[name]}
        folder = write_tiny_checkpoint(tmp_path_factory.mktemp(name) / "model", seed=len(name), **options)
        checkpoint = Checkpoint.open(folder)
        config = tiny_config(**{key: value for key, value in options.items() if key != "shards"})
        model = reference_model(checkpoint, config)
        ids = np.random.default_rng(3).integers(0, checkpoint.geometry.vocab_size, TOKENS).tolist()
        _known[name] = (folder, ids, logits_of(model, ids), *greedy_of(model, ids, GREEDY), config)
    return _known[name]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_backend_agrees_with_the_reference(variant, subject, capsys, request):
    """Logits within 1e-3, routing equal except at ties, 24 greedy tokens equal up to a step that is no clear lead."""
    if isinstance(subject, Missing):
        pytest.skip(f"{subject.name}: {subject.reason}")
    assert isinstance(subject, Subject)
    folder, ids, expected, tokens, leads, _ = variant
    oracle = oracle_forward(Checkpoint.open(folder), ids)
    model = subject.backend.load(folder, device=subject.device)
    ((logits, greedy),) = backend_logits(model, [ids], GREEDY)
    step = model.forward([SequenceInput(handle=model.new_sequence(), token_ids=ids)], Want(logits="none", routing=True))
    model.close()
    decided = oracle.router_margin > 1e-5
    assert decided.sum() > TOKENS // 2
    worst = float(np.abs(logits - expected)[decided].max())
    with capsys.disabled():
        print(f"\n  {request.node.callspec.id:40} max |Δlogit| {worst:.1e}", end="")
    assert worst <= 1e-3
    for routing, chosen in zip(step.routing, oracle.expert_ids, strict=True):
        np.testing.assert_array_equal(np.sort(np.asarray(routing.expert_ids)[decided]), np.sort(chosen[decided]))
    clear = next((place for place, lead in enumerate(leads) if lead <= 2e-3), GREEDY)
    assert clear >= GREEDY // 2 and greedy[:clear].tolist() == tokens[:clear]


def test_the_oracle_is_the_reference_in_float64(variant):
    """The float64 oracle and transformers in float64 differ by float32's roundings in transformers' own code at most."""
    folder, ids, _, _, _, config = variant
    model = reference_model(Checkpoint.open(folder), config, torch.float64)
    oracle = oracle_forward(Checkpoint.open(folder), ids)
    decided = oracle.router_margin > 1e-5
    assert np.abs(logits_of(model, ids) - oracle.logits)[decided].max() <= 2e-4  # it takes softmax and angles in float32


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_both_kinds_of_stated_shapes_are_read(tmp_path, subject, dtype):
    """weight_shape as int32 and as int64 give the same logits."""
    if isinstance(subject, Missing):
        pytest.skip(f"{subject.name}: {subject.reason}")
    folder = write_tiny_checkpoint(tmp_path / "a", seed=6)
    opened = Checkpoint.open(folder)
    tensors = {name: opened.tensor(name) for name in opened.names()}
    other = tmp_path / "b"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(tiny_config()))
    changed = {name: one.astype(dtype) if name.endswith("weight_shape") else one for name, one in tensors.items()}
    write_safetensors(other / "model.safetensors", changed)
    found = []
    for place in (folder, other):
        model = subject.backend.load(place, device=subject.device)
        found.append(next(backend_logits(model, [[1, 2, 3, 4]]))[0])
        model.close()
    np.testing.assert_array_equal(*found)
