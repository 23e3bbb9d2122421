"""What a batch costs on the Numba backend: one token of each of many sequences, and several tokens of one sequence.

Run with ``pytest bench/test_batch.py -s``. The sequences of a batch are forks of one prefix of up to 400 tokens, as turns that
begin alike are. Before anything is timed, the batch's logits are compared bit for bit with what each sequence gets alone.

The bound beside each figure is what this machine could do at best, measured in the same run: the step's multiply-adds over the
peak of fused multiply-adds, as many threads as there are tokens; or the bytes that a thread reads (weights, its share of the
cache) over the rate of a copy of as much memory as the weights take; whichever is longer. Neither holds norms, routing, the
waking of threads, or Python.
"""

import statistics
import time

import numba
import numpy as np
import pytest

from k2core.interfaces import SequenceInput, Want
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_nano import WEIGHTS
from k2core_numba.backend import NumbaBackend
from k2core_numba.runtime import kernels

HAS_NANO = (WEIGHTS / "model.safetensors").exists()
SIZES = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 96,
    "kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 512,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "vocab_size": 1536,
    "max_position_embeddings": 4096,
}  # fmt: skip
STEPS, ROUNDS = 24, 7
PREFIX = 400


def best_of(call, times=7):
    """Least seconds of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded model, or a random one of its sizes."""
    loaded = NumbaBackend().load(WEIGHTS if HAS_NANO else write_tiny_checkpoint(tmp_path_factory.mktemp("nano"), **SIZES))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def machine(model):
    """Multiply-adds per second of one thread, and bytes per second that a copy reads and writes."""
    kernels()  # sets the cache before a kernel module is imported by name
    from k2core_kernels.numba.vectors import fma, splat, store

    @numba.njit(error_model="numpy")
    def multiply_add(times, y):
        one, zero = splat(np.float32(1)), splat(np.float32(0))
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for _ in range(times):
            a, b, c, d = fma(one, one, a), fma(one, one, b), fma(one, one, c), fma(one, one, d)
            e, f, g, h = fma(one, one, e), fma(one, one, f), fma(one, one, g), fma(one, one, h)
        for place, value in enumerate((a, b, c, d, e, f, g, h)):
            store(y, place * 16, value)

    y, times = np.zeros(128, np.float32), 1_000_000
    multiply_add(1, y)
    source, target = np.ones((2, model._weights.size_bytes // 2), np.uint8)
    copied = 2 * source.nbytes / best_of(lambda: np.copyto(target, source), times=30)
    return 128 * times / best_of(lambda: multiply_add(times, y)), copied


def bound_of(model, machine, sequences, tokens, context, shared):
    """The least seconds of a step that gives each of *sequences* so many *tokens* and as many rows behind *context*."""
    words, names = model._job.words, kernels()
    new = sequences * tokens
    work = new * (words[names.TOKEN_WORK] + words[names.ROW_WORK] + (context + tokens / 2) * words[names.POSITION_WORK])
    threads = min(model.threads, new)
    cached = (shared + sequences * (context - shared) / threads) * model.memory().bytes_per_token
    return max(work / (machine[0] * threads), (model._weights.size_bytes + cached) / machine[1])


def forks(model, count, context):
    """Sequences of *context* tokens that share a prefix, and its length."""
    random, vocab = np.random.default_rng(count), model.geometry.vocab_size
    shared = min(PREFIX, context * 3 // 4)
    root = model.new_sequence()
    model.forward([SequenceInput(handle=root, token_ids=random.integers(0, vocab, shared).tolist())], Want(logits="none"))
    handles = [model.fork(root, shared) for _ in range(count)]
    for handle in handles:
        rest = random.integers(0, vocab, context - shared).tolist()
        model.forward([SequenceInput(handle=handle, token_ids=rest)], Want(logits="none"))
    model.free(root)
    return handles, shared


def step_seconds(model, handles, tokens, context):
    """Median and least seconds of a step that appends *tokens* to every sequence."""
    random, found = np.random.default_rng(3), []
    for _ in range(ROUNDS):
        ids = random.integers(0, model.geometry.vocab_size, (max(1, STEPS // tokens), len(handles), tokens)).tolist()
        for step in ids:
            start = time.perf_counter()
            model.forward(
                [SequenceInput(handle=handle, token_ids=own) for handle, own in zip(handles, step, strict=True)],
                Want(logits="all"),
            )
            found.append(time.perf_counter() - start)
        for handle in handles:
            model.truncate(handle, context)
    return statistics.median(found), min(found)


def check(model, handles, tokens, context):
    """The batch gives each sequence the bits that it has alone."""
    ids = np.random.default_rng(5).integers(0, model.geometry.vocab_size, (len(handles), tokens)).tolist()
    batch = [SequenceInput(handle=handle, token_ids=own) for handle, own in zip(handles, ids, strict=True)]
    together = model.forward(batch, Want(logits="all")).logits.reshape(len(handles), tokens, -1)
    for handle, own, expected in zip(handles, ids, together, strict=True):
        model.truncate(handle, context)
        for token, row in zip(own, expected, strict=True):
            alone = model.forward([SequenceInput(handle=handle, token_ids=[token])]).logits[0]
            np.testing.assert_array_equal(alone, row)
        model.truncate(handle, context)


def report(model, machine, sizes, context, name):
    """Check, time and print a step of every size: pairs of sequences and tokens of each."""
    print(
        f"\n{name} behind {context} tokens, {model.threads} threads; "
        f"{machine[0] / 1e9:.1f} G multiply-adds/s a thread, copy {machine[1] / 1e9:.1f} GB/s"
    )
    single = None
    for sequences, tokens in sizes:
        handles, shared = forks(model, sequences, context)
        check(model, handles, tokens, context)
        median, least = step_seconds(model, handles, tokens, context)
        bound = bound_of(model, machine, sequences, tokens, context + STEPS // 2, shared)
        for handle in handles:
            model.free(handle)
        new = sequences * tokens
        single = single or median
        print(
            f"  {new:3d}: {median * 1e6:6.0f} us a step ({least * 1e6:.0f} best), {median / new * 1e6:5.1f} us a token, "
            f"{new / median:6.0f} tokens/s, {median / single:5.2f} of one token's step, "
            f"bound {bound * 1e6:.0f} us ({bound / median:.0%})"
        )


@pytest.mark.parametrize("context", [64, 512])
def test_sequences(model, machine, context):
    """One token of each of 1 to 32 sequences."""
    report(model, machine, [(count, 1) for count in (1, 2, 4, 8, 16, 32)], context, "sequences")


@pytest.mark.parametrize("context", [64, 600])
def test_tokens(model, machine, context):
    """1 to 16 tokens of one sequence with all their rows, as a guess is checked."""
    report(model, machine, [(1, count) for count in (1, 2, 4, 8, 16)], context, "tokens")
