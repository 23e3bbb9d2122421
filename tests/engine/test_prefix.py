"""The prefix cache: what is computed once is not computed again, and never anything wrong is reused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from k2core.engine.prefix import WORTH_KEEPING, PrefixCache, common_prefix
from k2core.interfaces import SequenceInput
from k2core.testing.loaded import HashModel


def compute(cache, prompt):
    """Begin, and forward what is left of the prompt; returns the sequence and how much was reused."""
    sequence = cache.begin(prompt)
    reused = len(sequence.ids)
    rest = prompt[reused:]
    cache.model.forward([SequenceInput(handle=sequence.handle, token_ids=rest)])
    cache.extend(sequence, rest)
    return sequence, reused


@given(st.lists(st.integers(0, 2), max_size=600), st.lists(st.integers(0, 2), max_size=600), st.integers(0, 700))
def test_common_prefix_by_definition(one, other, limit):
    """The common prefix is the longest one that both begin with, at most the limit."""
    shared = one[: len(one) // 2]
    for left, right in ((one, other), (one, shared + other), (one, one)):
        length = common_prefix(left, right, limit)

        assert left[:length] == right[:length]
        assert length <= limit
        assert length in (limit, len(left), len(right)) or left[length] != right[length]


class Conversations(RuleBasedStateMachine):
    """Prompts that grow, branch and begin anew, over a cache with tight limits."""

    def __init__(self):
        super().__init__()
        self.model = HashModel(vocab=50, bytes_per_token=10)
        self.cache = PrefixCache(model=self.model, max_sequences=3, max_bytes=8000)
        self.prompts = []

    def ask(self, prompt):
        """Compute a prompt; its sequence must hold exactly the prompt."""
        sequence, reused = compute(self.cache, prompt)

        assert self.model.ids_of(sequence.handle) == tuple(prompt) == tuple(sequence.ids)
        assert reused < len(prompt)
        self.prompts.append(prompt)
        self.current = sequence

    @rule(prompt=st.lists(st.integers(0, 49), min_size=1, max_size=300))
    def begin(self, prompt):
        """A new conversation."""
        self.ask(prompt)

    @precondition(lambda self: self.prompts)
    @rule(more=st.lists(st.integers(0, 49), min_size=1, max_size=200))
    def go_on(self, more):
        """The last conversation goes on: nothing of it is computed again."""
        before = len(self.prompts[-1])
        computed = self.model.computed
        self.ask(self.prompts[-1] + more)

        assert self.model.computed - computed <= len(more)
        assert before + len(more) == len(self.prompts[-1])

    @precondition(lambda self: self.prompts)
    @rule(data=st.data(), more=st.lists(st.integers(0, 49), min_size=1, max_size=200))
    def branch(self, data, more):
        """An earlier conversation is taken up somewhere in its middle."""
        old = data.draw(st.sampled_from(self.prompts))
        self.ask(old[: data.draw(st.integers(0, len(old)))] + more)

    @precondition(lambda self: self.prompts)
    @rule()
    def again(self):
        """The very same prompt computes one token."""
        computed = self.model.computed
        self.ask(self.prompts[-1])

        assert self.model.computed - computed == 1

    @invariant()
    def limits_hold(self):
        """Never more sequences than allowed; the model has no others; counters add up."""
        assert len(self.cache) == len(self.model.live) <= 3
        assert self.cache.computed_tokens == self.model.computed
        assert self.cache.prompt_tokens - self.cache.cached_tokens == self.model.computed


TestConversations = Conversations.TestCase


def test_two_conversations_over_one_long_beginning_both_stay():
    """Conversations that alternate over the same tools compute their own tails once each."""
    model = HashModel()
    cache = PrefixCache(model=model)
    tools, tail = [1] * 500, WORTH_KEEPING + 10
    first, second = tools + [2] * tail, tools + [3] * tail
    compute(cache, first)
    compute(cache, second)
    computed = model.computed
    for _ in range(3):
        first, second = [*first, 4], [*second, 5]
        compute(cache, first)
        compute(cache, second)

    assert computed == 500 + 2 * tail
    assert model.computed == computed + 6


def test_a_short_tail_is_given_up():
    """A sequence that would lose little is truncated, not forked."""
    model = HashModel()
    cache = PrefixCache(model=model)
    compute(cache, [1] * 400 + [2] * 20)
    _, reused = compute(cache, [1] * 400 + [3] * 20)

    assert reused == 400
    assert len(model.live) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_used_longest_ago_goes_first(count):
    """With room for *count* sequences the ones used last stay."""
    cache = PrefixCache(model=HashModel(), max_sequences=count)
    for token in (1, 2, 3):
        compute(cache, [token] * 300)
    reused = {token: compute(cache, [token] * 300)[1] for token in (3, 2)}

    assert reused[3] == 299
    assert reused[2] == (299 if count == 2 else 0)


def test_bytes_limit_frees_others_only():
    """A byte limit frees old sequences, never the one in use."""
    cache = PrefixCache(model=HashModel(bytes_per_token=100), max_bytes=50_000)
    compute(cache, [1] * 400)
    compute(cache, [2] * 900)
    compute(cache, [2] * 900 + [3])

    assert len(cache) == 1
    assert compute(cache, [2] * 900 + [3, 4])[1] == 901


def test_drop_and_clear_free_the_model():
    """Dropped and cleared sequences are gone from the model too."""
    model = HashModel()
    cache = PrefixCache(model=model)
    sequence, _ = compute(cache, [1, 2, 3])
    compute(cache, [4, 5])
    cache.drop(sequence)
    assert len(model.live) == len(cache) == 1

    cache.clear()
    assert len(model.live) == len(cache) == 0
