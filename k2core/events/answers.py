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
    """A budget ends the work.

    Attributes:
        which: its name.
        limit: in the budget's own unit.
        used: in the same unit.
        near: all but its reserve is used; the model is told to conclude.
    """

    kind: ClassVar[str] = "budget"
    which: str
    limit: float
    used: float
    near: bool = False


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
class Known:
    """Something that is known, with the events it rests on."""

    text: str
    events: tuple[int, ...] = ()


@frozen(kw_only=True)
class Partial:
    """What came of a question whose budget was used up.

    Attributes:
        known: with evidence.
        unverified: statements that nothing supports.
        not_attempted: steps of the plan that were not begun or not finished.
    """

    known: tuple[Known, ...] = ()
    unverified: tuple[str, ...] = ()
    not_attempted: tuple[str, ...] = ()


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
        partial: where a budget ended the work, what came of it; None otherwise.
    """

    kind: ClassVar[str] = "answer"
    text: str
    claims: tuple[Claim, ...] = ()
    status: AnswerStatus = "answered"
    reason: str = ""
    evidence: tuple[ClaimEvidence, ...] = ()
    partial: Partial | None = None
