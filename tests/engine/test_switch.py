"""Another model under a running conversation: what is compared, what is refused, and that nothing else changes."""

import asyncio
import time

import numpy as np
import pytest
from engine.test_engine import USER, engine, turn
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.engine import EngineModel
from k2core.engine.limits import EXACT_DELTA, Limit
from k2core.engine.switch import SwitchRefused, compare, score
from k2core.errors import CapacityError, InputError, K2Error
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import Message, TurnEnd
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core.testing.formats import ByteFormat, ByteTokenizer
from k2core.testing.loaded import HashModel
from k2core_numba.backend import NumbaBackend


class Off(HashModel):
    """The stand-in model with one logit moved, from some length on."""

    def __init__(self, *, by, behind=0, **options):
        super().__init__(vocab=ByteTokenizer.vocab_size, **options)
        self.by, self.behind = by, behind

    def _row(self, sequence):
        row = super()._row(sequence)
        if len(sequence.ids) > self.behind:
            row[65] += self.by
        return row


def test_a_running_turn_goes_on_with_the_new_model():
    """Tokens are those of an engine that never switched; the old model is closed, the new one holds the conversation."""
    slow = asyncio.Event()
    letters = {"vocab": ByteTokenizer.vocab_size, "next_token": lambda ids: 97 + sum(ids[-3:]) % 11}

    class Held(HashModel):
        def forward(self, batch, *want):
            if self.computed == 60:  # in the middle of the turn
                loop.call_soon_threadsafe(slow.set)
            time.sleep(0.0001)
            return super().forward(batch, *want)

    old, new = Held(**letters), HashModel(**letters)

    async def main():
        options = GenerateOptions(max_tokens=3000, temperature=1.0, seed=3)
        task = asyncio.ensure_future(collect(made.generate([USER], (), options)))
        await slow.wait()
        report = await asyncio.to_thread(made.use, new, backend="other", check=40)
        return report, await task

    async def collect(parts):
        return [part async for part in parts][-1]

    with engine(old) as made, engine(HashModel(**letters)) as plain:
        loop = asyncio.new_event_loop()
        report, end = loop.run_until_complete(main())
        loop.close()
        expected = turn(plain, [USER], max_tokens=3000, temperature=1.0, seed=3)[-1]
        again = turn(made, [USER], max_tokens=5)[-1]
        identity = made.identity()

        assert end.message.token_ids == expected.message.token_ids
        assert (report.max_delta, report.flips, report.tokens) == (0.0, 0, 40)
        assert old.live == ()
        assert new.computed > 40
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert identity["backend"] == "other"
        assert identity["switch"] == str(report)


@pytest.mark.parametrize("by", [0.01, float("nan"), 100.0])
def test_a_model_that_differs_is_refused(by):
    """A planted difference ten times the limit is refused with the figures; the old model goes on, the new one is closed."""
    old, new = HashModel(vocab=ByteTokenizer.vocab_size), Off(by=by, behind=45)
    with engine(old) as made:
        turn(made, [USER], max_tokens=20)
        live = old.live
        with pytest.raises(SwitchRefused, match=r"the models differ: 57 tokens: max \|Δlogit\|") as refused:
            made.use(new, backend="other")
        after = turn(made, [USER], max_tokens=20)[-1]

        assert not refused.value.report.is_within
        assert refused.value.report.max_delta >= 10 * EXACT_DELTA * 0.99
        assert after.usage.cached_tokens == after.usage.prompt_tokens - 1
        assert made.identity()["backend"] == "none"
        assert new.live == ()
        assert set(live) <= set(old.live)


def test_a_difference_before_the_checked_tokens_is_not_seen_and_said_so():
    """Only as many tokens are compared as asked for; the report says how many."""
    with engine() as made:
        turn(made, [USER], max_tokens=30)
        report = made.use(Off(by=0.0), backend="other", check=5)

    assert (report.tokens, report.context) == (5, len(ByteFormat().render([USER])) + 29)


def test_without_a_conversation_a_first_question_is_compared():
    """A switch before the first turn is checked too."""
    with engine() as made:
        with pytest.raises(SwitchRefused):
            made.use(Off(by=1.0), backend="other")
        report = made.use(Off(by=0.0), backend="other", check=10)

    assert report.tokens == 10


