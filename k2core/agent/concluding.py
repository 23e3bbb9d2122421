"""Conclude: a final answer with its evidence, or, where none came, what is known so far."""

import json
from collections.abc import AsyncIterator

from k2core.agent import projection
from k2core.agent.budget import Reached
from k2core.agent.verify import outcome
from k2core.agent.work import Work
from k2core.events import AnswerGiven, AnswerStatus, BudgetReached, ClaimEvidence, RunEnded, RunResumed, Stored
from k2core.interfaces import Answer, Verdict

KNOWN = 10  # results that an unfinished answer tells at most


async def conclude(work: Work, answer: Answer, verdict: Verdict, *, write_message: bool) -> list[Stored]:
    """The answer is final: verified, or marked with what it lacks."""
    status, reason = outcome(answer, verdict, projection.trajectory(work.events))
    given = AnswerGiven(text=answer.text, claims=answer.claims, status=status, reason=reason, evidence=_evidence(verdict))
    return await work.end(given, write_message=write_message)


async def wind_down(work: Work, why: Reached | str) -> AsyncIterator[Stored]:
    """End without an answer of the model, with the newest results: a budget was reached, or it cannot go on."""
    if isinstance(why, Reached) and not _is_told(work, why):
        for stored in await work.append(BudgetReached(which=why.which, limit=float(why.limit), used=float(why.used))):
            yield stored
    known = [one for one in projection.trajectory(work.events).observations if one.ok]
    lines = [f"I stopped before an answer: {str(why).rstrip('.')}."]
    if known:
        lines.append("Known so far:")
        lines += [f"- {one.tool} {in_words(one.arguments)}: {_first_line(one.text)}" for one in known[-KNOWN:]]
    status: AnswerStatus = "partial" if isinstance(why, Reached) or known else "failed"
    for stored in await work.end(AnswerGiven(text="\n".join(lines), status=status, reason=str(why)), write_message=True):
        yield stored


def _is_told(work: Work, why: Reached) -> bool:
    """Whether the log's last word is that budget already, from before an interruption."""
    told = (one.event for one in reversed(work.events) if not isinstance(one.event, RunResumed | RunEnded))
    last = next(told, None)
    return isinstance(last, BudgetReached) and last.which == why.which


def in_words(arguments: str) -> str:
    """A call's arguments as ``key=value``; where they are no JSON object, as of a call that was cut off, that and a glimpse."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        glimpse = " ".join(arguments.split())[:40]
        return f"(arguments that are no JSON object, {len(arguments):,} characters: {glimpse})"
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in parsed.items())


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text.strip() else ""


def _evidence(verdict: Verdict) -> tuple[ClaimEvidence, ...]:
    """For each supported claim, and first for the answer's text, the events of its findings."""
    events: dict[int | None, set[int]] = {}
    for finding in verdict.findings:
        if finding.status == "supported":
            events.setdefault(finding.claim, set()).update(finding.events)
    return tuple(
        ClaimEvidence(claim=claim, events=tuple(sorted(events[claim])))
        for claim in sorted(events, key=lambda claim: -1 if claim is None else claim)
    )
