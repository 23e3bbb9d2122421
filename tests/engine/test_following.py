"""Turns that are led along given tokens: what is noted is what a model that is fed them would choose otherwise."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.engine.engine import EngineModel
from k2core.engine.following import Difference
from k2core.engine.logits import logits_of
from k2core.engine.sampler import Sampler
from k2core.errors import InputError
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import Message
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core.testing.formats import ByteFormat, ByteTokenizer
from k2core_numba.backend import NumbaBackend

SIZE = ByteTokenizer.vocab_size
QUESTION = [Message(role="user", content="Tell me of the sea.")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint whose vocabulary is the byte tokenizer's."""
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_checkpoint(folder, vocab_size=SIZE, max_position_embeddings=4096, pad_token_id=SIZE - 1)


@pytest.fixture(scope="module")
def engines(checkpoint):
    """Two engines over the checkpoint: one guesses, one computes prompts in small pieces."""
    found = [
        EngineModel(
            name="tiny",
            backend="numba",
            model=NumbaBackend().load(checkpoint),
            tokenizer=ByteTokenizer(),
            chat_format=ByteFormat(),
            profile=ModelProfile(context=4096),
            masks=False,
            **options,
        )
        for options in ({"drafts": 6}, {"drafts": 0, "prefill_chunk": 7})
    ]
    yield found
    for one in found:
        one.close()


@pytest.fixture(scope="module")
def model(checkpoint):
    """The checkpoint alone."""
    loaded = NumbaBackend().load(checkpoint)
    yield loaded
    loaded.close()


def follow(engine, token_ids, **options):
    """What becomes of following."""
    return asyncio.run(engine.follow(QUESTION, (), GenerateOptions(**options), token_ids))


def turn(engine, **options):
    """The tokens of one turn."""

    async def last():
        return [part async for part in engine.generate(QUESTION, (), GenerateOptions(**options))][-1]

    return asyncio.run(last()).message.token_ids


@settings(max_examples=30, deadline=None)
@given(
    token_ids=st.lists(st.integers(0, SIZE - 1).filter(lambda one: one not in ByteFormat().stop_ids), min_size=1, max_size=12),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_whatever_is_given_is_judged_place_by_place(engines, model, token_ids, temperature, seed):
    """At each place the sampler's choice from the logits behind the given tokens, with the margin of these logits."""
    prompt = ByteFormat().render(QUESTION)
    ((logits, _),) = logits_of(model, [[*prompt, *token_ids]])
    sampler, expected = Sampler(temperature=temperature, seed=seed), []
    for at, one in enumerate(token_ids):
        row = logits[len(prompt) + at - 1]
        chosen = sampler.sample(row, len(prompt) + at)
        if chosen != one:
            margin = float(row[chosen]) - float(row[one])
            expected.append(Difference(position=at, given=one, chosen=chosen, margin=margin))

    for engine in engines:
        found = follow(engine, token_ids, temperature=temperature, seed=seed, max_tokens=len(token_ids))

        assert found.differences == tuple(expected)
        assert (found.tokens, found.agreed) == (len(token_ids), len(token_ids) - len(expected))
        assert found.usage.prompt_tokens == len(prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_turn_of_the_model_itself_agrees(engines, temperature):
    """Following its own turn, an engine with other guesses and chunks notes nothing."""
    for seed in range(4):
        options = {"temperature": temperature, "seed": seed, "max_tokens": 40}
        ids = turn(engines[0], **options)
        for engine in engines:
            found = follow(engine, ids, **options)
            assert (found.agreed, found.differences) == (len(ids), ())


def test_where_one_of_both_ends_is_a_difference(engines):
    """Too few tokens, too many, and one that is none of the vocabulary's."""
    ids = turn(engines[0], max_tokens=9)
    for engine in engines:
        (short,) = follow(engine, ids[:5], max_tokens=9).differences
        (long,) = follow(engine, (*ids, 65), max_tokens=9).differences
        unknown = follow(engine, (*ids[:4], SIZE, *ids[5:]), max_tokens=9)
        assert short == Difference(position=5, given=None, chosen=ids[5])
        assert long == Difference(position=len(ids), given=65, chosen=None)
        assert unknown.differences == (Difference(position=4, given=SIZE, chosen=ids[4]),) and unknown.agreed == 4


def test_nothing_cannot_be_followed(engines):
    """A turn without tokens is refused; options are checked as of any turn."""
    with pytest.raises(InputError, match="cannot follow a turn of model 'tiny' that has no tokens"):
        follow(engines[0], ())
    with pytest.raises(InputError, match="temperature is -1"):
        follow(engines[0], (65,), temperature=-1.0)
    assert np.isfinite(follow(engines[0], (65,), max_tokens=1).usage.seconds)
