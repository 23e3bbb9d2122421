"""The family's full length: 262,144 positions by YaRN over 4,096, on a geometry so small that its cache is."""

import time

import numpy as np
import pytest

from k2core.errors import CapacityError
from k2core.interfaces import SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.oracle import bounds
from k2core.oracle import forward as oracle
from k2core.oracle.linear import linear
from k2core.oracle.mla_attention import absorbed
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rope_yarn import rope_yarn
from k2core.testing.checkpoints import tiny_config, write_tiny_checkpoint
from k2core_numba.backend import NumbaBackend
from k2core_numba.model import _arrays
from k2core_numba.runtime import kernels

POSITIONS = 262_144
SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "vocab_size": 320, "max_position_embeddings": POSITIONS,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint of the full length."""
    scaling = {**tiny_config()["rope_scaling"], "factor": 64.0, "original_max_position_embeddings": 4096}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("long"), seed=4, rope_scaling=scaling, **SIZES)


@pytest.fixture
def model(folder):
    """The checkpoint, loaded."""
    loaded = NumbaBackend().load(folder)
    yield loaded
    loaded.close()


def filled(model, length):
    """A sequence whose cache holds *length* positions of made-up latents."""
    handle, random = model.new_sequence(), np.random.default_rng(8)
    sequence = model._sequences.get(handle)
    model._store.reserve([(sequence, length)])
    for page in sequence.pages:
        page.values[:] = random.standard_normal(page.values.shape, dtype=np.float32)
    sequence.length = length + 1
    model._store.truncate(sequence, length)
    return handle


def latents_of(model, handle):
    """(layers, positions, width) of a sequence's cache."""
    sequence = model._sequences.get(handle)
    pages = np.stack([page.values for page in sequence.pages])  # (pages, layers, blocks, width, 16)
    rows = pages.transpose(1, 0, 2, 4, 3).reshape(pages.shape[1], -1, pages.shape[3])
    return rows[:, : sequence.length]


def attention_over(latents):
    """The oracle's attention of one token that follows given latents: (layers, positions, width)."""

    def attention(checkpoint, layer, x, _rounding):
        geometry, prefix = checkpoint.geometry, f"model.layers.{layer}.self_attn"
        heads, nope, rank = geometry.num_attention_heads, geometry.qk_nope_head_dim, geometry.kv_lora_rank
        turn = (np.array([latents.shape[1]]), geometry.inv_freq, geometry.rope_multiplier)

        def weight(name):
            return checkpoint.tensor(f"{prefix}.{name}.weight")

        query_latent = rms_norm(linear(x, weight("q_a_proj")), weight("q_a_layernorm"), geometry.latent_norm_eps)
        query = linear(query_latent, weight("q_b_proj")).reshape(1, heads, -1)
        both = linear(x, weight("kv_a_proj_with_mqa"))
        own = rms_norm(both[:, :rank], weight("kv_a_layernorm"), geometry.latent_norm_eps)
        attended = absorbed(
            query[..., :nope],
            rope_yarn(query[..., nope:], *turn),
            np.concatenate([latents[layer, :, :rank], own]),
            np.concatenate([latents[layer, :, rank:], rope_yarn(both[:, rank:], *turn)]),
            weight("kv_b_proj").reshape(heads, -1, rank),
            turn[0],
            geometry.softmax_scale,
        )
        return linear(attended.reshape(1, -1), weight("o_proj"))

    return attention


def test_the_last_position_agrees_with_the_oracle(model, folder, monkeypatch):
    """The token at position 262,143 has the float64 oracle's logits over the same cached latents; one more is refused."""
    handle = filled(model, POSITIONS - 1)
    latents = latents_of(model, handle)
    step = model.forward([SequenceInput(handle=handle, token_ids=[7])], Want(routing=True))
    monkeypatch.setattr(oracle, "attention", attention_over(latents))
    expected = oracle.forward(Checkpoint.open(folder), [7])
    assert expected.router_margin[0] > 1e-5
    assert np.abs(step.logits - expected.logits).max() <= 1e-3
    np.testing.assert_array_equal(np.sort(step.routing[0].expert_ids), np.sort(expected.expert_ids[0]))
    assert model.length(handle) == POSITIONS
    with pytest.raises(CapacityError, match=f"would have {POSITIONS + 1} tokens, the model has {POSITIONS} positions$"):
        model.forward([SequenceInput(handle=handle, token_ids=[7])])
    assert model.length(handle) == POSITIONS


