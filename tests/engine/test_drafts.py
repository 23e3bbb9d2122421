"""Guesses: what they are, and that they never change what is generated."""

import pytest
from engine.turns import ask, run, schedule
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.drafts import CANDIDATES, FIRST_LENGTH, PAUSE, WINDOW, Drafter, Text
from k2core.testing.loaded import HashModel

ids = st.lists(st.integers(0, 3), max_size=80)


def drafter(text, most=8):
    """A drafter that has seen *text*."""
    made = Drafter(most=most)
    made.begin(text)
    return made


def by_definition(text, pattern, most):
    """The longest tail of *pattern* among the newest places of its last two tokens, and what follows there."""
    places = [at for at in range(len(text) - 2) if text[at : at + 2] == pattern[-2:]][-CANDIDATES:]
    best, found = 0, []
    for at in reversed(places):
        size = max(n for n in range(2, len(pattern) + 1) if n <= at + 2 and text[at + 2 - n : at + 2] == pattern[-n:])
        if size > best:
            best, found = size, text[at + 2 : at + 2 + most]
    return best, found


@given(text=ids, more=ids, limit=st.integers(0, 10))
def test_a_guess_is_what_followed_the_longest_known_pattern(text, more, limit):
    """The guess continues the newest of the earlier places that are preceded by most of the last 4 tokens."""
    made = drafter(text)
    for token in more:
        made.add(token)
    text = text + more
    expected = by_definition(text, text[-4:], min(limit, FIRST_LENGTH))[1] if len(text) > 2 else []

    assert made.guess(limit) == expected


@given(texts=st.lists(ids, max_size=60), pattern=st.lists(st.integers(0, 3), min_size=2, max_size=4))
def test_texts_are_searched_by_definition(texts, pattern):
    """However a text has grown, it is searched as one list."""
    text, plain = Text(), []
    for piece in texts:
        if len(piece) == 1:
            text.append(piece[0])
        else:
            text.add(piece)
        plain += piece

    assert text.after(pattern, 5) == by_definition(plain[-WINDOW:], pattern, 5)
    assert text.tail(7) == plain[-7:]


@given(text=ids, forced=st.lists(st.integers(0, 3), min_size=1, max_size=12), limit=st.integers(0, 10))
def test_forced_tokens_come_first(text, forced, limit):
    """What must come next is guessed first, and the guess goes on from there."""
    guess = drafter(text).guess(limit, forced)

    assert guess[: len(forced)] == forced[: min(limit, 8)]
    assert len(guess) <= min(limit, 8)


def test_wrong_guesses_get_shorter_and_rarer():
    """After guesses that were all wrong the drafter rests for 1, 2, 4 … tokens; right ones make it long again."""
    made = drafter([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])
    assert made.guess(8) == [3, 4, 5]
    rests = []
    for _ in range(8):
        made.tried(1, 0)
        rest = 0
        while not made.guess(8):
            made.add(rest % 2 + 1)  # keeps the tail 1, 2 or 2, 1
            rest += 1
            assert rest <= 2 * PAUSE
        rests.append(rest)
    assert rests == sorted(rests)
    assert rests[-1] >= PAUSE
    made.tried(1, 1)
    made.tried(2, 2)
    assert (made.drafted, made.accepted) == (11, 3)


def test_what_other_turns_generated_is_known_too():
    """A pattern that this conversation lacks is looked up in what was generated lately; its own text comes first."""
    history = Text()
    history.add([7, 8, 9, 1, 2, 3])
    made = Drafter(most=8, history=history)
    made.begin([5, 7, 8])
    assert made.guess(8) == [9, 1, 2]
    made.begin([7, 8, 4, 4, 7, 8])
    assert made.guess(8) == [4, 4, 7]
    for _ in range(9):
        history.add([0] * (WINDOW // 2))
    assert WINDOW <= len(history) <= 4 * WINDOW


@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    repeat=st.integers(1, 4),
    most=st.integers(1, 60),
    drafts=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 5),
    kind=st.sampled_from(["copies", "random"]),
)
def test_the_same_tokens_as_without_guesses(prompt, repeat, most, drafts, temperature, seed, kind):
    """For the same seed, greedy and sampled, guesses change the number of forwards and nothing else."""
    period = len(prompt)
    copies = (lambda context: context[len(context) % period]) if kind == "copies" else None
    prompt = prompt * repeat
    plain, guessing = (HashModel(vocab=6, next_token=copies) for _ in range(2))
    expected, found = (
        ask(prompt, most=most, seed=seed, temperature=temperature, stop=(5,), drafts=count) for count in (0, drafts)
    )
    run(schedule(plain), expected)
    run(schedule(guessing, most_guessed=drafts), found)

    assert found.ids == expected.ids
    assert found.end.finish_reason == expected.end.finish_reason
    assert guessing.forwards <= plain.forwards
    assert guessing.ids_of(guessing.live[0])[: len(prompt)] == tuple(prompt)


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_copying_takes_few_forwards(temperature):
    """A model that copies a text from its prompt needs a fraction of the forwards, and computes hardly more tokens."""
    text = [number * 7 % 31 for number in range(90)]
    prompt = [*text, 40, 41, *text[:4]]
    play = lambda context: text[(len(context) - 92) % 90]  # noqa: E731
    plain, guessing = (HashModel(vocab=50, next_token=play) for _ in range(2))
    if temperature:  # sharp enough to follow, and still drawn
        temperature = 0.05
    expected, found = (ask(prompt, most=80, drafts=count, temperature=temperature) for count in (0, 8))
    run(schedule(plain), expected)
    run(schedule(guessing), found)
    usage = found.end.usage

    assert found.ids == expected.ids == tuple(text[4:84])
    assert guessing.forwards <= plain.forwards / 5
    assert usage.accepted_tokens >= 0.9 * usage.drafted_tokens
    assert usage.computed_tokens == len(prompt) + len(found.ids) - 1 + usage.drafted_tokens - usage.accepted_tokens
