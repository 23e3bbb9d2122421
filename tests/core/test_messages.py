"""The streamed parts of a turn."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from k2core.messages import ArgumentsDelta, CallStarted, ContentDelta, Delta, ReasoningDelta, joined

texts = st.text(max_size=3)
streams = st.lists(
    st.one_of(
        st.builds(ReasoningDelta, text=texts),
        st.builds(ContentDelta, text=texts),
        st.builds(ArgumentsDelta, index=st.integers(0, 1), text=texts),
        st.builds(CallStarted, index=st.integers(0, 1), id=st.just("i"), name=st.just("n")),
    ),
    max_size=12,
)


def characters(stream: Sequence[Delta]) -> list[Any]:
    """The stream as single characters with their kind, and call starts."""
    out: list[Any] = []
    for one in stream:
        if isinstance(one, CallStarted):
            out.append(one)
        else:
            out += [(type(one), getattr(one, "index", None), character) for character in one.text]
    return out


@given(streams)
@example([ArgumentsDelta(index=0, text="1"), ArgumentsDelta(index=1, text="2"), ArgumentsDelta(index=1, text="3")])
def test_joined_deltas_say_the_same(stream: list[Delta]) -> None:
    """Joining neighbours changes no character and leaves no two neighbours of a kind and a call."""
    out = joined(stream)

    assert characters(out) == characters(stream)
    kinds = [(type(one), getattr(one, "index", None)) for one in out]
    assert all(left != right or left[0] is CallStarted for left, right in pairwise(kinds))
