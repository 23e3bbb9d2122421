"""Tokens per second of the Numba backend on the embedded model's geometry, and where the time goes.

Run with ``pytest bench/test_decode.py -s``. The embedded model is used where its weights are installed, else a random
checkpoint of the same sizes. Answers are checked against the oracle before anything is timed. The floor is held in processor
time of the one thread that decodes, so that what else runs on the machine does not count; wall time stands beside it. Split:

    kernels    inside the one compiled call of a forward
    backend    the rest of `LoadedModel.forward`: checks, pages, arrays
    engine     the rest of a turn: sampling, parsing, streaming (with the embedded model only, in wall time)
"""

import asyncio
import statistics
import time
from types import SimpleNamespace

import numpy as np
import pytest

from k2core.engine.engine import EngineModel
from k2core.interfaces import GenerateOptions, ModelProfile, SequenceInput, Want
from k2core.messages import Message, TurnEnd
from k2core.model.checkpoint import Checkpoint
from k2core.oracle.forward import forward as oracle_forward
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_nano import WEIGHTS
from k2core_numba.backend import NumbaBackend

FLOOR = 1000  # tokens per second, single stream
HAS_NANO = (WEIGHTS / "model.safetensors").exists()
SIZES = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 96,
    "kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 512,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "vocab_size": 1536,
    "max_position_embeddings": 4096,
}  # fmt: skip


class Timed:
    """The compiled forward, adding up the seconds spent in it."""

    def __init__(self, model, clock=time.thread_time):
        self.seconds, self._clock = 0.0, clock
        self._forward = model._kernels.forward
        names = {name: getattr(model._kernels, name) for name in dir(model._kernels) if not name.startswith("__")}
        model._kernels = SimpleNamespace(**names | {"forward": self})

    def __call__(self, *arguments):
        """Run it."""
        start = self._clock()
        self._forward(*arguments)
        self.seconds += self._clock() - start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model's checkpoint, or a random one of its sizes."""
    return WEIGHTS if HAS_NANO else write_tiny_checkpoint(tmp_path_factory.mktemp("nano"), seed=1, **SIZES)


@pytest.fixture
def model(folder):
    """The checkpoint on the backend, its logits checked against the oracle."""
    loaded = NumbaBackend().load(folder)
    ids = np.random.default_rng(0).integers(0, loaded.geometry.vocab_size, 40).tolist()
    handle = loaded.new_sequence()
    logits = loaded.forward([SequenceInput(handle=handle, token_ids=ids)], Want(logits="all")).logits
    assert np.abs(logits - oracle_forward(Checkpoint.open(folder), ids).logits).max() <= 1e-3
    loaded.free(handle)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("context", [64, 512, 1500])
def test_decode(benchmark, model, context):
    """Greedy decoding of 200 tokens behind a context, one stream."""
    timed, count = Timed(model), 200
    handle = model.new_sequence()
    model.forward([SequenceInput(handle=handle, token_ids=[7] * context)], Want(logits="none"))

    rounds = []

    def decode():
        model.truncate(handle, context)
        token, start, timed.seconds = 7, time.thread_time(), 0.0
        for _ in range(count):
            token = int(model.forward([SequenceInput(handle=handle, token_ids=[token])]).logits[0].argmax())
        rounds.append((time.thread_time() - start, timed.seconds))

    benchmark.pedantic(decode, rounds=7, warmup_rounds=1)
    processor, kernels = (statistics.median(column) / count for column in zip(*rounds, strict=True))
    print(
        f"\ndecode behind {context}: {1 / processor:.0f} tokens/s of processor time, "
        f"{count / benchmark.stats.stats.median:.0f} wall; "
        f"per token {kernels * 1e6:.0f} us kernels + {(processor - kernels) * 1e6:.0f} us backend"
    )
    if context <= 512:
        assert 1 / processor >= FLOOR


@pytest.mark.parametrize("tokens", [128, 1024])
def test_prefill(benchmark, model, tokens):
    """A prompt from nothing, in one forward."""
    ids = np.random.default_rng(1).integers(0, model.geometry.vocab_size, tokens).tolist()

    def prefill():
        handle = model.new_sequence()
        model.forward([SequenceInput(handle=handle, token_ids=ids)])
        model.free(handle)

    prefill()
    benchmark.pedantic(prefill, rounds=7)
    stats = benchmark.stats.stats
    print(f"\nprefill of {tokens}: {tokens / stats.median:.0f} tokens/s median, {tokens / stats.min:.0f} best")


@pytest.mark.skipif(not HAS_NANO, reason="the embedded model's weights are not installed")
def test_turns(model):
    """Whole turns through the engine: what of a token's time is kernels, backend and engine."""
    timed = Timed(model, clock=time.perf_counter)
    tokenizer = KimiTokenizer.open(WEIGHTS)
    engine = EngineModel(
        name="nano",
        backend="numba",
        model=model,
        tokenizer=tokenizer,
        chat_format=KimiChatFormat(tokenizer),
        profile=ModelProfile(context=2048),
    )

    async def turn(question):
        parts = engine.generate([Message(role="user", content=question)], (), GenerateOptions(max_tokens=200, temperature=0.0))
        ends = [part async for part in parts if isinstance(part, TurnEnd)]
        return ends[0].usage

    rows = []
    for number in range(8):
        timed.seconds = 0.0
        usage = asyncio.run(turn(f"What is {number + 23} * 47?"))
        tokens = usage.completion_tokens
        rows.append(
            (
                timed.seconds / tokens,
                (usage.model_seconds - timed.seconds) / tokens,
                (usage.seconds - usage.model_seconds) / tokens,
            )
        )
    engine.close()
    kernels, backend, framework = (statistics.median(column) * 1e6 for column in zip(*rows, strict=True))
    print(
        f"\nturns: {1e6 / (kernels + backend + framework):.0f} tokens/s; per token, prompt included: "
        f"{kernels:.0f} us kernels, {backend:.0f} us backend, {framework:.0f} us engine"
    )
