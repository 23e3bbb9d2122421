"""The plan and the hypotheses of a run, as data: each event holds the whole state from there on."""

from typing import ClassVar, Literal

from attrs import frozen

from k2core.events.base import Journalled

StepStatus = Literal["todo", "doing", "done", "failed", "dropped"]
HypothesisStatus = Literal["proposed", "testing", "supported", "refuted", "dropped"]


@frozen(kw_only=True)
class PlanStep:
    """One step of a plan; its number is its place in the plan, from 1.

    Attributes:
        text: what is to be done.
        status: ``done`` has evidence; ``failed`` and ``dropped`` are not tried again.
        after: numbers of the steps that come before.
        evidence: numbers of the calls that show how it went.
    """

    text: str
    status: StepStatus = "todo"
    after: tuple[int, ...] = ()
    evidence: tuple[int, ...] = ()


@frozen(kw_only=True)
class PlanMade(Journalled):
    """The plan from here on.

    Attributes:
        steps: all of them.
        reason: why it is another one than before; empty for the first.
    """

    kind: ClassVar[str] = "plan.made"  # an earlier k2core stored something else as plan
    steps: tuple[PlanStep, ...]
    reason: str = ""


@frozen(kw_only=True)
class HypothesisStated(Journalled):
    """A hypothesis was proposed, or something became of it.

    Attributes:
        number: from 1, the same for all events about it.
        text: what is supposed.
        status: ``supported`` and ``refuted`` have evidence.
        evidence: numbers of the calls that speak for or against it.
        reason: why its status is this one; empty when it is proposed.
    """

    kind: ClassVar[str] = "hypothesis"
    number: int
    text: str
    status: HypothesisStatus
    evidence: tuple[int, ...] = ()
    reason: str = ""
