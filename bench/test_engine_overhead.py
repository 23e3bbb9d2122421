"""Framework time per token: the whole engine around a model that computes nothing.

Run with ``pytest bench/test_engine_overhead.py -s``. Counted is processor time of the engine's thread from the first
token to the last: sampling, parsing, counting, handing deltas over, and the empty forward itself. Processor time, so that
what else runs on the machine does not count. The limit is 0.2 ms per token; wall time is printed beside it.
"""

import asyncio
import statistics
import time

import numpy as np
import pytest

from k2core.engine.engine import EngineModel
from k2core.interfaces import GenerateOptions, ModelProfile, Step
from k2core.messages import Message, TurnEnd
from k2core.testing.formats import ByteFormat, ByteTokenizer
from k2core.testing.loaded import HashModel

TOKENS = 2000
LIMIT_MS = 0.2
USER = Message(role="user", content="Say something long.")


class Idle(HashModel):
    """Appends tokens and returns the same logits each time; letters are likely."""

    def __init__(self, vocab):
        super().__init__(vocab=vocab)
        row = np.random.default_rng(0).normal(size=vocab).astype(np.float32)
        row[256:] = -np.inf
        row[ord("a")] = 8.0
        self._step = Step(logits=row[None, :])
        self.moments = []

    def forward(self, batch, want=None):
        """Keep the ids and the thread's processor time only."""
        self.moments.append(time.thread_time())
        for one in batch:
            self._sequences[one.handle].ids.extend(one.token_ids)
        return self._step


def overhead_ms(vocab, options):
    """Milliseconds of framework per token: the median of five turns."""
    model = Idle(vocab)
    made = EngineModel(
        name="idle",
        backend="none",
        model=model,
        tokenizer=ByteTokenizer(),
        chat_format=ByteFormat(),
        profile=ModelProfile(context=100_000),
    )

    async def turn():
        parts = 0
        async for part in made.generate([USER], (), options):
            parts += 1
            if isinstance(part, TurnEnd):
                return part.usage, parts
        raise AssertionError("no end of the turn")

    processor, wall = [], []
    try:
        for _ in range(6):
            model.moments.clear()
            usage, parts = asyncio.run(turn())
            steps = len(model.moments) - 1
            processor.append((model.moments[-1] - model.moments[0]) * 1e3 / steps)
            wall.append((usage.seconds - usage.model_seconds) * 1e3 / usage.completion_tokens)
    finally:
        made.close()
    middle = statistics.median(processor[1:])
    print(f"\n{middle * 1e3:6.1f} us/token processor, {statistics.median(wall[1:]) * 1e3:6.1f} wall; {parts} parts")
    return middle


@pytest.mark.parametrize("vocab", [4096, 163_840])
def test_greedy(vocab):
    """Greedy decoding costs less than the limit per token."""
    assert overhead_ms(vocab, GenerateOptions(max_tokens=TOKENS)) < LIMIT_MS


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.95, "min_p": 0.05}])
def test_sampling(sampling):
    """Sampling from a small vocabulary costs less than the limit per token."""
    assert overhead_ms(4096, GenerateOptions(max_tokens=TOKENS, **sampling)) < LIMIT_MS