def test_attention_finds_keys_at_any_distance(model):
    """Attention over 262,144 positions keeps to its bound, with most of its weight on a few positions from first to last."""
    names, geometry = kernels("mla_attention"), model.geometry
    heads, rank, width = 4, geometry.kv_lora_rank, geometry.cache_values_per_layer
    handle = filled(model, POSITIONS)
    query = np.random.default_rng(1).standard_normal((1, heads, width)).astype(np.float32)
    planted = query[0] * 60 / (query[0] ** 2).sum(-1, keepdims=True)  # a score of 30: e**30 against some e**14 of all others
    sequence = model._sequences.get(handle)
    for head, position in enumerate([0, 65_535, 131_072, POSITIONS - 1]):
        page = sequence.pages[position // names.PAGE]
        page.values[1, position % names.PAGE // 16, :, position % 16] = planted[head]
    y, positions = np.zeros((1, heads, rank), np.float32), np.array([POSITIONS - 1])
    state = np.zeros(names.TILE * names.GROUP * names.state_of_head(rank), np.float32)
    names.mla_attention(
        1, heads, query.reshape(-1), width, np.array([sequence.table_address]), positions, names.PAGE * width * 4, rank, width,
        np.float32(0.5), np.zeros(names.SCORES, np.float32), state, y.reshape(-1), rank, 1,
    )  # fmt: skip
    latents = latents_of(model, handle)[1]
    identity = np.broadcast_to(np.concatenate([np.eye(rank)] * 2), (heads, 2 * rank, rank))
    expected = absorbed(query[..., :rank], query[..., rank:], latents[:, :rank], latents[:, rank:], identity, positions, 0.5)
    error = np.abs(y - expected)
    assert (error <= bounds.latent_attention_bound(query, latents, positions, 0.5, rank)).all()
    assert error.max() <= 1e-4  # the bound is for any order of sums; here a lane sums a sixteenth of them
    assert np.abs(y[0] - planted[:, :rank]).max() <= 0.1  # of values up to 20: what was planted is what was found


@pytest.mark.parametrize("by_tokens", [True, False])
def test_ranges_of_attention_change_nothing(model, by_tokens):
    """Tokens around the ends of ranges have in a long prompt, on any number of threads, the bits that they have alone."""
    span = kernels("mla_attention").RANGE * 16
    ids = np.random.default_rng(3).integers(0, model.geometry.vocab_size, 2 * span + 20).tolist()
    model.by_tokens, whole = by_tokens, []
    for threads in (1, 2, 3):
        model.threads, handle = threads, model.new_sequence()
        whole.append(model.forward([SequenceInput(handle=handle, token_ids=ids)], Want(logits="all")).logits)
    np.testing.assert_array_equal(whole[1], whole[0])
    np.testing.assert_array_equal(whole[2], whole[0])
    for position in (span - 1, span, span + 1, 2 * span - 1, 2 * span, 2 * span + 19):
        fork = model.fork(handle, position)
        np.testing.assert_array_equal(
            model.forward([SequenceInput(handle=fork, token_ids=[ids[position]])]).logits[0], whole[0][position]
        )


def test_memory_per_token_is_the_latents(model):
    """A sequence holds rank + rope float32 per layer and position, up to one block; nothing else grows with every token."""
    geometry = model.geometry
    per_token = (geometry.kv_lora_rank + geometry.qk_rope_head_dim) * geometry.num_hidden_layers * 4
    block = model.memory().block_tokens
    assert model.memory().bytes_per_token == per_token
    for length in (1, block, 1000, POSITIONS):
        handle = filled(model, length)
        assert 0 <= model.bytes_of(handle) - length * per_token < block * per_token
        assert model.used_blocks() == -(-length // block)
        assert model._sequences.get(handle).table.nbytes <= 2 * 8 * max(4, -(-length // block))
        model.free(handle)
    assert model.used_blocks() == 0
    handle = filled(model, POSITIONS - 1)
    model.forward([SequenceInput(handle=handle, token_ids=[7])])
    assert model._job._memory.nbytes < 200_000 * model.threads


def test_a_step_behind_a_long_context_prepares_as_little_as_behind_a_short_one(model):
    """Fork, cut, and the page table of a step cost no time per position that would matter: 200 of each in a second."""
    handle = filled(model, POSITIONS - 300)
    model.forward([SequenceInput(handle=handle, token_ids=[7])])
    start = time.process_time()
    for _ in range(200):
        model._store.reserve([(model._sequences.get(handle), 1)])
        _arrays(model._sequences.check([SequenceInput(handle=handle, token_ids=[7])], Want()))
        model.truncate(handle, model.length(handle))
        model.free(model.fork(handle, POSITIONS - 1000))
    assert time.process_time() - start < 1


@pytest.mark.soak
def test_a_prompt_of_full_length(model, capsys):
    """262,143 tokens in chunks leave at sampled positions the logits that one token behind a fork of that length has."""
    ids = np.random.default_rng(2).integers(0, model.geometry.vocab_size, POSITIONS).tolist()
    sampled = [0, 63, 64, 4_095, 4_096, 65_537, 131_071, 200_000, POSITIONS - 2]
    handle, rows, at = model.new_sequence(), {}, 0
    start = time.perf_counter()
    for end in sorted({*range(10_007, POSITIONS - 1, 10_007), *(position + 1 for position in sampled)}):
        step = model.forward([SequenceInput(handle=handle, token_ids=ids[at:end])])
        rows[end - 1], at = step.logits[0], end
    seconds = time.perf_counter() - start
    for position in sampled:
        fork = model.fork(handle, position)
        step = model.forward([SequenceInput(handle=fork, token_ids=[ids[position]])])
        np.testing.assert_array_equal(step.logits[0], rows[position])
        model.free(fork)
    model.forward([SequenceInput(handle=handle, token_ids=ids[at:])])
    assert model.length(handle) == POSITIONS
    with capsys.disabled():
        print(f"\n{at} tokens prefilled in {seconds:.0f} s, {at / seconds:.0f} tokens/s, {model.threads} threads")
