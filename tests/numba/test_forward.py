"""The whole model: against the oracle, and the same bits however its tokens are cut and mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.interfaces import SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.oracle.forward import forward as oracle_forward
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_numba.backend import NumbaBackend
from k2core_numba.model import CHUNK

ALL = Want(logits="all")


def some_ids(model, count, seed=0):
    """Random token ids of the model's vocabulary."""
    return np.random.default_rng(seed).integers(0, model.geometry.vocab_size, count).tolist()


def logits_of(model, ids):
    """All logits of a fresh sequence in one forward."""
    handle = model.new_sequence()
    logits = model.forward([SequenceInput(handle=handle, token_ids=ids)], ALL).logits
    model.free(handle)
    return logits


def test_logits_agree_with_the_oracle(model, folder):
    """Logits are within 1e-3 of float64; the greedy token is the same where it leads by 2e-3, routing where it is no tie."""
    ids = some_ids(model, 150)
    handle = model.new_sequence()
    step = model.forward([SequenceInput(handle=handle, token_ids=ids)], Want(logits="all", routing=True, hidden=True))
    expected = oracle_forward(Checkpoint.open(folder), ids)
    assert np.abs(step.logits - expected.logits).max() <= 1e-3
    assert np.abs(step.hidden - expected.hidden).max() <= 1e-3
    best = np.sort(expected.logits)
    clear = best[:, -1] - best[:, -2] > 2e-3
    assert clear.sum() > 100
    np.testing.assert_array_equal(step.logits.argmax(-1)[clear], expected.logits.argmax(-1)[clear])
    decided = expected.router_margin > 1e-5
    for routing, chosen in zip(step.routing, expected.expert_ids, strict=True):
        np.testing.assert_array_equal(np.sort(routing.expert_ids[decided]), np.sort(chosen[decided]))


@settings(max_examples=20)
@given(data=st.data())
def test_any_cut_of_a_prompt_gives_the_same_bits(data, folder_model):
    """A prompt in random pieces leaves the logits that it leaves in one."""
    model = folder_model
    ids = some_ids(model, 70, seed=data.draw(st.integers(0, 99)))
    whole = logits_of(model, ids)
    cuts = sorted(data.draw(st.sets(st.integers(1, 69), max_size=12)))
    handle = model.new_sequence()
    pieces = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, 70], strict=True)]
    parts = [model.forward([SequenceInput(handle=handle, token_ids=piece)], ALL).logits for piece in pieces]
    model.free(handle)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_token_by_token_gives_the_bits_of_one_forward(model):
    """Decoding repeats prefill exactly, over more than one page and more than one compiled chunk."""
    ids = some_ids(model, CHUNK + 40)
    whole = logits_of(model, ids)
    handle = model.new_sequence()
    for index, token in enumerate(ids):
        step = model.forward([SequenceInput(handle=handle, token_ids=[token])])
        assert np.array_equal(step.logits[0], whole[index]), f"token {index}"


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=6), before=st.integers(0, 30), seed=st.integers(0, 99))
def test_batch_mates_change_nothing(folder_model, lengths, before, seed):
    """Each sequence of a ragged batch has the logits that it has alone."""
    model = folder_model
    prompts = [some_ids(model, length, seed + index) for index, length in enumerate(lengths)]
    handles = [model.new_sequence() for _ in prompts]
    if before:
        model.forward([SequenceInput(handle=handles[0], token_ids=some_ids(model, before, 1000))])
    batch = [SequenceInput(handle=handle, token_ids=prompt) for handle, prompt in zip(handles, prompts, strict=True)]
    together = model.forward(batch, ALL).logits
    at = 0
    for index, prompt in enumerate(prompts):
        if index or not before:
            np.testing.assert_array_equal(together[at : at + len(prompt)], logits_of(model, prompt))
        at += len(prompt)
    for handle in handles:
        model.free(handle)


@settings(max_examples=25)
@given(data=st.data())
def test_rows_of_a_mixed_batch(data, folder_model):
    """Each sequence gets as many of its last rows as it asks for, with the bits of ``all``, whatever `Want` says."""
    model = folder_model
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    rows = [data.draw(st.none() | st.integers(0, count)) for count in counts]
    want = Want(logits=data.draw(st.sampled_from(["last", "all", "none"])), hidden=data.draw(st.booleans()))
    prompts = [some_ids(model, count, seed) for seed, count in enumerate(counts)]
    handles = [model.new_sequence() for _ in prompts]
    batch = [
        SequenceInput(handle=handle, token_ids=prompt, rows=asked)
        for handle, prompt, asked in zip(handles, prompts, rows, strict=True)
    ]
    step = model.forward(batch, want)
    usual = {"last": lambda count: 1, "all": lambda count: count, "none": lambda count: 0}[want.logits]
    expected = [
        logits_of(model, prompt)[len(prompt) - (usual(len(prompt)) if asked is None else asked) :]
        for prompt, asked in zip(prompts, rows, strict=True)
    ]
    np.testing.assert_array_equal(step.logits, np.concatenate(expected))
    assert (step.hidden is not None) == want.hidden
    assert not want.hidden or len(step.hidden) == sum(counts)
    for handle in handles:
        model.free(handle)


