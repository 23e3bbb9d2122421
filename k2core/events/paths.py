"""Several trajectories for one question: each is a run of its own, and the run of the question says what came of them."""

from collections.abc import Mapping
from typing import ClassVar

from attrs import field, frozen

from k2core.answers import Claim
from k2core.events.answers import ClaimEvidence
from k2core.events.base import Journalled


@frozen(kw_only=True)
class PathStarted(Journalled):
    """A trajectory begins; durable before its run has anything.

    Attributes:
        path: its number, from 0; part of the sampler's counter.
        run: id of its run.
        limits: its share of the budget by name; None is no limit.
        temperature: of its sampler.
    """

    kind: ClassVar[str] = "path.started"
    path: int
    run: str
    limits: Mapping[str, float | None] = field(factory=dict)
    temperature: float = 0.0


@frozen(kw_only=True)
class PathEnded(Journalled):
    """What came of a trajectory.

    Attributes:
        path: its number.
        run: id of its run.
        status: the answer's, or why there is none, as `RunEnded.status`; ``stopped`` where enough others agreed before.
        text: its answer; empty where there is none.
        claims: of the answer.
        evidence: events of that run which support them.
        key: what its answer comes down to; answers with the same key agree.
        calls, tokens: used.
    """

    kind: ClassVar[str] = "path.ended"
    path: int
    run: str
    status: str
    text: str = ""
    claims: tuple[Claim, ...] = ()
    evidence: tuple[ClaimEvidence, ...] = ()
    key: str = ""
    calls: int = 0
    tokens: int = 0


@frozen(kw_only=True)
class PathChosen(Journalled):
    """Which trajectory's answer is given, and why.

    Attributes:
        path: its number.
        agreeing: numbers of the others whose answers agree with it.
        why: ``evidence``, ``agreement``, ``judge`` or ``order``: what decided between the best.
    """

    kind: ClassVar[str] = "path.chosen"
    path: int
    agreeing: tuple[int, ...] = ()
    why: str = ""
