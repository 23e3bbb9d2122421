"""The embedded model says the same on every backend: greedy transcripts of held-out questions, token by token."""

import asyncio
import random

import pytest

from k2core.agent.session import Choice, Session
from k2core.conformance.subjects import Missing, discovered
from k2core.events import Stored, ToolReturned, TurnEnded
from k2core_nano import WEIGHTS
from k2core_nano.evaluation import GROUPS
from k2core_nano.train.documents import question as draw

QUESTIONS, AT_ONCE = 50, 8
REFERENCE = "numba"
pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)


def held_out():
    """Questions that training never drew: unseen combinations and unseen phrasings, in turn."""
    families = [family for group in ("arithmetic", "fact", "facts-combined") for family in GROUPS[group]]
    for number in range(QUESTIONS):
        rng = random.Random(f"transcripts {number}")
        yield draw(rng, rng.choice(families), 1 + number % 2).text


async def transcript(session, question):
    """Every token of every turn, and every result."""
    found = []
    async for item in session.agent.stream(question):
        if isinstance(item, Stored) and isinstance(item.event, TurnEnded):
            found.append(item.event.token_ids)
        elif isinstance(item, Stored) and isinstance(item.event, ToolReturned):
            found.append(item.event.text)
    return found


def transcripts(backend, device, tmp_path):
    """Transcripts of all questions, several at once."""

    async def every(session):
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(question):
            async with gate:
                return await transcript(session, question)

        return await asyncio.gather(*(one(question) for question in held_out()))

    choice = Choice(backend=backend, device=device, temperature=0.0, store=tmp_path / f"{backend}-{device}.sqlite")
    with Session.open(choice) as session:
        return asyncio.run(every(session))


_expected = []

OTHERS = [
    pytest.param(one, id=one.name if isinstance(one, Missing) else f"{one.name}-{one.device}")
    for one in discovered()
    if isinstance(one, Missing) or (one.numerics == "exact" and (one.name, one.device) != (REFERENCE, "cpu"))
]


@pytest.mark.parametrize("other", OTHERS)
def test_greedy_transcripts_are_the_same(other, tmp_path, capsys):
    """Fifty held-out questions, with thinking, calls, results and answers, are the same tokens as on the reference."""
    if isinstance(other, Missing):
        pytest.skip(f"{other.name}: {other.reason}")
    if not _expected:
        _expected.extend(transcripts(REFERENCE, "cpu", tmp_path))
    found = transcripts(other.name, other.device, tmp_path)
    same = sum(one == expected for one, expected in zip(found, _expected, strict=True))
    tokens = sum(len(turn) for one in _expected for turn in one if isinstance(turn, tuple))
    with capsys.disabled():
        print(f"\n  {other.name} and {REFERENCE}: {same} of {QUESTIONS} greedy transcripts the same, {tokens} tokens", end="")
    assert same == QUESTIONS
