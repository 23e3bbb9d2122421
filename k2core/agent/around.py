"""Around a step and a turn of the model: guards may refuse it, which ends the work with what is known, or want approval."""

from collections.abc import AsyncIterator
from typing import Literal

from k2core.agent import guarding, projection
from k2core.agent.approving import approved, decision_on, denied
from k2core.agent.concluding import wind_down
from k2core.agent.work import Work
from k2core.events import Stored

Around = Literal["step", "model"]
WORDS = {"step": "the next step", "model": "the next turn of the model"}


async def before(work: Work, about: Around) -> AsyncIterator[Stored]:
    """Ask the guards whether it may begin; where not, or where the run waits for a person, `Work.ended` afterwards."""
    if not work.guards:
        return
    said = await guarding.before(work, f"before_{about}", guarding.step_of(work))
    for stored in await work.append(*said.events):
        yield stored
    if said.refusals:
        guard, reason = said.refusals[0]
        async for stored in wind_down(work, f"guard '{guard}' refused {WORDS[about]}: {reason}"):
            yield stored
    elif said.asks:
        async for stored in _ask(work, about, said.asks):
            yield stored


async def _ask(work: Work, about: Around, asks: tuple[tuple[str, str], ...]) -> AsyncIterator[Stored]:
    index = projection.calls_made(work.events)
    if work.waits:
        async for stored in approved(work, about, index, asks):
            yield stored
    _, decision = decision_on(work.events, about, index)
    if work.ended or (decision is not None and decision.decision == "approve"):
        return
    no = "nobody is there to approve it" if decision is None else denied(decision.text)
    async for stored in wind_down(work, f"guard '{asks[0][0]}' asks about {WORDS[about]}, and {no}"):
        yield stored
