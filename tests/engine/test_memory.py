"""The memory plan: what fits, what is refused, and with which numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.memory import LEAST, MemoryPlan
from k2core.errors import CapacityError
from k2core.interfaces import CacheMemory

MB = 10**6


def memory(bytes_per_token=70_272, block=64, free=None):
    """Cache memory of a model; by default of K2's size: 61 layers of 576 bfloat16 values."""
    return CacheMemory(bytes_per_token=bytes_per_token, block_tokens=block, free_bytes=free)


@given(
    per_token=st.integers(1, 10**6),
    block=st.integers(1, 512),
    context=st.integers(1, 262_144),
    free=st.none() | st.integers(0, 10**13),
    limit=st.none() | st.integers(0, 10**13),
)
def test_a_plan_holds_one_whole_sequence_or_is_refused(per_token, block, context, free, limit):
    """Every plan holds a sequence of full length within its limit and within what is free; else it is refused."""
    try:
        plan = MemoryPlan.of(memory(per_token, block, free), context, limit)
    except CapacityError:
        need = -(-context // block) * block * per_token
        usable = [one for one in (limit, None if free is None else int(free * 0.8)) if one is not None]
        assert (limit is not None and free is not None and limit > free) or need > min(usable)
    else:
        assert plan.blocks * block >= context
        assert plan.describe()["full_sequences"] >= 1
        assert free is None or plan.blocks * block * per_token <= free
        assert limit is None or plan.blocks * block * per_token <= limit


def test_without_a_limit_a_small_model_stays_small():
    """The default is 256 MiB, or two full sequences where these need more, and never more than 80 % of what is free."""
    small, large = memory(2048, free=20 * 10**9), memory(free=100 * 10**9)

    assert MemoryPlan.of(small, 2048).blocks == LEAST // (2048 * 64)
    assert MemoryPlan.of(large, 262_144).describe()["full_sequences"] == 2
    assert MemoryPlan.of(memory(free=30 * 10**9), 262_144).describe()["full_sequences"] == 1


@pytest.mark.parametrize(
    ("free", "limit", "said"),
    [
        (
            10**10,
            None,
            "context of 262144 tokens: its cache takes 18,421 MB (70272 bytes per token), but 8,000 MB are free for it",
        ),
        (None, 500 * MB, "but the limit is 500 MB. Use a context of at most 7104 tokens, or allow more cache memory."),
        (50 * MB, 500 * MB, "cannot plan 500 MB of cache memory: 50.0 MB are free. Give a smaller limit."),
    ],
)
def test_a_refusal_says_all_sizes(free, limit, said):
    """What cannot fit is refused when the engine starts, in one line with the numbers and a way out."""
    with pytest.raises(CapacityError) as refused:
        MemoryPlan.of(memory(free=free), 262_144, limit)

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(1, 100))
def test_need_counts_blocks_beyond_whole_held_ones(tokens, held, block):
    """What a turn needs beside whole blocks that it shares, its own copy of a block begun by another included."""
    plan = MemoryPlan(context=1, block_tokens=block, block_bytes=1, blocks=1)
    held = min(held, tokens)

    assert plan.need(tokens, held=held) == -(-tokens // block) - held // block
