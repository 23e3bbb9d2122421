"""Two verifiers that are said to do the same: answers and what was observed before them are drawn, verdicts compared."""

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from k2core.agent.verify import check
from k2core.conformance.drawing import Comparison, Disagreement, compare, texts
from k2core.interfaces import Answer, Claim, Observation, Trajectory, Verdict, Verifier

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NAMES = ("Kenya", "Uganda", "Tal Bridge", "Mara Oduya", "Brasília", "Iron")
SENTENCES = (
    "The answer is {n}.", "{name} has {n} km2.", "{a} × {b} = {n}.", "{a}*{b} is {n}.", "It was opened in {n} by {name}.",
    "About {n} people live in {name}.", "{n}% of {a} is {b}.", "I cannot answer this with my tools.", "{name}.",
)  # fmt: skip


@frozen(kw_only=True)
class Episode:
    """An answer and what happened before it."""

    answer: Answer
    trajectory: Trajectory


def check_verifiers(
    first: Verifier, second: Verifier, *, count: int = 100, seed: int = 0, findings: bool = False
) -> Comparison[Episode]:
    """Ask both about the same answers, again and again, each under its deadline.

    Trajectories hold results of calculations, facts with units, passages and errors. Sentences of answers and claims use
    what is in them, what is nearly so, and what is not; claims name calls, also wrong ones.

    Args:
        first, second: two verifiers.
        count: answers.
        seed: of what is drawn.
        findings: compare every finding (claim, subject, status, events) and not only whether the answer is accepted.

    Raises:
        InputError: Hypothesis is missing.
    """

    def call(episode: Episode) -> tuple[Disagreement[Episode] | None, bool]:
        (one, failed), (other, failed_too) = (_asked(verifier, episode) for verifier in (first, second))
        if failed == failed_too and _compared(one, findings) == _compared(other, findings):
            return None, bool(failed)
        told = [why or described(verdict) for verdict, why in ((one, failed), (other, failed_too))]
        return Disagreement(given=episode, first=told[0], second=told[1]), False

    return compare(episodes, call, count=count, seed=seed)


def episodes() -> "SearchStrategy[Episode]":
    """A strategy for answers and what happened before them."""
    from hypothesis import strategies as st

    # plain plans, made into records afterwards: strategies that are made while drawing cost many times as much
    names = st.sampled_from(NAMES)
    observation = st.tuples(st.integers(0, 3), st.integers(0, 2000), st.integers(0, 99), names)
    number = st.builds(_Number, near=st.none() | st.integers(0, 5), value=st.integers(0, 200_000), off=st.integers(0, 1))
    told = st.tuples(st.sampled_from(SENTENCES), number, number, number, names, st.sampled_from(("d", ",")))
    sentence = told | texts(20)
    claim = st.tuples(sentence, st.lists(st.integers(0, 3), max_size=2))
    return st.builds(
        _episode,
        observations=st.lists(observation, max_size=3),
        question=sentence,
        sentences=st.lists(sentence, max_size=2),
        claims=st.lists(claim, max_size=2),
    )


def described(verdict: Verdict) -> str:
    """A verdict and its findings, a line each."""
    lines = [
        f"{one.status} {one.subject!r}" + (f" in claim {one.claim}" if one.claim is not None else "")
        for one in verdict.findings
    ]
    return "\n".join([verdict.render(), *lines])


@frozen(kw_only=True)
class _Number:
    """One that was observed, counted from the first, or the one after it; else any."""

    near: int | None
    value: int
    off: int

    def among(self, observed: Sequence[int]) -> int:
        """The number itself."""
        return self.value if self.near is None or not observed else observed[self.near % len(observed)] + self.off


_Sentence = tuple[str, _Number, _Number, _Number, str, str] | str


def _episode(
    observations: Sequence[tuple[int, int, int, str]],
    question: _Sentence,
    sentences: Sequence[_Sentence],
    claims: Sequence[tuple[_Sentence, Sequence[int]]],
) -> Episode:
    seen = tuple(_observation(index, *one) for index, one in enumerate(observations))
    numbers = [int(word) for one in seen for word in one.text.replace(".", " ").split() if word.isdecimal()]

    def said(one: _Sentence) -> str:
        if isinstance(one, str):
            return one
        form, n, a, b, name, style = one
        first, second, third = (number.among(numbers) for number in (n, a, b))
        return form.format(n=format(first, style), a=second, b=third, name=name)

    answer = Answer(
        text=" ".join(map(said, sentences)),
        claims=tuple(Claim(text=said(text), evidence=tuple(evidence)) for text, evidence in claims),
    )
    return Episode(answer=answer, trajectory=Trajectory(question=said(question), question_event=1, observations=seen))


def _observation(index: int, kind: int, a: int, b: int, name: str) -> Observation:
    kinds: tuple[tuple[str, dict[str, str], str], ...] = (
        ("calculator", {"expression": f"{a}*{b}"}, str(a * b)),
        ("facts", {"attribute": "area", "entity": name}, f"{a} km2 [CIA World Factbook, 2023]"),
        ("search", {"query": name}, f"[1] notes.md:{b + 1} {name}, opened in {a}."),
        ("facts", {"attribute": "area", "entity": name}, f"error: no entity '{name}'. Nearest: none"),
    )
    tool, arguments, text = kinds[kind]
    return Observation(
        event=10 + index,
        index=index,
        tool=tool,
        arguments=json.dumps(arguments, ensure_ascii=False),
        text=text,
        ok=not text.startswith("error: "),
    )


def _asked(verifier: Verifier, episode: Episode) -> tuple[Verdict, str]:
    """Its verdict, and how it failed where it did."""
    verdict, warnings = asyncio.run(check(episode.answer, episode.trajectory, [verifier]))
    return verdict, "; ".join(warnings).partition(" failed: ")[2]


def _compared(verdict: Verdict, findings: bool) -> object:
    if not findings:
        return verdict.accepted
    return {(one.claim, one.subject, one.status, one.events) for one in verdict.findings}
