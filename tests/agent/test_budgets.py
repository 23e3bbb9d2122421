"""Budgets: never exceeded by more than what is in flight, always with room to conclude, changed while a run works."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core import tool
from k2core.agent.budget import EFFORTS, NAMES, Budget, Limits, reserve_of
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult
from k2core.errors import UsageError
from k2core.events import BudgetReached, LimitsChanged, MessageAdded, Stored, ToolReturned, TurnEnded
from k2core.interfaces import Answer, Finding, Prices, Trajectory, Verdict
from k2core.messages import Message, ToolCall, Usage
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry


@tool(effect="read")
def look(place: int) -> str:
    """Look somewhere."""
    return f"found {place}"


class Known:
    """Supports a claim whose text is a result; anything else is refuted."""

    name = "known"

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """Compare each claim with all results."""
        found = {one.text: one.event for one in trajectory.observations}
        return Verdict(
            findings=tuple(
                Finding(verifier=self.name, subject=claim.text, status="supported", events=(found[claim.text],), claim=number)
                if claim.text in found
                else Finding(verifier=self.name, subject=claim.text, status="unchecked", hint="", claim=number)
                for number, claim in enumerate(answer.claims)
            )
        )


def wanderer(thoughts: int, calls: int, *, obedient: bool) -> Callable[[Sequence[Message]], Message]:
    """A model that looks and looks; an *obedient* one answers once it is told to conclude."""

    def say(messages: Sequence[Message]) -> Message:
        called = sum(len(one.tool_calls) for one in messages)
        if obedient and any(one.name == "framework" for one in messages):
            claims = [{"evidence": [0], "text": "found 0"}, {"evidence": [], "text": "found nothing else"}]
            wanted = [("answer", {"claims": claims, "text": "I found 0."})]
        else:
            wanted = [("look", {"place": called + index}) for index in range(calls)]
        return Message(
            role="assistant",
            reasoning=" ".join(["so"] * thoughts),
            tool_calls=tuple(
                ToolCall(id=f"functions.{name}:{called + place}", name=name, arguments=json.dumps(arguments))
                for place, (name, arguments) in enumerate(wanted)
            ),
        )

    return say


def worked(limits: Limits, turn: Any, path: Path, prices: Prices | None = None) -> tuple[RunResult, list[Stored]]:
    """The end of a question under *limits*, and all events."""
    with Journal.open(path) as journal:
        agent = Agent(
            model=ScriptedModel([turn] * 400),
            tools=Registry.of([*control_tools(), look]),
            verifiers=[Known()],
            journal=journal,
            limits=limits,
            prices=prices or Prices(),
        )
        result = agent.run("What is there?")
        return result, journal.events(result.run)


@settings(deadline=None, max_examples=40)
@given(
    limits=st.builds(
        Limits,
        calls=st.integers(1, 12),
        tokens=st.none() | st.integers(20, 400),
        reasoning_tokens=st.none() | st.integers(8, 200),
        cost=st.none() | st.floats(1e-4, 1e-2),
    ),
    thoughts=st.integers(0, 12),
    calls=st.integers(1, 4),
    obedient=st.booleans(),
)
def test_no_budget_is_exceeded_by_more_than_what_is_in_flight(
    limits: Limits, thoughts: int, calls: int, obedient: bool
) -> None:
    """Whatever the limits and the model: calls and tokens stay within them, and the run ends as a typed partial answer."""
    prices = Prices(prompt=1.0, cached=0.1, generated=5.0)
    with tempfile.TemporaryDirectory() as folder:
        result, events = worked(limits, wanderer(thoughts, calls, obedient=obedient), Path(folder) / "r.sqlite", prices)
    turns = [one.event.usage for one in events if isinstance(one.event, TurnEnded)]
    looked = [one.event for one in events if isinstance(one.event, ToolReturned) and one.event.ok and one.event.name == "look"]

    assert result.calls <= limits.calls
    assert len(looked) <= limits.calls - reserve_of("calls", limits.calls)
    if limits.tokens is not None:
        assert sum(one.completion_tokens for one in turns) <= limits.tokens
    if limits.reasoning_tokens is not None:
        assert sum(one.reasoning_tokens for one in turns) <= limits.reasoning_tokens
    if limits.cost is not None:  # the newest turn's prompt was in flight
        assert sum(map(prices.of, turns)) <= limits.cost + turns[-1].prompt_tokens * 1e-6 + 5e-6
    if result.status == "partial":
        assert result.answer.partial is not None
        assert any(isinstance(one.event, BudgetReached) for one in events)
    else:
        assert result.status in ("answered", "failed")


def test_a_model_that_concludes_gives_a_typed_partial_answer(tmp_path: Path) -> None:
    """What is known has its evidence, what nothing supports is named, and the status says that a budget ended it."""
    result, events = worked(Limits(calls=5), wanderer(2, 1, obedient=True), tmp_path / "r.sqlite")

    partial = result.answer.partial
    assert (result.status, result.calls, result.answer.text) == ("partial", 5, "I found 0.")
    assert partial is not None and [one.text for one in partial.known] == ["found 0"]
    assert partial.unverified == ("found nothing else",)
    (evidence,) = [one for one in events if one.sequence in partial.known[0].events]
    assert isinstance(evidence.event, ToolReturned) and evidence.event.text == "found 0"
    (told,) = [one.event for one in events if isinstance(one.event, MessageAdded) and one.event.name == "framework"]
    assert "the budget of 5 calls is nearly used up. Call `answer` now" in told.content


def test_when_only_the_reserve_is_left_the_model_may_only_answer(tmp_path: Path) -> None:
    """The request for the last turn allows `answer` alone, and the reserve of thinking."""
    with Journal.open(tmp_path / "r.sqlite") as journal:
        model = ScriptedModel([wanderer(20, 1, obedient=True)] * 20)
        tools = Registry.of([*control_tools(), look])
        agent = Agent(model=model, tools=tools, verifiers=[Known()], journal=journal, limits=Limits(reasoning_tokens=80))
        agent.run("What is there?")

    choices = [(one.options.tool_choice, one.options.max_reasoning_tokens) for one in model.requests]
    assert choices == [("auto", 70), ("auto", 50), ("auto", 30), ("auto", 10), ("answer", 10)]


def test_limits_are_raised_while_the_run_works(tmp_path: Path) -> None:
    """Another process asks for more; it counts from the next step on, and the run says so."""
    path = tmp_path / "r.sqlite"

    async def raised() -> tuple[int, list[Any]]:
        with Journal.open(path) as journal, Journal.open(path) as elsewhere:
            model = ScriptedModel([wanderer(1, 1, obedient=True)] * 40)
            tools = Registry.of([*control_tools(), look])
            agent = Agent(model=model, tools=tools, verifiers=[Known()], journal=journal, limits=Limits(calls=5))
            run, seen = "", []
            async for item in agent.stream("What is there?"):
                if isinstance(item, Stored):
                    run = item.run
                    seen.append(item.event)
                    if isinstance(item.event, ToolReturned) and item.event.index == 1:
                        await elsewhere.ask_for(run, {"calls": 9})
            return sum(isinstance(one, ToolReturned) for one in seen), seen

    calls, seen = asyncio.run(raised())
    assert calls == 9
    (changed,) = [one for one in seen if isinstance(one, LimitsChanged)]
    assert changed.limits["calls"] == 9


@given(st.sampled_from(NAMES), st.floats(0.01, 1e6), st.floats(0, 1))
def test_nearly_used_up_comes_before_used_up(which: str, limit: float, share: float) -> None:
    """A budget that is used up is nearly used up; what is left never is less with the reserve than without."""
    value = max(1, int(limit)) if which not in ("seconds", "cost") else limit
    budget = Budget(limits=Limits(calls=None, reasoning_tokens=None, seconds=None).changed({which: value}), clock=lambda: 0.0)
    used = share * 1.2 * value
    if which == "seconds":
        budget.seconds_before = used
    else:
        setattr(budget, which, used)

    assert budget.reached() is None or budget.near() is not None
    assert budget.left(which, reserve=True) >= budget.left(which, reserve=False)


def test_efforts_grow() -> None:
    """Each preset allows at least what the one before does."""
    for less, more in zip(EFFORTS.values(), list(EFFORTS.values())[1:], strict=False):
        assert all((getattr(more, name) or 0) >= (getattr(less, name) or 0) for name in NAMES)


@pytest.mark.parametrize("limits", [{"calls": 0}, {"seconds": -1.0}, {"cost": float("nan")}, {"steps": 3}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    """In one line that names the budget."""
    with pytest.raises(UsageError, match="budget of"):
        Limits().changed(limits)


def test_prices() -> None:
    """Cached prompt tokens have a price of their own."""
    usage = Usage(prompt_tokens=1000, cached_tokens=600, completion_tokens=100)

    assert Prices(prompt=2.0, cached=0.5, generated=10.0).of(usage) == pytest.approx((400 * 2 + 600 * 0.5 + 100 * 10) / 1e6)
