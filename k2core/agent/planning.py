"""The plan and the hypotheses as the model states them by calls: what is accepted, and where they stand.

Every statement is checked against the run before it counts: numbers of steps and calls exist, steps wait for each other
without a circle, nothing is done, supported or refuted without a call that shows it, and a plan that replaces another one says
why. What does not fit is told to the model and changes nothing.
"""

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

import msgspec

from k2core.agent.control import HypothesisArguments, PlanArguments
from k2core.errors import ToolError
from k2core.events import HypothesisStated, MessageAdded, PlanMade, PlanStep, Stored, ToolReturned
from k2core.tools import CONTROL_NAMES

MOST_STEPS = 50
SETTLED = ("done", "dropped")


def plan_of(events: Iterable[Stored]) -> PlanMade | None:
    """The plan of the last question by now, or None."""
    newest = None
    for stored in events:
        if isinstance(stored.event, MessageAdded) and stored.event.role == "user":
            newest = None
        elif isinstance(stored.event, PlanMade):
            newest = stored.event
    return newest


def hypotheses_of(events: Iterable[Stored]) -> dict[int, HypothesisStated]:
    """The hypotheses of the run by number, each as it stands by now."""
    return {one.event.number: one.event for one in events if isinstance(one.event, HypothesisStated)}


def not_attempted(events: Iterable[Stored]) -> tuple[str, ...]:
    """The steps of the plan that are neither done nor dropped."""
    plan = plan_of(events)
    return () if plan is None else tuple(step.text for step in plan.steps if step.status not in SETTLED)


def revised_plan(arguments: dict[str, object], events: Sequence[Stored]) -> PlanMade:
    """The plan that a call states.

    Raises:
        ToolError: it does not fit; the line says what is wrong with which step.
    """
    wanted = msgspec.convert(arguments, PlanArguments)
    before, returned = plan_of(events), _returned(events)
    if not 1 <= len(wanted.steps) <= MOST_STEPS:
        raise ToolError(f"a plan has 1 to {MOST_STEPS} steps, this one {len(wanted.steps)}")
    if before is not None and not wanted.reason.strip() and _is_revision(before, wanted):
        raise ToolError("there is a plan already; say in 'reason' why it is another one now")
    for number, step in enumerate(wanted.steps, start=1):
        _see_numbers(f"step {number}", "after", step.after, range(1, len(wanted.steps) + 1))
        _see_numbers(f"step {number}", "evidence", step.evidence, returned)
        if not step.text.strip():
            raise ToolError(f"step {number} has no text")
        if step.status == "done" and not step.evidence:
            raise ToolError(f"step {number} is done, but names no call in 'evidence' that shows it")
        early = [other for other in step.after if wanted.steps[other - 1].status in ("todo", "doing")]
        if step.status in ("doing", "done") and early:
            raise ToolError(f"step {number} is {step.status}, but comes after step {early[0]}, which is not done")
    try:
        TopologicalSorter({number: step.after for number, step in enumerate(wanted.steps, start=1)}).prepare()
    except CycleError as error:
        raise ToolError(f"steps wait for each other in a circle: {' after '.join(map(str, error.args[1]))}") from error
    steps = tuple(
        PlanStep(text=step.text.strip(), status=step.status, after=tuple(step.after), evidence=tuple(step.evidence))
        for step in wanted.steps
    )
    return PlanMade(steps=steps, reason=wanted.reason.strip())


def stated_hypothesis(arguments: dict[str, object], events: Sequence[Stored]) -> HypothesisStated:
    """The hypothesis that a call states.

    Raises:
        ToolError: it does not fit.
    """
    wanted = msgspec.convert(arguments, HypothesisArguments)
    known = hypotheses_of(events)
    number = len(known) + 1 if wanted.number is None else wanted.number
    if number not in known and wanted.number is not None:
        raise ToolError(f"there is no hypothesis {number}; leave 'number' out for a new one")
    text = wanted.text.strip() or (known[number].text if number in known else "")
    if not text:
        raise ToolError("a new hypothesis needs a 'text'")
    _see_numbers(f"hypothesis {number}", "evidence", wanted.evidence, _returned(events))
    if wanted.status in ("supported", "refuted") and not wanted.evidence:
        raise ToolError(f"hypothesis {number} is {wanted.status}, but names no call in 'evidence' that shows it")
    if wanted.status == "proposed" and number in known:
        raise ToolError(f"hypothesis {number} was proposed already; say what became of it")
    return HypothesisStated(
        number=number, text=text, status=wanted.status, evidence=tuple(wanted.evidence), reason=wanted.reason.strip()
    )


def _is_revision(before: PlanMade, wanted: PlanArguments) -> bool:
    """Whether more than statuses and evidence is another."""
    return [(step.text, step.after) for step in before.steps] != [
        (step.text.strip(), tuple(step.after)) for step in wanted.steps
    ]


def _returned(events: Iterable[Stored]) -> frozenset[int]:
    """Numbers of the calls that something came back from, control tools aside."""
    results = (one.event for one in events if isinstance(one.event, ToolReturned))
    return frozenset(one.index for one in results if one.name not in CONTROL_NAMES)


def _see_numbers(of: str, name: str, numbers: Sequence[int], known: Iterable[int]) -> None:
    known = set(known)
    unknown = [number for number in numbers if number not in known]
    if unknown:
        what = "step" if name == "after" else "call with a result"
        raise ToolError(f"{of} names {unknown[0]} in '{name}', but there is no such {what}")
