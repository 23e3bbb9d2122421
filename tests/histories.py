"""Histories of sequences that any backend may go through, which only their ids decide."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from k2core.errors import K2Error
from k2core.interfaces import SequenceInput

BLOCK = 64  # positions
TOLERANCE = 1e-4  # of the same tokens in other pieces; another token's logits are off by about 1


def extend(model, handle, ids):
    """Append ids and give the last logits."""
    return model.forward([SequenceInput(handle=handle, token_ids=ids)]).logits[0]


def fresh(model, ids):
    """The last logits of ids in a sequence of their own."""
    handle = model.new_sequence()
    logits = extend(model, handle, ids)
    model.free(handle)
    return logits


def alike(got, expected):
    """Equal as far as the number of rows of a product can change it."""
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


class Histories(RuleBasedStateMachine):
    """Random histories of several sequences beside lists of ids; every logit must be that of a fresh sequence."""

    model = None
    same = staticmethod(alike)  # logits of the same ids

    @initialize()
    def start(self):
        """No sequences."""
        self.ids = {}

    @invariant()
    def lengths_are_told(self):
        """Lengths are those of the lists."""
        for handle, ids in self.ids.items():
            assert self.model.length(handle) == len(ids)

    @invariant()
    def memory_is_told(self):
        """Blocks are those that the lists fill, and no sequence is without room for what it holds."""
        assert self.model.used_blocks() == sum(-(-len(ids) // BLOCK) for ids in self.ids.values())
        for handle, ids in self.ids.items():
            assert self.model.bytes_of(handle) >= len(ids) * self.model.geometry.cache_values_per_token * 4

    @precondition(lambda self: len(self.ids) < 4)
    @rule()
    def new(self):
        """An empty sequence."""
        self.ids[self.model.new_sequence()] = []

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), ids=st.lists(st.integers(0, 132), min_size=1, max_size=40))
    def extend(self, data, ids):
        """Append to one and compare with a fresh sequence of the same ids."""
        handle = data.draw(st.sampled_from(sorted(self.ids)))
        self.ids[handle] += ids
        self.same(extend(self.model, handle, ids), fresh(self.model, self.ids[handle]))

    @precondition(lambda self: self.ids)
    @rule(ids=st.lists(st.integers(0, 132), min_size=1, max_size=9))
    def extend_all(self, ids):
        """Append to all in one batch; a single token each is decoding."""
        batch = [SequenceInput(handle=handle, token_ids=ids) for handle in sorted(self.ids)]
        for item, row in zip(batch, self.model.forward(batch).logits, strict=True):
            self.ids[item.handle] += ids
            self.same(row, fresh(self.model, self.ids[item.handle]))

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def truncate(self, data):
        """Cut one."""
        handle = data.draw(st.sampled_from(sorted(self.ids)))
        length = data.draw(st.integers(0, len(self.ids[handle])))
        self.model.truncate(handle, length)
        del self.ids[handle][length:]

    @precondition(lambda self: 0 < len(self.ids) < 4)
    @rule(data=st.data())
    def fork(self, data):
        """Fork one anywhere."""
        handle = data.draw(st.sampled_from(sorted(self.ids)))
        length = data.draw(st.integers(0, len(self.ids[handle])))
        self.ids[self.model.fork(handle, length)] = self.ids[handle][:length]

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def refuse(self, data):
        """A batch with one bad token among good ones is refused; that nothing changed is seen by what comes after."""
        handle = data.draw(st.sampled_from(sorted(self.ids)))
        good = [SequenceInput(handle=other, token_ids=[1]) for other in sorted(self.ids) if other != handle]
        with pytest.raises(K2Error, match="outside the vocabulary"):
            self.model.forward([*good, SequenceInput(handle=handle, token_ids=[1, self.model.geometry.vocab_size])])

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def free(self, data):
        """Drop one."""
        handle = data.draw(st.sampled_from(sorted(self.ids)))
        self.model.free(handle)
        del self.ids[handle]

    def teardown(self):
        """Nothing is left when all are freed."""
        for handle in self.ids:
            self.model.free(handle)
        assert self.model.used_blocks() == 0


def keep(model, examples=12, steps=20, kind=Histories):
    """Take a model through some histories; fails at the first logit that is not its ids'."""
    machine = type("Own", (kind,), {"model": model})
    machine.TestCase.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    machine.TestCase().runTest()
