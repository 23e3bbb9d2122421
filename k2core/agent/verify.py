"""Checking an answer: run every verifier under a deadline and gather what they found.

A verifier that fails is a visible warning and an ``unchecked`` finding; it neither blocks nor passes an answer.
"""

import re
from collections.abc import Sequence

from k2core.deadline import run_with_deadline
from k2core.events import AnswerStatus
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
        except Exception as error:  # a plugin's fault becomes a visible record
            line = f"verifier '{verifier.name}' failed: {' '.join(str(error).split()) or type(error).__name__}"
            warnings.append(line)
            findings.append(Finding(verifier=verifier.name, subject="", status="unchecked", hint=""))
        else:
            findings.extend(verdict.findings)
    return Verdict(findings=tuple(findings)), warnings


def outcome(answer: Answer, verdict: Verdict, trajectory: Trajectory) -> tuple[AnswerStatus, str]:
    """What a final answer amounts to, and why it is not simply ``answered`` (empty where it is).

    - ``unverified``: findings still block it.
    - ``declined``: it makes no claim, and the verifiers found nothing of its text in a result (what merely repeats the
      question does not count).
    - ``answered``: anything else.

    A decline is known by its form, not by its words. Every model is told to say in `answer`, with no claims, that its tools
    cannot answer a question, so this holds for a model and a language that nobody has listed phrases of; a text with the
    right result in it stays an answer where the model was too lazy to claim it. The reply to a greeting has the same form
    and gets the same mark: nothing was answered there either. An answer in plain content is not judged so, since its claims
    are cut by the framework.
    """
    if not verdict.accepted:
        return "unverified", "; ".join(finding.hint for finding in verdict.blocking)
    found = (finding.events for finding in verdict.findings if finding.status == "supported")
    if answer.claims or any(events and trajectory.question_event not in events for events in found):
        return "answered", ""
    return "declined", "it claims nothing, and nothing in it comes from a result"


def answer_from_text(text: str) -> Answer:
    """An answer given as plain text, its claims cut by sentence."""
    sentences = [sentence.strip() for sentence in _SENTENCE.split(text.strip()) if sentence.strip()]
    return Answer(text=text.strip(), claims=tuple(Claim(text=sentence) for sentence in sentences))
