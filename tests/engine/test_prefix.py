"""The prefix tree: what is computed once is not computed again, and never anything wrong is reused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from k2core.engine.prefix import WORTH_KEEPING, PrefixTree, common_prefix
from k2core.interfaces import SequenceInput
from k2core.testing.loaded import HashModel


def start(tree, prompt):
    """Begin, and forward what is left of the prompt; returns the sequence, in use, and how much was reused."""
    sequence = tree.begin(prompt)
    reused = len(sequence.ids)
    rest = prompt[reused:]
    tree.model.forward([SequenceInput(handle=sequence.handle, token_ids=rest)])
    tree.extend(sequence, rest)
    return sequence, reused


def compute(tree, prompt):
    """The same, and release the sequence; returns how much was reused."""
    sequence, reused = start(tree, prompt)
    tree.release(sequence)
    tree.make_room(0)
    return reused


def blocks(tokens):
    """Blocks of the stand-in model."""
    return -(-tokens // 16)


@given(st.lists(st.integers(0, 2), max_size=600), st.lists(st.integers(0, 2), max_size=600), st.integers(0, 700))
def test_common_prefix_by_definition(one, other, limit):
    """The common prefix is the longest one that both begin with, at most the limit."""
    shared = one[: len(one) // 2]
    for left, right in ((one, other), (one, shared + other), (one, one)):
        length = common_prefix(left, right, limit)

        assert left[:length] == right[:length]
        assert common_prefix(left, [7, *right], limit, 1) == length
        assert length <= limit
        assert length in (limit, len(left), len(right)) or left[length] != right[length]


class Conversations(RuleBasedStateMachine):
    """Prompts that grow, branch and begin anew, some of them at once, over a tree with a tight limit."""

    shared = False

    def __init__(self):
        super().__init__()
        self.model = HashModel(vocab=50, fork_is_shared=self.shared)
        self.tree = PrefixTree(model=self.model, most_blocks=70)
        self.prompts = []
        self.running = []

    def ask(self, prompt, *, keep=False):
        """Compute a prompt; its sequence must hold exactly the prompt, and share all that any sequence holds of it."""
        held = [self.model.ids_of(one.handle)[: one._node.end] for one in self.tree.live]
        known = max((common_prefix(list(one), prompt, len(prompt) - 1) for one in held), default=0)
        sequence, reused = start(self.tree, prompt)

        assert self.model.ids_of(sequence.handle) == tuple(prompt) == tuple(sequence.ids)
        assert reused == known < len(prompt)
        self.prompts.append(prompt)
        if keep:
            self.running.append((sequence, prompt))
        else:
            self.tree.release(sequence)
            self.tree.make_room(0)

    @rule(prompt=st.lists(st.integers(0, 49), min_size=1, max_size=300), keep=st.booleans())
    def begin(self, prompt, keep):
        """A new conversation."""
        self.ask(prompt, keep=keep and len(self.running) < 2)

    @precondition(lambda self: self.prompts)
    @rule(data=st.data(), more=st.lists(st.integers(0, 49), min_size=1, max_size=200), keep=st.booleans())
    def branch(self, data, more, keep):
        """An earlier conversation is taken up somewhere in its middle, or goes on."""
        old = data.draw(st.sampled_from(self.prompts))
        cut = data.draw(st.one_of(st.just(len(old)), st.integers(0, len(old))))
        self.ask(old[:cut] + more, keep=keep and len(self.running) < 2)

    @precondition(lambda self: self.prompts)
    @rule()
    def again(self):
        """The very same prompt computes one token, if its sequence is still there."""
        self.ask(self.prompts[-1])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), token=st.integers(0, 49))
    def generate(self, data, token):
        """A running turn adds a token; nobody else's sequence changes."""
        place = data.draw(st.integers(0, len(self.running) - 1))
        sequence, ids = self.running[place]
        self.model.forward([SequenceInput(handle=sequence.handle, token_ids=[token])])
        self.tree.extend(sequence, [token])
        self.running[place] = (sequence, [*ids, token])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), forget=st.booleans())
    def end(self, data, forget):
        """A running turn ends, or its sequence is lost."""
        sequence, ids = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if forget:
            self.tree.drop(sequence)
        else:
            self.prompts.append(ids)
            self.tree.release(sequence)
            self.tree.make_room(0)

    @invariant()
    def sequences_are_what_the_tree_says(self):
        """The tree holds the model's sequences and no others, each with the ids that the model has."""
        live = self.tree.live
        assert {one.handle for one in live} == set(self.model.live)
        for one in live:
            assert self.model.ids_of(one.handle) == tuple(one.ids)
        for sequence, ids in self.running:
            assert sequence in live
            assert sequence.in_use
            assert sequence.ids == ids

    @invariant()
    def nodes_spell_their_members(self):
        """From the root down, a path is a beginning of every member of its last node, and no node is without members."""
        todo = [(self.tree._root, [])]
        seen = set()
        while todo:
            node, before = todo.pop()
            path = before + node.ids
            assert node.end == len(path)
            for member in node.members:
                assert member.ids[: len(path)] == path
                if member._node is node:
                    assert member.ids == path or member.in_use
                    seen.add(member)
            for first, child in node.children.items():
                assert child.parent is node
                assert child.ids[0] == first
                assert child.members
                assert child.members <= node.members
                todo.append((child, path))
        assert seen == set(self.tree.live)

    @invariant()
    def limit_holds(self):
        """Idle sequences never keep the cache above its limit; counters add up."""
        if any(not one.in_use for one in self.tree.live):
            assert self.model.used_blocks() <= 70 + sum(blocks(len(ids)) for _, ids in self.running)
        generated = self.model.computed - (self.tree.prompt_tokens - self.tree.cached_tokens)
        assert generated >= 0
        assert self.tree.computed_tokens == self.model.computed


