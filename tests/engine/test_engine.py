"""The engine: from messages to a streamed turn, reuse, limits, cancelling, faults."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.engine import EngineModel
from k2core.errors import CapacityError, FormatError, InputError, K2Error
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import ArgumentsDelta, CallStarted, ContentDelta, Message, ReasoningDelta, TurnEnd
from k2core.testing.formats import CONTROL, ByteFormat, ByteTokenizer
from k2core.testing.loaded import HashModel

USER = Message(role="user", content="What is 23 times 47?")
FORMAT = ByteFormat()
HEADER = [CONTROL["<turn>"], *b"assistant\n"]


def says(*turns):
    """A next-token function that plays turns (texts with control tokens), one after each assistant header."""
    played = [ByteTokenizer().encode(turn, control=True) for turn in turns]

    def next_token(ids):
        ids = list(ids)
        starts = [at for at, token in enumerate(ids) if token == HEADER[0] and ids[at : at + len(HEADER)] == HEADER]
        return played[len(starts) - 1][len(ids) - starts[-1] - len(HEADER)]

    return next_token


@contextlib.contextmanager
def engine(model=None, context=100_000, drafts=0, masks=False, **options):
    """An engine over a stand-in model; closed afterwards.

    Unless asked to it does not guess, so that counts are exact, and has no masks, so that a model may say anything.
    """
    made = EngineModel(
        name="stand-in",
        backend="none",
        model=model or HashModel(vocab=ByteTokenizer.vocab_size),
        tokenizer=ByteTokenizer(),
        chat_format=FORMAT,
        profile=ModelProfile(context=context),
        drafts=drafts,
        masks=masks,
        **options,
    )
    try:
        yield made
    finally:
        made.close()


def turn(made, messages, tools=(), **options):
    """All parts of one turn."""

    async def collect():
        return [part async for part in made.generate(messages, tools, GenerateOptions(**options))]

    return asyncio.run(collect())


CALL = '<think>Let me see.</think>Hm.<call>functions.calculator:0<arguments>{"expression":"23*47"}<end>'


def test_a_turn_is_parsed_and_counted():
    """A scripted turn streams reasoning, content and a call, and ends with the message, its ids and its cost."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says(CALL))
    with engine(model) as made:
        *deltas, end = turn(made, [USER])

    ids = ByteTokenizer().encode(CALL, control=True)
    prompt = len(FORMAT.render([USER]))
    assert "".join(one.text for one in deltas if isinstance(one, ReasoningDelta)) == "Let me see."
    assert "".join(one.text for one in deltas if isinstance(one, ContentDelta)) == "Hm."
    assert [one.name for one in deltas if isinstance(one, CallStarted)] == ["calculator"]
    assert "".join(one.text for one in deltas if isinstance(one, ArgumentsDelta)) == '{"expression":"23*47"}'
    assert isinstance(end, TurnEnd)
    assert end.finish_reason == "tool_calls"
    assert end.message.token_ids == tuple(ids)
    assert end.usage.prompt_tokens == prompt
    assert end.usage.completion_tokens == len(ids)
    assert end.usage.reasoning_tokens == len("Let me see.")
    assert end.usage.computed_tokens == prompt + len(ids) - 1 == model.computed
    assert 0 < end.usage.model_seconds < end.usage.seconds


def test_calls_are_numbered_over_the_conversation():
    """The parser numbers calls from the number of calls in the messages so far."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says(CALL, CALL))
    with engine(model) as made:
        first = turn(made, [USER])[-1].message
        second = turn(made, [USER, first, Message(role="tool", content="1081")])[-1].message

    assert [call.id for call in (*first.tool_calls, *second.tool_calls)] == [
        "functions.calculator:0",
        "functions.calculator:1",
    ]


def test_fifty_calls_compute_each_token_once():
    """A run of 50 calls computes at most 1.15 times its distinct tokens; here exactly once each, in one sequence."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says(*[CALL] * 50, "<think>So.</think>1081<end>"))
    tools = [{"type": "function", "function": {"name": "calculator", "description": "d" * 300, "parameters": {}}}]
    messages = [USER]
    with engine(model) as made:
        for _ in range(51):
            end = turn(made, messages, tools, max_tokens=500)[-1]
            messages.append(end.message)
            if end.message.tool_calls:
                messages.append(Message(role="tool", content="1081"))
        counted = made.prefix.computed_tokens

    distinct = len(FORMAT.render(messages, tools, generate=False))
    assert end.finish_reason == "stop"
    assert sum(len(message.tool_calls) for message in messages) == 50
    assert counted == model.computed == distinct - 1  # the last end marker need not be computed
    assert counted <= 1.15 * distinct


