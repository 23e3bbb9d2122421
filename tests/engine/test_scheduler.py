"""The scheduler: many turns in one forward, each as if alone; nobody stalls, nothing leaks, memory is held to."""

import random
from concurrent.futures import Future

import pytest
from engine.turns import ask, run, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.errors import K2Error
from k2core.messages import TurnEnd
from k2core.testing.loaded import HashModel

prompts = st.lists(st.integers(0, 9), min_size=1, max_size=120)


class Watched(HashModel):
    """Keeps the new tokens of every forward, by handle."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches = []

    def forward(self, batch, want=None):
        """Note the batch."""
        self.batches.append({one.handle: len(one.token_ids) for one in batch})
        return super().forward(batch, want)


@given(
    asks=st.lists(
        st.tuples(prompts, st.integers(1, 20), st.integers(0, 3), st.sampled_from([0.0, 1.0]), st.integers(0, 30)),
        min_size=1,
        max_size=8,
    ),
    drafts=st.sampled_from([0, 1, 5]),
    chunk=st.integers(1, 60),
    interleave=st.integers(1, 60),
    running=st.integers(1, 8),
    shared=st.booleans(),
    cancelled=st.sets(st.integers(0, 7), max_size=3),
)
def test_every_turn_is_as_if_alone(asks, drafts, chunk, interleave, running, shared, cancelled):
    """Whenever turns arrive, whatever they share, are guessed, chunked or cancelled beside them: tokens never change."""
    model = HashModel(vocab=10, fork_is_shared=shared)
    together = schedule(model, prefill_chunk=chunk, interleave=interleave, most_running=running, most_guessed=drafts)
    turns = [ask(p, most=m, seed=s, temperature=t, drafts=drafts, stop=(3,)) for p, m, s, t, _ in asks]
    step = 0
    waiting = sorted(zip((a[4] for a in asks), turns, strict=True), key=lambda pair: pair[0])
    while waiting or together.busy:
        while waiting and waiting[0][0] <= step:
            together.add(waiting.pop(0)[1].turn)
        together.step()
        step += 1
        if step == 12:
            for place in cancelled & set(range(len(turns))):
                turns[place].is_cancelled = True
    for one, (prompt, most, seed, temperature, _) in zip(turns, asks, strict=True):
        alone = ask(prompt, most=most, seed=seed, temperature=temperature, stop=(3,))
        run(schedule(HashModel(vocab=10)), alone)
        if one.is_cancelled:
            assert isinstance(one.end, K2Error) or one.ids == alone.ids[: len(one.ids)]
        else:
            assert one.ids == alone.ids
            assert one.end.finish_reason == alone.end.finish_reason
    assert not any(one.in_use for one in together.prefix.live)


def test_turns_that_generate_share_one_forward():
    """Sixteen turns take as many forwards as the longest of them, not as their sum."""
    model = Watched()
    turns = [ask([number] * 4, most=10 + number) for number in range(16)]
    run(schedule(model), *turns)

    assert len(model.batches) == 10 + 15
    assert [len(one.ids) for one in turns] == [10 + number for number in range(16)]
    assert max(map(len, model.batches)) == 16


@pytest.mark.parametrize("interleave", [1, 16, 64])
def test_a_long_prompt_does_not_stall_the_others(interleave):
    """While turns generate, every step gives each of them a token and at most *interleave* tokens to all prompts together."""
    model = Watched()
    scheduler = schedule(model, interleave=interleave)
    short = [ask([number], most=100) for number in range(3)]
    for one in short:
        scheduler.add(one.turn)
    scheduler.step()
    long = [ask([9] * 2000, most=1), ask([8] * 1500, most=1)]
    for one in long:
        scheduler.add(one.turn)
    seen = len(model.batches)
    while not all(one.end for one in short):
        before = [len(one.turn._generated) for one in short]
        scheduler.step()
        assert [len(one.turn._generated) for one in short] == [count + 1 for count in before]
    for batch in model.batches[seen:]:
        assert sum(batch.values()) <= 3 + interleave
    assert all(one.end is None for one in long) == (interleave < 64)
    run(scheduler)
    assert all(one.end for one in long)


def test_short_prompts_pass_a_long_one():
    """A prompt gets its share of a step whatever waits beside it: a short one is through long before a long one."""
    scheduler = schedule(HashModel(), prefill_chunk=100)
    long, short = ask([1] * 4000, most=1), ask([2] * 90, most=1)
    for one in (long, short):
        scheduler.add(one.turn)
    for _ in range(2):
        scheduler.step()

    assert short.end is not None
    assert long.end is None


def test_places_are_given_in_the_order_asked():
    """With one place, turns run one after the other in the order they were asked."""
    done = []
    scheduler = schedule(HashModel(), most_running=1)
    turns = [ask([number] * 5, most=3) for number in range(5)]
    for number, one in enumerate(turns):
        ended = one.turn.ended
        one.turn.ended = lambda end, number=number, ended=ended: (done.append(number), ended(end))
    run(scheduler, *turns)

    assert done == [0, 1, 2, 3, 4]


def test_prompts_that_arrive_together_compute_their_beginning_once():
    """Sixteen prompts over the same tools, asked at once: the tools are computed once, then everyone forks."""
    model = HashModel(vocab=600, fork_is_shared=True)
    tools = list(range(300))
    turns = [ask([*tools, 300 + number, *[400 + number] * 20], most=5) for number in range(16)]
    run(schedule(model, prefill_chunk=64), *turns)

    assert model.computed == len(tools) + 16 * (21 + 5 - 1)
    assert sum(one.end.usage.cached_tokens for one in turns) == 15 * len(tools)


def test_equal_prompts_that_arrive_together_compute_it_once():
    """Eight paths over one prompt compute it once, and each of the others its last token again, for the logits."""
    model = HashModel(fork_is_shared=True)
    turns = [ask([5] * 200, most=6, seed=path, temperature=1.0) for path in range(8)]
    run(schedule(model, prefill_chunk=64), *turns)

    assert model.computed == 200 + 7 + 8 * 5
    assert len({one.ids for one in turns}) > 1


class Bounded(HashModel):
    """Counts blocks of its own and remembers the most."""

    most = 0

    def forward(self, batch, want=None):
        """Note the blocks afterwards."""
        step = super().forward(batch, want)
        self.most = max(self.most, self.used_blocks())
        return step


@given(
    asks=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 50)), min_size=1, max_size=20),
    spare=st.integers(0, 20),
    seed=st.integers(0, 5),
)
def test_the_cache_never_outgrows_its_plan(asks, spare, seed):
    """However many turns wait, what runs at once fits the plan to its end, and everyone gets a turn."""
    context = 256
    model = Bounded(vocab=50)
    scheduler = schedule(model, context=context, blocks=context // 16 + spare)
    turns = [ask([seed] * (length // 2) + [number % 40] * (length - length // 2), most=most)
             for number, (length, most) in enumerate(asks)]  # fmt: skip
    run(scheduler, *turns)

    assert [len(one.ids) for one in turns] == [most for _, most in asks]
    assert model.most <= context // 16 + spare + 1  # a sequence that goes on where its turn's last block ended


def cancel_at_random(model, count, seed):
    """*count* turns, all cancelled at some random point; afterwards nothing is held but what nobody uses."""
    rng = random.Random(seed)
    scheduler = schedule(model, context=512, prefill_chunk=32, interleave=16, most_running=8, most_guessed=4)
    before = model.used_blocks()
    asked = []
    for number in range(count):
        shared = [rng.randrange(5)] * rng.randrange(1, 60)
        one = ask([*shared, *(rng.randrange(50) for _ in range(rng.randrange(1, 40)))], most=rng.randrange(1, 60), drafts=4)
        scheduler.add(one.turn)
        asked.append(one)
        for _ in range(rng.randrange(4)):
            scheduler.step()
        for other in rng.sample(asked[-12:], k=min(len(asked), rng.randrange(3))):
            other.is_cancelled = True
        if number % 50 == 49:
            for other in asked:
                other.is_cancelled = True
    for one in asked:
        one.is_cancelled = True
    run(scheduler)
    used = model.used_blocks()
    assert not any(one.in_use for one in scheduler.prefix.live)
    scheduler.prefix.clear()

    assert used > 0
    assert model.used_blocks() == before == 0
    ends = [one.end for one in asked if one.end is not None]
    assert all(isinstance(end, TurnEnd) or "closed before" in str(end) for end in ends)
    return sum(isinstance(end, TurnEnd) and end.finish_reason == "cancelled" for end in ends)


@pytest.mark.parametrize("shared", [False, True])
def test_cancelled_turns_give_everything_back(shared):
    """After 500 turns that were cancelled at random, no block is held that was not held before."""
    assert cancel_at_random(HashModel(vocab=50, fork_is_shared=shared), 500, seed=1) > 50


@given(st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_one_failing_turn_does_not_end_the_others(fails_at):
    """A forward that refuses one sequence ends that turn alone, with the reason."""

    class Refusing(HashModel):
        def forward(self, batch, want=None):
            if any(8 in one.token_ids for one in batch) and len(batch[0].token_ids) <= 1 + fails_at:
                raise K2Error("no 8, please")
            return super().forward(batch, want)

    model = Refusing(vocab=10, next_token=lambda ids: 5)
    good, bad = [ask([number] * 6, most=5) for number in range(4)], ask([1, 8], most=5)
    run(schedule(model), *good[:2], bad, *good[2:])

    assert all(one.ids == (5,) * 5 for one in good)
    assert isinstance(bad.end, K2Error) if not isinstance(bad.end, type(good[0].end)) else fails_at == 0


def test_a_crashed_forward_ends_its_batch_and_nothing_else():
    """After an error that is not ours the sequences of the batch are gone; turns that come later are computed anew."""

    class Crashing(HashModel):
        crash = False

        def forward(self, batch, want=None):
            if self.crash:
                self.crash = False
                raise RuntimeError("kernel crashed")
            return super().forward(batch, want)

    model = Crashing(vocab=10)
    scheduler = schedule(model, most_running=2)
    first, second, third = (ask([number] * 6, most=5) for number in range(3))
    for one in (first, second, third):
        scheduler.add(one.turn)
    scheduler.step()
    model.crash = True
    run(scheduler)

    assert all(isinstance(one.end, RuntimeError) for one in (first, second))
    assert len(third.ids) == 5
    assert len(model.live) == 1


def test_a_turn_that_cannot_be_let_in_is_told_and_keeps_nobody_waiting():
    """What breaks while one turn is let in ends that turn alone; those that were set aside meanwhile get their place."""

    class Odd(HashModel):
        forks = 0

        def fork(self, handle, length):
            self.forks += 1
            if self.forks == 1:
                raise MemoryError("all gone")
            return super().fork(handle, length)

    model = Odd(vocab=10, fork_is_shared=True)
    turns = [ask([1] * 20 + [number], most=9) for number in range(4)]
    run(schedule(model, prefill_chunk=10), *turns)

    assert [isinstance(one.end, MemoryError) for one in turns] == [False, True, False, False]
    assert all(len(one.ids) == 9 for one in turns if not isinstance(one.end, MemoryError))


def test_turns_that_are_cancelled_while_they_wait_are_told():
    """A turn without a place that is cancelled ends with a reason: whoever still waits for it is not left waiting."""
    scheduler = schedule(HashModel(vocab=10), most_running=1)
    first, second = ask([1] * 20, most=9), ask([2] * 20, most=9)
    for one in (first, second):
        scheduler.add(one.turn)
    scheduler.step()
    second.is_cancelled = True
    run(scheduler)

    assert len(first.ids) == 9
    assert "was closed before this turn began" in str(second.end)


def test_a_grammar_that_is_still_compiled_stalls_nobody():
    """The last token of a prompt waits for its grammar, while the others go on; alone, the turn waits for it."""
    scheduler = schedule(HashModel(vocab=10))
    held, free = ask([1] * 30, most=3), ask([2] * 10, most=20)
    held.turn.grammar = Future()
    for one in (held, free):
        scheduler.add(one.turn)
    while free.end is None:
        scheduler.step()

    assert len(free.ids) == 20
    assert (held.turn.left, held.end) == (1, None)
    held.turn.grammar.set_exception(K2Error("cannot compile"))
    run(scheduler)
    assert "cannot compile" in str(held.end)


def test_accounting_adds_up():
    """A turn's times are parts of its whole, and its tokens are those that went through the model for it."""
    model = HashModel(vocab=10, fork_is_shared=True)
    turns = [ask([1] * 50 + [number], most=10, drafts=4) for number in range(4)]
    scheduler = schedule(model, most_running=2, most_guessed=4)
    run(scheduler, *turns)
    usages = [one.end.usage for one in turns]

    assert sum(one.computed_tokens for one in usages) == model.computed == scheduler.prefix.computed_tokens
    assert [one.prompt_tokens for one in usages] == [51] * 4
    assert sum(one.cached_tokens for one in usages) == 3 * 50
    for usage in usages:
        assert usage.seconds == pytest.approx(usage.queued_seconds + usage.prefill_seconds + usage.decode_seconds)
        assert 0 <= usage.model_seconds <= usage.seconds
        assert usage.accepted_tokens <= usage.drafted_tokens
    assert usages[2].queued_seconds > usages[0].queued_seconds
