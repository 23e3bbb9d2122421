"""The engine over a real backend: a tiny checkpoint on Numba."""

import asyncio

import pytest
from engine.test_scheduler import cancel_at_random

from k2core.engine.engine import EngineModel
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import Message
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core.testing.formats import ByteFormat, ByteTokenizer
from k2core_numba.backend import NumbaBackend


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint whose vocabulary is the byte tokenizer's."""
    folder = tmp_path_factory.mktemp("tiny")
    size = ByteTokenizer.vocab_size
    return write_tiny_checkpoint(folder, vocab_size=size, max_position_embeddings=4096, pad_token_id=size - 1)


def opened(checkpoint, **options):
    """An engine over the checkpoint."""
    return EngineModel(
        name="tiny",
        backend="numba",
        model=NumbaBackend().load(checkpoint),
        tokenizer=ByteTokenizer(),
        chat_format=ByteFormat(),
        profile=ModelProfile(context=4096),
        checkpoint=checkpoint,
        **{"drafts": 0, "masks": False, **options},
    )


def turn(made, messages, **options):
    """The end of one turn."""

    async def last():
        return [part async for part in made.generate(messages, (), GenerateOptions(**options))][-1]

    return asyncio.run(last())


def test_fifty_steps_compute_each_token_once(checkpoint):
    """Fifty steps of a tool chain compute at most 1.15 times their distinct tokens, by the engine's count."""
    messages = [Message(role="user", content="What is 23 times 47?")]
    made = opened(checkpoint)
    try:
        for step in range(50):
            end = turn(made, messages, max_tokens=6, temperature=1.0, seed=step)
            messages += [end.message, Message(role="tool", content=f"result {step}")]
        computed = made.prefix.computed_tokens
        identity = made.identity()
    finally:
        made.close()

    distinct = len(ByteFormat().render(messages, generate=False))
    assert computed <= 1.15 * distinct
    assert computed > 0.9 * distinct
    assert identity["backend"] == "numba"
    assert identity["weights"].startswith("sha256:")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_and_chunked_turns_give_the_same_tokens(checkpoint, temperature):
    """On a batch-invariant backend prefix hits, forks and chunks of the prompt leave every sampled token as it is."""
    long, other = "Tell me of the sea. " * 30, "Tell me of the sea. " * 15 + "And the wind. " * 20
    cold, warm = opened(checkpoint), opened(checkpoint, prefill_chunk=7)
    try:
        assert cold._model.batch_invariant
        for content in (long, other, long, other):
            question = [Message(role="user", content=content)]
            expected = turn(cold, question, max_tokens=12, temperature=temperature, seed=5)
            cold.prefix.clear()
            found = turn(warm, question, max_tokens=12, temperature=temperature, seed=5)

            assert expected.usage.cached_tokens == 0
            assert found.message.token_ids == expected.message.token_ids
        assert found.usage.cached_tokens == found.usage.prompt_tokens - 1
    finally:
        cold.close()
        warm.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_turns_at_once_are_as_if_alone(checkpoint, temperature):
    """On a batch-invariant backend batch mates, forks, guesses and chunks leave every sampled token as it is."""
    contents = [f"{'Tell me of the sea. ' * (number % 3 * 8)}Number {number % 5}." for number in range(16)]
    options = {"max_tokens": 40, "temperature": temperature}

    async def together(made):
        async def one(seed, content):
            parts = made.generate([Message(role="user", content=content)], (), GenerateOptions(seed=seed, **options))
            return [part async for part in parts][-1]

        return await asyncio.gather(*(one(seed, content) for seed, content in enumerate(contents)))

    busy, alone = opened(checkpoint, drafts=6, most_running=4, prefill_chunk=50, interleave=20), opened(checkpoint)
    try:
        found = asyncio.run(together(busy))
        expected = [
            turn(alone, [Message(role="user", content=content)], seed=seed, **options) for seed, content in enumerate(contents)
        ]
    finally:
        busy.close()
        alone.close()

    assert [one.message.token_ids for one in found] == [one.message.token_ids for one in expected]
    assert sum(one.usage.drafted_tokens for one in found) > 0


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_cancelled_turns_give_every_page_back(tmp_path, count):
    """After turns that were all cancelled at some random point, exactly the pages are held that were held before: none."""
    model = NumbaBackend().load(write_tiny_checkpoint(tmp_path, max_position_embeddings=1024))
    assert cancel_at_random(model, count, seed=2) > count / 10
    model.close()
