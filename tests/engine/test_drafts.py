"""Guesses: what they are, and that they never change what is generated."""

import pytest
from engine.turns import ask, run, schedule
from hypothesis import given
from hypothesis import strategies as st

from k2core.engine.drafts import AGREED, KNOWN, LEAST_CHANCE, ORDERS, Drafter, Followers
from k2core.engine.step_cost import StepCost
from k2core.testing.loaded import HashModel

ids = st.lists(st.integers(0, 3), max_size=80)


def by_definition(texts, text, order):
    """What followed the last *order* ids of *text* the last time in *texts*, read one after the other."""
    found = [
        known[place]
        for known in texts
        for place in range(order, len(known))
        if order <= len(text) and known[place - order : place] == text[-order:]
    ]
    return found[-1] if found else None


def guesses(followers, text, count):
    """What may follow a text, whatever its chance."""
    grown = list(text)
    followers.after(grown, count, 0.0)
    return grown[len(text) :]


@given(texts=st.lists(ids, max_size=4), text=ids, cut=st.integers(0, 80))
def test_a_guess_is_what_followed_the_longest_known_context(texts, text, cut):
    """However a text was read, in one piece or two, a guess is what followed the last time, and so on from there."""
    followers = Followers()
    for known in texts:
        followers.learn(known[:cut], 0)
        followers.learn(known, min(cut, len(known)))

    expected = list(text)
    for _ in range(5):
        follower = next((found for order in ORDERS if (found := by_definition(texts, expected, order)) is not None), None)
        if follower is None:
            break
        expected.append(follower)
    assert guesses(followers, text, 5) == expected[len(text) :]


def test_guesses_that_fail_are_given_up_and_come_back():
    """The chance of a kind of guess follows what became of such guesses; unlikely ones are not proposed any more."""
    made = Drafter(most=4)
    made.followers.learn([1, 2, 3] * 5, 0)
    made.begin([1, 2, 3, 1, 2])
    first, chances = made.propose(4, 0.0)
    assert first == [3, 1, 2, 3]
    assert chances == sorted(chances, reverse=True)
    for _ in range(40):
        made.tried(len(made.propose(4, 0.0)[0]), 0)
    assert made.propose(4, 0.0) == ([], [])
    for kind in range(len(ORDERS) * AGREED):
        for _ in range(200):
            made.followers.tried(kind, is_right=True)
    assert made.propose(4, 0.9)[0] == [3, 1, 2, 3]
    assert made.accepted == 0 < made.drafted


@given(start=ids, forced=st.lists(st.integers(0, 3), max_size=12), limit=st.integers(0, 10))
def test_forced_tokens_come_first(start, forced, limit):
    """What must come next is guessed first and is certain; the guess goes on from there."""
    made = Drafter(most=8)
    made.followers.learn([0, 1, 2, 3] * 9, 0)
    made.begin(start)
    guess, chances = made.propose(limit, 0.0, forced)
    first = min(len(forced), limit, 8)

    assert guess[:first] == forced[:first]
    assert chances[:first] == [1.0] * first
    assert len(guess) == len(chances) <= min(limit, 8)
    assert all(LEAST_CHANCE <= chance <= 1.0 for chance in chances)


def test_what_other_turns_read_and_wrote_is_known_too():
    """A context is known from any turn's prompt or answer, its last follower counts, and the memory is bounded."""
    followers = Followers()
    reading, writing = (Drafter(most=8, followers=followers) for _ in range(2))
    prompt = [7, 8, 9, 1, 2, 3]
    reading.read(prompt, 0, 4)
    reading.read(prompt, 4, 6)
    writing.begin([5, 7, 8])
    assert writing.propose(8, 0.0)[0][:4] == [9, 1, 2, 3]
    for token in (4, 4, 7, 8):
        writing.add(token)
    assert writing.propose(8, 0.0)[0][:3] == [4, 4, 7]
    for number in range(6):
        followers.learn(range(number * KNOWN, (number + 1) * KNOWN), 0)
    assert len(followers._young) + len(followers._old) <= (2 * len(ORDERS) + 2) * KNOWN


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


def test_guesses_that_do_not_pay_are_not_tried():
    """Where a token more costs a step as much as a step of its own, nothing is guessed."""

    class Linear(StepCost):
        """As much for every token."""

        def of(self, tokens):
            return float(tokens)

    text = [number * 7 % 31 for number in range(90)]
    asked = ask([*text, 40, 41, *text[:4]], most=40, drafts=8)
    model = HashModel(vocab=50, next_token=lambda context: text[(len(context) - 92) % 90])
    run(schedule(model, cost=Linear()), asked)

    assert asked.end.usage.drafted_tokens == 0
    assert asked.ids == tuple(text[4:44])
