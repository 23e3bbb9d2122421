"""A run's calls beside those of the perfect policy on the same results."""

import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from k2core.events import Stored, ToolIntent, ToolReturned
from k2core_nano.train.oracle import Returned, Step
from k2core_nano.train.questions import Question

NOT_RUN = "error: not run"  # how the loop's result of such a call begins


@frozen(kw_only=True)
class Compared:
    """How a run's calls compare with the oracle's on the same results."""

    calls: int = 0
    exact: int = 0
    wrong_results: int = 0
    detected: int = 0
    good_results: int = 0
    false_alarms: int = 0


def compare(question: Question, events: Sequence[Stored]) -> Compared:
    """Walk the oracle along the run's calls and results, up to the first call that differs; nothing where there is none."""
    if question.policy is None:
        return Compared()
    intents = [stored.event for stored in events if isinstance(stored.event, ToolIntent)]
    results = {stored.event.index: stored.event.text for stored in events if isinstance(stored.event, ToolReturned)}
    calls = exact = wrong = detected = good = alarms = 0
    policy = question.policy()
    step, final = _advance(policy, None)
    for intent in intents:
        if results.get(intent.index, NOT_RUN).startswith(NOT_RUN):
            break  # the world said nothing
        calls += 1
        again = step.think.startswith("Got ") and "# differ. Wrong" in step.think
        went_on = final and step.tool == "answer" and step.think.endswith("Right.")
        try:
            arguments = json.loads(intent.arguments)
        except ValueError:
            arguments = None
        same = intent.name == step.tool and arguments == step.arguments
        wrong += again
        detected += again and same
        good += went_on
        alarms += went_on and intent.name in ("calculator", "units")
        if not same:
            break
        exact += 1
        if final:
            break
        step, final = _advance(policy, Returned(intent.index, results.get(intent.index, "")))
    return Compared(calls=calls, exact=exact, wrong_results=wrong, detected=detected, good_results=good, false_alarms=alarms)


def _advance(policy: Any, returned: Returned | None) -> tuple[Step, bool]:
    """The oracle's next step, and whether it is its last."""
    try:
        return (next(policy) if returned is None else policy.send(returned)), False
    except StopIteration as stopped:
        return stopped.value, True
