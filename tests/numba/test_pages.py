"""Pages of the latent cache: what a sequence forgot is zero before it writes next to it, whoever held the page."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from k2core_numba.pages import LANES, PageStore, Sequence

POSITIONS = 32
steps = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(0, 9), st.integers(1, 50)),
        st.tuples(st.just("fork"), st.integers(0, 9), st.floats(0, 1)),
        st.tuples(st.just("cut"), st.integers(0, 9), st.floats(0, 1)),
        st.tuples(st.just("free"), st.integers(0, 9), st.none()),
    ),
    max_size=30,
)


def row(sequence, position):
    """What is stored at a position."""
    page, place = divmod(position, POSITIONS)
    return sequence.pages[page].values[:, place // LANES, :, place % LANES]


@given(steps=steps)
def test_forgotten_positions_are_zero(steps):
    """Whatever is grown, forked, cut and freed: a sequence keeps what it wrote, and all behind it is zero when it grows."""
    store, live, number = PageStore(2, 3, POSITIONS), [(Sequence(), [])], 0
    for what, which, size in steps:
        sequence, written = live[which % len(live)]
        if what == "grow":
            store.reserve([(sequence, size)])
            for position in range(sequence.length, len(sequence.pages) * POSITIONS):
                assert not row(sequence, position).any()
            for position in range(sequence.length, sequence.length + size):
                number += 1
                row(sequence, position)[:] = number
                written.append(number)
            sequence.length += size
        elif what == "fork":
            length = int(size * len(written))
            live.append((store.fork(sequence, length), written[:length]))
        elif what == "cut":
            length = int(size * len(written))
            store.truncate(sequence, length)
            del written[length:]
        elif len(live) > 1:
            store.truncate(sequence, 0)
            live.remove((sequence, written))
        for one, expected in live:
            assert one.length == len(expected)
            assert [float(row(one, position)[0, 0]) for position in range(one.length)] == expected
    assert store.used == len({id(page) for sequence, _ in live for page in sequence.pages})
    for sequence, _ in live:
        store.truncate(sequence, 0)
    assert store.used == 0
    assert all(page.owners == 0 and np.isfinite(page.values).all() for page in store._spare)
