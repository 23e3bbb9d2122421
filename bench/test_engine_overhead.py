"""Framework time per token: the whole engine around a model that computes nothing.

Run with ``pytest bench/test_engine_overhead.py -s``. Counted is processor time of the engine's thread from the first
token to the last: scheduling, masks, sampling, parsing, counting, handing deltas over, and the empty forward itself. Processor
time, so that what else runs on the machine does not count. The limit is 0.2 ms per token; wall time is printed beside it.
"""

import asyncio
import statistics
import time

import numpy as np
import pytest

from k2core.engine.engine import EngineModel
from k2core.interfaces import GenerateOptions, ModelProfile, Step
from k2core.messages import Message
from k2core.testing.formats import ByteFormat, ByteTokenizer
from k2core.testing.loaded import HashModel

TOKENS = 2000
LIMIT_MS = 0.2


class Idle(HashModel):
    """Appends tokens and returns the same logits each time; letters are likely."""

    def __init__(self, vocab):
        super().__init__(vocab=vocab)
        row = np.random.default_rng(0).normal(size=vocab).astype(np.float32)
        row[256:] -= 30
        row[ord("a")] = 8.0
        self._rows = np.broadcast_to(row, (64, vocab))
        self.moments = []

    def forward(self, batch, want=None):
        """Keep the ids and the thread's processor time only."""
        self.moments.append(time.thread_time())
        for one in batch:
            self._sequences[one.handle].ids.extend(one.token_ids)
        return Step(logits=self._rows[: sum(one.rows for one in batch)])

    def truncate(self, handle, length):
        """There are no states to forget."""
        del self._sequences[handle].ids[length:]


def overhead_ms(vocab, options, *, turns=1, drafts=0):
    """Milliseconds of framework per token: the median of five times *turns* turns at once."""
    model = Idle(vocab)
    made = EngineModel(
        name="idle",
        backend="none",
        model=model,
        tokenizer=ByteTokenizer(),
        chat_format=ByteFormat(),
        profile=ModelProfile(context=100_000),
        drafts=drafts,
    )

    async def turn(number):
        message = Message(role="user", content=f"Say something long, please: {number}.")
        return [part async for part in made.generate([message], (), options)][-1].usage

    async def at_once():
        return await asyncio.gather(*(turn(number) for number in range(turns)))

    processor, wall = [], []
    try:
        for _ in range(6):
            model.moments.clear()
            made.prefix.clear()
            start = time.perf_counter()
            usages = asyncio.run(at_once())
            tokens = sum(usage.completion_tokens for usage in usages)
            wall.append((time.perf_counter() - start) * 1e3 / tokens)
            processor.append((model.moments[-1] - model.moments[0]) * 1e3 / tokens)
    finally:
        made.close()
    middle = statistics.median(processor[1:])
    print(f"\n{middle * 1e3:6.1f} us/token processor, {statistics.median(wall[1:]) * 1e3:6.1f} wall")
    return middle


@pytest.mark.parametrize("masks", [False, True], ids=["masks=off", "masks=on"])
@pytest.mark.parametrize("vocab", [4096, 163_840])
def test_greedy(vocab, masks):
    """Greedy decoding costs less than the limit per token."""
    assert overhead_ms(vocab, GenerateOptions(max_tokens=TOKENS, masks=masks)) < LIMIT_MS


@pytest.mark.parametrize("masks", [False, True], ids=["masks=off", "masks=on"])
@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.95, "min_p": 0.05}])
def test_sampling(sampling, masks):
    """Sampling from a small vocabulary costs less than the limit per token."""
    assert overhead_ms(4096, GenerateOptions(max_tokens=TOKENS, masks=masks, **sampling)) < LIMIT_MS


@pytest.mark.parametrize("masks", [False, True], ids=["masks=off", "masks=on"])
def test_sixteen_at_once(masks):
    """Sixteen turns in one batch cost less than the limit per token."""
    assert overhead_ms(4096, GenerateOptions(max_tokens=TOKENS // 4, masks=masks), turns=16) < LIMIT_MS


def test_guesses():
    """Guesses that are always right cost less than the limit per token."""
    assert overhead_ms(4096, GenerateOptions(max_tokens=TOKENS), drafts=8) < LIMIT_MS
