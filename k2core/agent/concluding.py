"""Conclude: a final answer with its evidence, or, where none came, what is known so far."""

import json
from collections.abc import AsyncIterator

from attrs import evolve

from k2core.agent import guarding, projection
from k2core.agent.budget import Reached
from k2core.agent.planning import not_attempted
from k2core.agent.prompts import CONCLUDE
from k2core.agent.resuming import since_resumed
from k2core.agent.verify import outcome
from k2core.agent.work import Work
from k2core.events import (
    AnswerGiven,
    AnswerStatus,
    BudgetReached,
    ClaimEvidence,
    Known,
    MessageAdded,
    Partial,
    RunEnded,
    RunForked,
    RunResumed,
    Stored,
)
from k2core.interfaces import Answer, Verdict

KNOWN = 10  # results that an unfinished answer tells at most
LAST_WORDS = 3  # turns in which the model may conclude once a budget is nearly used up: an answer and its revisions


async def conclude(work: Work, answer: Answer, verdict: Verdict, *, write_message: bool) -> list[Stored]:
    """The answer is final: verified, or marked with what it lacks."""
    status, reason = outcome(answer, verdict, projection.trajectory(work.events))
    evidence = _evidence(verdict)
    if work.winding is None:
        given = AnswerGiven(text=answer.text, claims=answer.claims, status=status, reason=reason, evidence=evidence)
        return await work.end(given, write_message=write_message)
    if status != "answered":  # what was found counts more than what the model makes of it in a hurry
        return await _end_with(work, _found(work, work.winding, tuple(claim.text for claim in answer.claims)))
    partial = _sorted_out(answer, evidence, not_attempted(work.events))
    given = AnswerGiven(
        text=answer.text,
        claims=answer.claims,
        status="partial",
        reason=str(work.winding),
        evidence=evidence,
        partial=partial,
    )
    return await work.end(given, write_message=write_message)


async def ask_to_conclude(work: Work, near: Reached) -> list[Stored]:
    """Tell the model that only the reserve of a budget is left, unless the log says that it was told."""
    work.winding, work.words = near, LAST_WORDS
    event = BudgetReached(which=near.which, limit=float(near.limit), used=float(near.used), near=True)
    since = since_resumed(work.events)
    at = next((place for place, one in enumerate(since) if _is_of(one.event, event)), None)
    if at is None:
        return [*await work.append(event), await work.say(CONCLUDE.format(why=near))]
    is_said = any(isinstance(one.event, MessageAdded) and one.event.role == "system" for one in since[at:])
    return [] if is_said else [await work.say(CONCLUDE.format(why=near))]


async def wind_down(work: Work, why: Reached | str) -> AsyncIterator[Stored]:
    """End without an answer of the model, with the newest results: a budget was reached, or it cannot go on."""
    if isinstance(why, Reached) and not _is_told(work, why):
        for stored in await work.append(BudgetReached(which=why.which, limit=float(why.limit), used=float(why.used))):
            yield stored
    for stored in await _end_with(work, _found(work, why)):
        yield stored


async def _end_with(work: Work, given: AnswerGiven) -> list[Stored]:
    """End with what was found; where a guard objects to that, it is withheld, since nobody is there to revise it."""
    unverified = given.partial.unverified if given.partial is not None else ()
    stored, why = await guarding.withheld(work, "\n".join([given.text, *unverified]))
    if why:
        text = f"{_first_line(given.text)} What was found is withheld: {why}."
        given = evolve(given, text=text, status="failed", partial=None)
    return [*stored, *await work.end(given, write_message=True)]


def _found(work: Work, why: Reached | str, unverified: tuple[str, ...] = ()) -> AnswerGiven:
    """The newest results as an answer."""
    found = [one for one in projection.trajectory(work.events).observations if one.ok][-KNOWN:]
    known = tuple(
        Known(text=f"{one.tool} {in_words(one.arguments)}: {_first_line(one.text)}", events=(one.event,)) for one in found
    )
    lines = [f"I stopped before an answer: {str(why).rstrip('.')}."]
    if known:
        lines += ["Known so far:", *(f"- {one.text}" for one in known)]
    status: AnswerStatus = "partial" if isinstance(why, Reached) or known else "failed"
    partial = Partial(known=known, unverified=unverified, not_attempted=not_attempted(work.events))
    text = "\n".join(lines)
    return AnswerGiven(text=text, status=status, reason=str(why), partial=partial if status == "partial" else None)


def _is_of(event: object, near: BudgetReached) -> bool:
    """Whether the model was told of that budget before."""
    return isinstance(event, BudgetReached) and event.near and (event.which, event.limit) == (near.which, near.limit)


def _sorted_out(answer: Answer, evidence: tuple[ClaimEvidence, ...], open_steps: tuple[str, ...]) -> Partial:
    """What of an answer is known, and what nothing supports."""
    supported = {one.claim: one.events for one in evidence}
    claims = list(enumerate(answer.claims))
    return Partial(
        known=tuple(Known(text=claim.text, events=supported[number]) for number, claim in claims if number in supported),
        unverified=tuple(claim.text for number, claim in claims if number not in supported),
        not_attempted=open_steps,
    )


def _is_told(work: Work, why: Reached) -> bool:
    """Whether the log's last word is that budget already, from before an interruption."""
    told = (one.event for one in reversed(work.events) if not isinstance(one.event, RunResumed | RunForked | RunEnded))
    last = next(told, None)
    return isinstance(last, BudgetReached) and last.which == why.which and not last.near


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