def test_what_cannot_be_judged_is_refused_in_one_line():
    """Another vocabulary, numerics without a contract, no tokens, no room and a closed engine are one clear line each."""
    other = HashModel(vocab=ByteTokenizer.vocab_size)
    other.numerics = "w4a8"
    with engine() as made:
        for model, options, error, said in (
            (HashModel(vocab=7), {}, InputError, "the new model has 7 tokens"),
            (other, {}, InputError, "from numerics 'exact' to 'w4a8'"),
            (HashModel(vocab=ByteTokenizer.vocab_size), {"check": 0}, InputError, "check at least 1"),
            (HashModel(vocab=ByteTokenizer.vocab_size), {"check": "x"}, InputError, "check is 'x', a str"),
            *(
                (HashModel(vocab=ByteTokenizer.vocab_size), {"limit": limit}, InputError, "it must be a positive number")
                for limit in (float("nan"), float("inf"), 0, -0.5, True, "x")
            ),
            (HashModel(vocab=ByteTokenizer.vocab_size, free_bytes=10), {}, CapacityError, "context of 100000 tokens"),
        ):
            with pytest.raises(error, match=said):
                made.use(model, backend="other", **options)
        assert made.use(other, backend="other", limit=1e-6).limit == 1e-6
    with pytest.raises(K2Error, match="it is closed"):
        made.use(HashModel(), backend="other")


@given(
    st.integers(1, 6),
    st.integers(2, 9),
    st.integers(0, 10**6),
    st.floats(0, 2, width=32),
)
def test_the_report_by_definition(tokens, vocab, seed, size):
    """Differences, divergence and flips are what their definitions say, in float64."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(tokens, vocab)).astype(np.float32)
    new = (old + size * rng.normal(size=old.shape)).astype(np.float32)
    report = compare(old, new, context=10, limit=Limit(most=0.05))
    p, q = (np.exp(one.astype(np.float64)) / np.exp(one.astype(np.float64)).sum(1, keepdims=True) for one in (old, new))
    divergence = (p * np.log(p / q)).sum(1)
    lead = np.sort(old.astype(np.float64), axis=1)
    flips = old.argmax(1) != new.argmax(1)

    assert report.max_delta == np.abs(old.astype(np.float64) - new).max()
    assert report.max_kl == pytest.approx(divergence.max(), abs=1e-12)
    assert report.mean_kl == pytest.approx(divergence.mean(), abs=1e-12)
    assert report.flips == flips.sum()
    assert report.clear_flips == (flips & (lead[:, -1] - lead[:, -2] > 0.1)).sum()
    assert report.is_within == (report.max_delta <= 0.05)


def test_switching_between_two_loads_of_one_checkpoint(tmp_path):
    """On a real backend, another number of threads changes no bit; another checkpoint of the same sizes is refused."""
    size = ByteTokenizer.vocab_size
    sizes = {"vocab_size": size, "max_position_embeddings": 4096, "pad_token_id": size - 1}
    first, second = (write_tiny_checkpoint(tmp_path / str(seed), seed=seed, **sizes) for seed in (0, 1))
    made = EngineModel(
        name="tiny",
        backend="numba",
        model=NumbaBackend().load(first),
        tokenizer=ByteTokenizer(),
        chat_format=ByteFormat(),
        profile=ModelProfile(context=4096),
    )
    question = [Message(role="user", content="Tell me of the sea. " * 30)]
    try:
        before = turn(made, question, max_tokens=20, masks=False)[-1]
        other = NumbaBackend().load(first)
        other.threads = 1
        report = made.use(other, backend="numba", check=200)
        after = turn(made, question, max_tokens=20, masks=False)[-1]
        with pytest.raises(SwitchRefused):
            made.use(NumbaBackend().load(second), backend="numba")
    finally:
        made.close()

    assert isinstance(after, TurnEnd)
    assert (report.tokens, report.max_delta, report.max_kl) == (200, 0.0, 0.0)
    assert after.message.token_ids == before.message.token_ids
    handle_rows = score(NumbaBackend().load(first), list(range(30)), 7)
    assert handle_rows.shape == (7, size)