class SharedConversations(Conversations):
    """The same over a backend whose forks share memory."""

    shared = True


TestConversations = Conversations.TestCase
TestSharedConversations = SharedConversations.TestCase


@pytest.mark.parametrize("shared", [False, True])
def test_two_conversations_over_one_long_beginning_both_stay(shared):
    """Conversations that alternate over the same tools compute their own tails once each."""
    model = HashModel(fork_is_shared=shared)
    tree = PrefixTree(model=model)
    tools, tail = [1] * 500, WORTH_KEEPING + 10
    first, second = tools + [2] * tail, tools + [3] * tail
    compute(tree, first)
    compute(tree, second)
    computed = model.computed
    for _ in range(3):
        first, second = [*first, 4], [*second, 5]
        compute(tree, first)
        compute(tree, second)

    assert computed == 500 + 2 * tail
    assert model.computed == computed + 6
    assert len(tree) == 2


@pytest.mark.parametrize(("shared", "sequences"), [(False, 1), (True, 2)])
def test_a_short_tail_is_given_up_only_where_forks_are_copies(shared, sequences):
    """An idle sequence that would lose little is truncated where a fork would copy it; else it stays, and a fork goes on."""
    model = HashModel(fork_is_shared=shared)
    tree = PrefixTree(model=model)
    compute(tree, [1] * 400 + [2] * 20)

    assert compute(tree, [1] * 400 + [3] * 20) == 400
    assert len(model.live) == sequences


def test_paths_share_everything_up_to_where_they_part():
    """Eight paths that run at once over one prompt compute it once, and each its own tokens and the prompt's last one."""
    model = HashModel(fork_is_shared=True)
    tree = PrefixTree(model=model)
    prompt = list(range(40)) * 8
    for path in range(8):
        sequence, reused = start(tree, prompt)
        assert reused == (len(prompt) - 1 if path else 0)
        model.forward([SequenceInput(handle=sequence.handle, token_ids=[path] * 10)])
        tree.extend(sequence, [path] * 10)

    assert model.computed == len(prompt) + 7 + 8 * 10


@pytest.mark.parametrize("count", [1, 2])
def test_used_longest_ago_goes_first(count):
    """With room for *count* sequences the ones used last stay."""
    tree = PrefixTree(model=HashModel(), most_blocks=count * blocks(300))
    for token in (1, 2, 3):
        compute(tree, [token] * 300)
    reused = {token: compute(tree, [token] * 300) for token in (3, 2)}

    assert reused[3] == 299
    assert reused[2] == (299 if count == 2 else 0)


def test_sequences_in_use_are_never_freed():
    """Making room frees idle sequences only, and says when that is not enough."""
    model = HashModel()
    tree = PrefixTree(model=model, most_blocks=blocks(400) + blocks(300))
    compute(tree, [1] * 300)
    sequence, _ = start(tree, [2] * 400)

    assert tree.make_room(blocks(300))
    assert model.live == (sequence.handle,)
    assert not tree.make_room(blocks(300) + 1)
    assert sequence in tree.live


def test_given_up_leaves_no_trace():
    """A begin that is undone changes no counter, and frees what it made."""
    tree = PrefixTree(model=HashModel())
    compute(tree, [1] * 50)
    before = (tree.prompt_tokens, tree.cached_tokens)
    for prompt in ([1] * 50 + [2], [3, 4]):
        tree.give_up(tree.begin(prompt), prompt)

        assert (tree.prompt_tokens, tree.cached_tokens) == before
        assert len(tree) == len(tree.model.live) == 1
        assert not tree.live[0].in_use


def test_drop_and_clear_free_the_model():
    """Dropped and cleared sequences are gone from the model too."""
    model = HashModel()
    tree = PrefixTree(model=model)
    sequence, _ = start(tree, [1, 2, 3])
    compute(tree, [4, 5])
    tree.drop(sequence)
    assert len(model.live) == len(tree) == 1

    tree.clear()
    assert len(model.live) == len(tree) == 0
