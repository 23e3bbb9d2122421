"""How a question ends: verdicts, budgets, the answer."""

from typing import ClassVar, Literal

from attrs import frozen

from k2core.answers import Claim, Finding
from k2core.events.base import Journalled

AnswerStatus = Literal["answered", "declined", "unverified", "partial", "failed", "waiting"]


@frozen(kw_only=True)
class VerdictGiven(Journalled):
    """What the verifiers said about an answer.

    Attributes:
        attempt: which attempt at an answer, from 1.
        accepted: no finding blocks it.
        findings: all of them, with the events they rest on.
    """

    kind: ClassVar[str] = "verdict"
    attempt: int
    accepted: bool
    findings: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class BudgetReached(Journalled):
    """A budget ended the work: its name, its limit, what was used, both in the budget's own unit."""

    kind: ClassVar[str] = "budget"
    which: str
    limit: float
    used: float


@frozen(kw_only=True)
class ClaimEvidence:
    """The events that support one claim.

    Attributes:
        claim: index into the answer's claims, None for the answer's text.
        events: sequence numbers of events of this run.
    """

    claim: int | None
    events: tuple[int, ...] = ()


@frozen(kw_only=True)
class AnswerGiven(Journalled):
    """The answer of the run.

    Attributes:
        text: as the user sees it.
        claims: its statements with the calls named for them.
        status: ``answered`` (verified), ``declined`` (accepted, but it answers nothing), ``unverified``, ``partial`` (a
            budget ended the work) or ``failed``; ``waiting`` is never journalled, it stands for the answer of a run that
            waits for a decision. The first three are decided by `k2core.agent.verify.outcome`.
        reason: why it is not ``answered``; empty otherwise.
        evidence: for each supported claim the events it rests on.
    """

    kind: ClassVar[str] = "answer"
    text: str
    claims: tuple[Claim, ...] = ()
    status: AnswerStatus = "answered"
    reason: str = ""
    evidence: tuple[ClaimEvidence, ...] = ()