@given(
    chunk=st.integers(1, 40),
    warm=st.booleans(),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    path=st.integers(0, 2),
)
def test_chunking_and_prefix_hits_change_nothing(chunk, warm, temperature, seed, path):
    """Whatever the chunks of the prompt and whatever is cached, the same seed and path give the same tokens."""
    options = {"temperature": temperature, "seed": seed, "path": path, "max_tokens": 30}
    with engine() as plain, engine(prefill_chunk=chunk) as other:
        if warm:
            turn(other, [Message(role="user", content="What is 23 minus 47?")], max_tokens=5)
            turn(other, [USER], **options)
        expected, found = turn(plain, [USER], **options)[-1], turn(other, [USER], **options)[-1]

    assert found.message.token_ids == expected.message.token_ids
    assert found.usage.cached_tokens > 0 if warm else found.usage.cached_tokens == 0


@given(st.integers(1, 60))
def test_max_tokens(most):
    """A turn never has more tokens than asked for, and says that it was cut."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says("<think>" + "a" * 100))
    with engine(model) as made:
        end = turn(made, [USER], max_tokens=most)[-1]

    assert (end.finish_reason, len(end.message.token_ids)) == ("length", most)
    assert end.usage.completion_tokens == most


@pytest.mark.parametrize(("limit", "finish"), [(0, "length"), (9, "length"), (10, "stop"), (None, "stop")])
def test_max_reasoning_tokens(limit, finish):
    """Thinking beyond its limit ends the turn; thinking up to it does not."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says("<think>0123456789</think>done<end>"))
    with engine(model) as made:
        end = turn(made, [USER], max_reasoning_tokens=limit)[-1]

    assert end.finish_reason == finish
    assert end.usage.reasoning_tokens == (10 if limit is None else min(10, limit + 1))


def test_context_bounds_the_turn():
    """Prompt and completion together never exceed the context."""
    prompt = len(FORMAT.render([USER]))
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says("a" * 100))
    with engine(model, context=prompt + 7) as made:
        end = turn(made, [USER])[-1]

    assert (end.finish_reason, end.usage.completion_tokens) == ("length", 7)


def test_a_prompt_that_does_not_fit():
    """A prompt that leaves no room is refused with both sizes, and the engine goes on."""
    prompt = len(FORMAT.render([USER]))
    with engine(context=prompt) as made:
        with pytest.raises(CapacityError, match=f"takes {prompt} tokens, but the model's context is {prompt}"):
            turn(made, [USER])

        assert turn(made, [Message(role="user", content="short")], max_tokens=1)[-1].finish_reason == "length"


def test_closing_the_stream_stops_between_tokens():
    """A reader that leaves stops the turn; what was computed is reused by the next one."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says("a" * 1_000_000))

    async def leave(made):
        async with contextlib.aclosing(made.generate([USER], (), GenerateOptions(max_tokens=1_000_000))) as parts:
            async for _ in parts:
                break

    with engine(model) as made:
        asyncio.run(leave(made))
        end = turn(made, [USER], max_tokens=3)[-1]

        assert end.usage.cached_tokens == end.usage.prompt_tokens - 1
        assert model.computed < 500_000


def test_cancelling_the_task_stops_the_turn():
    """A deadline around the reader stops the turn too."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says("a" * 1_000_000))

    async def read(made):
        async with contextlib.aclosing(made.generate([USER], (), GenerateOptions(max_tokens=1_000_000))) as parts:
            async for _ in parts:
                pass

    async def main(made):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await read(made)

    with engine(model) as made:
        asyncio.run(main(made))
        assert turn(made, [USER], max_tokens=1)[-1].usage.completion_tokens == 1


def test_the_event_loop_stays_free():
    """While a slow model computes, other tasks of the loop run."""

    class Slow(HashModel):
        def forward(self, batch, want=None):
            time.sleep(0.05)
            return super().forward(batch, want)

    async def main(made):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        parts = [part async for part in made.generate([USER], (), GenerateOptions(max_tokens=8))]
        ticking.cancel()
        return ticks, parts

    with engine(Slow(vocab=ByteTokenizer.vocab_size)) as made:
        ticks, parts = asyncio.run(main(made))

    assert isinstance(parts[-1], TurnEnd)
    assert ticks >= 8


def test_turns_of_several_tasks_share_one_thread():
    """Turns asked for at once share their forwards, all on the same thread, each as if alone."""
    threads = set()

    class Watched(HashModel):
        def forward(self, batch, want=None):
            threads.add(threading.get_ident())
            return super().forward(batch, want)

    async def one(made, content):
        messages = [Message(role="user", content=content)]
        return [part async for part in made.generate(messages, (), GenerateOptions(max_tokens=20))][-1].message.token_ids

    async def main(made):
        return await asyncio.gather(*(one(made, f"question {number}") for number in range(6)))

    with engine(Watched(vocab=ByteTokenizer.vocab_size)) as together:
        found = asyncio.run(main(together))
    with engine() as alone:
        expected = [asyncio.run(one(alone, f"question {number}")) for number in range(6)]

    assert found == expected
    assert together._model.forwards < 60
    assert len(threads) == 1
    assert threading.get_ident() not in threads