def test_rows_over_several_chunks(model):
    """Rows that lie in different compiled chunks are those of ``all``."""
    prompts = [some_ids(model, CHUNK - 20, 1), some_ids(model, 50, 2), some_ids(model, CHUNK, 3)]
    batch = [
        SequenceInput(handle=model.new_sequence(), token_ids=prompt, rows=asked)
        for prompt, asked in zip(prompts, (2, 45, 0), strict=True)
    ]
    expected = [logits_of(model, prompts[0])[-2:], logits_of(model, prompts[1])[-45:]]
    np.testing.assert_array_equal(model.forward(batch, ALL).logits, np.concatenate(expected))


@pytest.mark.parametrize("by_tokens", [True, False])
def test_threads_change_nothing(folder, by_tokens):
    """One, two and four threads give the same bits on a prompt that is large enough to be shared out, however they share it."""
    results = []
    for threads in (1, 2, 4):
        model = NumbaBackend().load(folder)
        model.threads, model.by_tokens = threads, by_tokens
        results.append(logits_of(model, some_ids(model, 400)))
        model.close()
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@settings(max_examples=15)
@given(data=st.data())
def test_threads_share_sequences_and_tokens(data, wide_model):
    """A batch of forks that go on by a token or several has the bits of one thread, wherever the cuts between threads fall."""
    model = wide_model
    prefix = some_ids(model, data.draw(st.integers(0, 150)), 7)
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    root = model.new_sequence()
    if prefix:
        model.forward([SequenceInput(handle=root, token_ids=prefix)], Want(logits="none"))
    results = []
    for threads in (1, 2, 3):
        model.threads = threads
        handles = [model.fork(root, len(prefix)) for _ in counts]
        for step in range(2):
            batch = [
                SequenceInput(handle=handle, token_ids=some_ids(model, count, seed=step * 10 + index))
                for index, (handle, count) in enumerate(zip(handles, counts, strict=True))
            ]
            results.append(model.forward(batch, Want(logits="all", hidden=True, routing=True)))
        for handle in handles:
            model.free(handle)
    model.free(root)
    for later, step in enumerate(results[2:]):
        np.testing.assert_array_equal(step.logits, results[later % 2].logits)
        np.testing.assert_array_equal(step.hidden, results[later % 2].hidden)
        for routing, expected in zip(step.routing, results[later % 2].routing, strict=True):
            np.testing.assert_array_equal(routing.expert_ids, expected.expert_ids)
            np.testing.assert_array_equal(routing.weights, expected.weights)


def test_want_says_what_comes_back(model):
    """Rows, routing and hidden states follow the request, over several chunks and with the same values."""
    ids = some_ids(model, CHUNK + 5)
    everything = Want(logits="all", routing=True, hidden=True)
    results = {}
    for name, want in {"all": everything, "last": Want(logits="last", hidden=True), "none": Want(logits="none")}.items():
        handle = model.new_sequence()
        results[name] = model.forward([SequenceInput(handle=handle, token_ids=ids)], want)
    full, last, none = results["all"], results["last"], results["none"]
    assert full.logits.shape == (len(ids), model.geometry.vocab_size)
    assert full.hidden.shape == (len(ids), model.geometry.hidden_size)
    assert len(full.routing) == len(model.geometry.moe_layers)
    assert full.routing[0].expert_ids.shape == (len(ids), model.geometry.num_experts_per_tok)
    np.testing.assert_array_equal(last.logits, full.logits[-1:])
    np.testing.assert_array_equal(last.hidden, full.hidden)
    assert last.routing is None
    assert none.logits.shape == (0, model.geometry.vocab_size)
    assert none.hidden is None


def test_the_expert_seam_repeats_the_forward(model):
    """route, experts and forward of the seam are batch-invariant and consistent with each other."""
    layer = model.geometry.moe_layers.start
    x = np.random.default_rng(3).standard_normal((9, model.geometry.hidden_size)).astype(np.float32)
    routing = model.moe.route(layer, x)
    assert routing.weights.min() >= 0
    whole, routed = model.moe.forward(layer, x), model.moe.experts(layer, x, routing)
    for row in range(9):
        alone = model.moe.route(layer, x[row : row + 1])
        np.testing.assert_array_equal(alone.expert_ids[0], routing.expert_ids[row])
        np.testing.assert_array_equal(model.moe.experts(layer, x[row : row + 1], alone)[0], routed[row])
        np.testing.assert_array_equal(model.moe.forward(layer, x[row : row + 1])[0], whole[row])
    assert not np.allclose(whole, routed)


@pytest.fixture(scope="module")
def folder_model(folder):
    """One loaded model for the properties that draw many examples."""
    model = NumbaBackend().load(folder)
    yield model
    model.close()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """A model with enough work per token that every token is worth a thread."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "n_routed_experts": 3}
    model = NumbaBackend().load(write_tiny_checkpoint(tmp_path_factory.mktemp("wide"), seed=3, **sizes))
    assert model.by_tokens
    yield model
    model.close()
