"""Checking an answer: run every verifier under a deadline and gather what they found.

A verifier that fails is a visible warning and an ``unchecked`` finding; it neither blocks nor passes an answer.
"""

import re
from collections.abc import Sequence

from k2core.deadline import DeadlineExceeded, run_with_deadline
from k2core.interfaces import Answer, Claim, Finding, Trajectory, Verdict, Verifier

TIMEOUT_S = 10.0
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^a-z])|\n+")


async def check(
    answer: Answer, trajectory: Trajectory, verifiers: Sequence[Verifier], *, timeout_s: float = TIMEOUT_S
) -> tuple[Verdict, list[str]]:
    """Ask every verifier about *answer*.

    Args:
        answer: what the model wants to conclude with.
        trajectory: what it may rest on.
        verifiers: asked in order; sync ones run in a worker thread.
        timeout_s: deadline of each, in seconds.

    Returns:
        All findings as one verdict, and one line for each verifier that failed.
    """
    findings: list[Finding] = []
    warnings: list[str] = []
    for verifier in verifiers:
        try:
            verdict = await run_with_deadline(verifier.verify, timeout_s, answer, trajectory)
            if not isinstance(verdict, Verdict):
                raise TypeError(f"it returned {type(verdict).__name__}, expected Verdict")
        except (DeadlineExceeded, Exception) as error:  # a plugin's fault becomes a visible record
            line = f"verifier '{verifier.name}' failed: {' '.join(str(error).split()) or type(error).__name__}"
            warnings.append(line)
            findings.append(Finding(verifier=verifier.name, subject="", status="unchecked", hint=""))
        else:
            findings.extend(verdict.findings)
    return Verdict(findings=tuple(findings)), warnings


def answer_from_text(text: str) -> Answer:
    """An answer given as plain text, its claims cut by sentence."""
    sentences = [sentence.strip() for sentence in _SENTENCE.split(text.strip()) if sentence.strip()]
    return Answer(text=text.strip(), claims=tuple(Claim(text=sentence) for sentence in sentences))