class Failing(HashModel):
    """A model whose forward fails once when asked to."""

    error: BaseException | None = None

    def forward(self, batch, want=None):
        """Fail or compute."""
        if self.error is not None and want.logits == "last":
            error, self.error = self.error, None
            raise error
        return super().forward(batch, want)


@pytest.mark.parametrize("error", [K2Error("no more memory"), RuntimeError("kernel crashed"), MemoryError("all gone")])
def test_a_failing_model_is_told_and_the_engine_goes_on(error):
    """What forward raises comes out of generate; the next turn computes the same as a fresh engine."""
    model = Failing(vocab=ByteTokenizer.vocab_size)
    with engine(model) as made, engine() as fresh:
        turn(made, [USER], max_tokens=3)
        model.error = error
        with pytest.raises(type(error), match=str(error)):
            turn(made, [USER], max_tokens=3)

        again, expected = turn(made, [USER], max_tokens=9)[-1], turn(fresh, [USER], max_tokens=9)[-1]

        assert again.message.token_ids == expected.message.token_ids
        assert len(model.live) == len(made.prefix) == 1


def test_a_model_that_cannot_free_does_not_stop_the_engine():
    """Every turn gets an end though the backend fails at everything; once it works again, turns begin with nothing."""

    class Stuck(Failing):
        stuck = False

        def free(self, handle):
            if self.stuck:
                raise RuntimeError("driver gone")
            super().free(handle)

    model = Stuck(vocab=ByteTokenizer.vocab_size)
    with engine(model) as made:
        turn(made, [USER], max_tokens=3)
        for _ in range(2):
            model.error, model.stuck = RuntimeError("kernel crashed"), True
            with pytest.raises(RuntimeError):
                turn(made, [USER], max_tokens=3)
        model.stuck = False
        assert turn(made, [USER], max_tokens=3)[-1].usage.cached_tokens == 0


def test_nan_logits_are_one_clear_line():
    """A model whose logits are NaN ends in one line that names the position."""

    class Broken(HashModel):
        def _row(self, sequence):
            return np.full(self.geometry.vocab_size, np.nan, np.float32)

    prompt = len(FORMAT.render([USER]))
    with engine(Broken(vocab=ByteTokenizer.vocab_size)) as made, pytest.raises(K2Error, match=f"position {prompt}"):
        turn(made, [USER])


def test_bad_requests_are_refused_before_anything_is_computed():
    """Options out of range and messages that cannot be rendered raise, and nothing is computed."""

    class Strict(ByteFormat):
        def render(self, messages, tools=(), *, generate=True):
            raise FormatError("message 0 is odd")

    model = HashModel(vocab=ByteTokenizer.vocab_size)
    with engine(model) as made:
        for options in ({"temperature": -1.0}, {"top_p": 2.0}, {"max_tokens": 0}, {"max_tokens": "5"}, {"min_p": None},
                        {"seed": 0.5}, {"tool_choice": None}, {"max_reasoning_tokens": "many"}):  # fmt: skip
            with pytest.raises(InputError, match=next(iter(options))):
                turn(made, [USER], **options)
        made._format = Strict()
        with pytest.raises(FormatError, match="message 0 is odd"):
            turn(made, [USER])
    assert model.forwards == 0


def test_close_ends_a_running_turn_and_refuses_more():
    """Closing stops the running turn with ``cancelled``, refuses those without a place and later ones, and frees the model."""
    model = HashModel(vocab=ByteTokenizer.vocab_size, next_token=says("a" * 1_000_000))

    async def main(made):
        async def read():
            options = GenerateOptions(max_tokens=1_000_000)
            return [part async for part in made.generate([USER], (), options)][-1].finish_reason

        running, waiting = asyncio.ensure_future(read()), asyncio.ensure_future(read())
        while not model.forwards:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(made.close)
        return await asyncio.gather(running, waiting, read(), return_exceptions=True)

    with engine(model, most_running=1) as made:
        running, waiting, late = asyncio.run(main(made))

    assert running == "cancelled"
    assert isinstance(waiting, K2Error) and "was closed before" in str(waiting)
    assert isinstance(late, K2Error) and "it is closed" in str(late)
    assert model.live == ()


def test_identity_names_the_weights(tmp_path):
    """The identity tells model, backend, numerics, kernel and a fingerprint that changes with any byte of the weights."""
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    prints = set()
    for content in (b"a" * 1000, b"a" * 999 + b"b"):
        weights.write_bytes(content)
        with engine(checkpoint=tmp_path) as made:
            identity = made.identity()
            prints.add(identity["weights"])
    with engine() as made:
        unnamed = made.identity()

    assert {key: identity[key] for key in ("model", "backend", "numerics", "kernel", "batch_invariant")} == {
        "model": "stand-in",
        "backend": "none",
        "numerics": "exact",
        "kernel": "hash",
        "batch_invariant": "yes",
    }
    assert len(prints) == 2
    assert all(one.startswith("sha256:") for one in prints)
    assert unnamed["weights"] == ""
