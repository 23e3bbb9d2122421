"""What is claimed and checked: an answer with its claims, what was observed before it, findings and the verdict.

`k2core.agent.verify` asks the verifiers.
"""

from typing import Literal, Protocol, runtime_checkable

from attrs import frozen


@frozen(kw_only=True)
class Claim:
    """One statement of an answer with the calls that support it.

    Attributes:
        text: the statement.
        evidence: call indices (the IDX of ``functions.NAME:IDX``).
    """

    text: str
    evidence: tuple[int, ...] = ()


@frozen(kw_only=True)
class Answer:
    """What the model wants to conclude with."""

    text: str
    claims: tuple[Claim, ...] = ()


@frozen(kw_only=True)
class Observation:
    """A tool result that a verifier may use as evidence.

    Attributes:
        event: sequence number of the journal's event.
        index: the call's IDX.
        tool: the tool's name.
        arguments: JSON text of the arguments.
        text: what the model saw.
        ok: whether the call succeeded.
    """

    event: int
    index: int
    tool: str
    arguments: str
    text: str
    ok: bool


@frozen(kw_only=True)
class Trajectory:
    """What happened before the answer.

    Attributes:
        question: the user's text of this turn and of earlier turns, joined.
        question_event: the journal's event of the question.
        observations: tool results in order, those of earlier turns included.
    """

    question: str
    question_event: int
    observations: tuple[Observation, ...] = ()


Status = Literal["supported", "unsupported", "refuted", "unchecked"]


@frozen(kw_only=True)
class Finding:
    """What a verifier says about one claim or one detail of the answer.

    Attributes:
        verifier: who says so.
        subject: the number, name or equation looked at.
        status: ``supported`` and ``unchecked`` do not block an answer; ``unsupported`` and ``refuted`` do.
        hint: for the model, e.g. ``number 1082 is in no result``; empty when nothing is wrong.
        events: the journal's events it rests on.
        claim: index into `Answer.claims`, None for the answer's text.
    """

    verifier: str
    subject: str
    status: Status
    hint: str = ""
    events: tuple[int, ...] = ()
    claim: int | None = None


@frozen(kw_only=True)
class Verdict:
    """All findings on an answer."""

    findings: tuple[Finding, ...] = ()

    @property
    def accepted(self) -> bool:
        """No finding blocks the answer."""
        return not self.blocking

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """Findings that block, each hint once."""
        seen: dict[str, Finding] = {}
        for finding in self.findings:
            if finding.status in ("unsupported", "refuted"):
                seen.setdefault(finding.hint, finding)
        return tuple(seen.values())

    def render(self) -> str:
        """The result of the `answer` tool as the model sees it: ``accepted`` or ``rejected: …; …``."""
        return "accepted" if self.accepted else "rejected: " + "; ".join(finding.hint for finding in self.blocking)


@runtime_checkable
class Verifier(Protocol):
    """Checks an answer against what was observed."""

    name: str

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """Findings on *answer*; sync or async. Must not call the model."""
        ...
