"""The loop with scripted models: calls, observations, verdicts, revisions, budgets, and what the journal keeps."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from k2core import tool
from k2core.agent import projection, window
from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult
from k2core.errors import InputError, K2Error
from k2core.events import (
    AnswerGiven,
    BudgetReached,
    Live,
    ResultsHidden,
    RunEnded,
    StepsLeftOut,
    Stored,
    ToolIntent,
    ToolReturned,
    TurnEnded,
    UnknownEvent,
    VerdictGiven,
    Warned,
)
from k2core.interfaces import Answer, Finding, ModelProfile, Trajectory, Verdict, Verifier
from k2core.messages import Message, ToolCall, TurnEnd, Usage
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry

OPENED = ExitStack()  # the journals of `agent_of`


@pytest.fixture(autouse=True)
def journals_are_closed() -> Iterator[None]:
    """Close each test's journals at its end."""
    yield
    OPENED.close()


@tool(effect="pure")
def double(number: int) -> str:
    """Double a number."""
    if number < 0:
        raise ValueError("negative")
    return str(2 * number)


class Grounded:
    """Rejects an answer whose number is in no observation."""

    name = "grounded"

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """Look for the answer's digits in the observations."""
        number = "".join(letter for letter in answer.text if letter.isdigit())
        found = [one.event for one in trajectory.observations if one.ok and one.text == number]
        if found or not number:
            return Verdict(findings=(Finding(verifier=self.name, subject=number, status="supported", events=tuple(found)),))
        hint = f"number {number} is in no result"
        return Verdict(findings=(Finding(verifier=self.name, subject=number, status="unsupported", hint=hint),))


def calling(name: str, arguments: Any, index: int, reasoning: str = "") -> Message:
    """An assistant turn with one call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, separators=(",", ":"))
    call = ToolCall(id=f"functions.{name}:{index}", name=name, arguments=text)
    return Message(role="assistant", reasoning=reasoning, tool_calls=(call,))


def answering(text: str, index: int, evidence: Sequence[int] = ()) -> Message:
    """An assistant turn that calls `answer`."""
    return calling("answer", {"claims": [{"evidence": list(evidence), "text": text}], "text": text}, index, "Done.")


def agent_of(
    tmp_path: Path,
    turns: Sequence[Message | str | Callable[[Sequence[Message]], Message]],
    *,
    verifiers: Sequence[Verifier] = (Grounded(),),
    limits: Limits | None = None,
) -> Agent:
    """An agent over a script, one tool and one verifier."""
    return Agent(
        model=ScriptedModel(turns),
        tools=Registry.of([*control_tools(), double]),
        verifiers=verifiers,
        journal=OPENED.enter_context(Journal.open(tmp_path / "runs.sqlite")),
        limits=limits or Limits(),
    )


def ask(agent: Agent, question: str = "Twice 21?", run: str | None = None) -> tuple[RunResult, list[Any]]:
    """The result and the journal's events of one question."""
    result = agent.run(question, run=run)
    return result, [stored.event for stored in agent.journal.events(result.run)]


def of_kind(events: Sequence[Any], kind: type) -> list[Any]:
    """Events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def test_a_question_ends_in_a_verified_answer_with_evidence(tmp_path: Path) -> None:
    """Call, observe, answer: the answer is accepted, its evidence names the result's event, and the order in the log holds."""
    agent = agent_of(tmp_path, [calling("double", {"number": 21}, 0, "Plan double: 21."), answering("It is 42.", 1, [0])])
    result, events = ask(agent)

    assert (result.status, result.answer.text, result.calls) == ("answered", "It is 42.", 2)
    (evidence,) = result.answer.evidence
    assert events[evidence.events[0] - 1] == of_kind(events, ToolReturned)[0]
    kinds = " ".join(event.kind for event in events)
    assert kinds == (
        "run.started message message turn tool.intent tool.result turn tool.intent verdict tool.result message answer run.ended"
    )
    agent.model.assert_complete()  # type: ignore[attr-defined]


def test_mistakes_of_the_model_become_observations(tmp_path: Path) -> None:
    """An unknown tool, bad JSON, a bad type and a tool that raises are each an error result; the run goes on to its answer."""
    turns = [
        calling("duble", {"number": 1}, 0),
        calling("double", '{"number":', 1),
        calling("double", {"number": "1"}, 2),
        calling("double", {"number": -1}, 3),
        calling("answer", {"text": "no claims"}, 4),
        calling("double", {"number": 4}, 5),
        answering("It is 8.", 6, [5]),
    ]
    result, events = ask(agent_of(tmp_path, turns))

    texts = [event.text for event in of_kind(events, ToolReturned)]
    assert result.status == "answered"
    assert texts[0].startswith("error: no tool 'duble'. Known: answer, double, note. Did you mean 'double'?")
    assert texts[1].startswith("error: invalid arguments: not JSON")
    assert texts[2] == "error: invalid arguments: $.number: '1' is not of type 'integer'"
    assert texts[3] == "error: ValueError: negative"
    assert texts[4].startswith("error: invalid arguments: $: 'claims' is a required property")
    assert texts[5:] == ["8", "accepted"]


def test_a_rejected_answer_goes_back_and_is_revised(tmp_path: Path) -> None:
    """The verdict is the result of `answer`; the model sees it and its second answer is accepted."""

    def revise(messages: Sequence[Message]) -> Message:
        assert messages[-1].content == "rejected: number 43 is in no result"
        return answering("It is 42.", 2, [0])

    turns = [calling("double", {"number": 21}, 0), answering("It is 43.", 1, [0]), revise]
    result, events = ask(agent_of(tmp_path, turns))

    assert result.status == "answered"
    assert [(event.attempt, event.accepted) for event in of_kind(events, VerdictGiven)] == [(1, False), (2, True)]


def test_after_two_revisions_the_answer_is_marked_unverified(tmp_path: Path) -> None:
    """A check that fails a third time ends the run with the last answer, marked, with the reason."""
    turns = [answering(f"It is 4{index}.", index) for index in range(3)]
    result, events = ask(agent_of(tmp_path, turns))

    assert (result.status, result.answer.text) == ("unverified", "It is 42.")
    assert result.answer.reason == "number 42 is in no result"
    assert len(of_kind(events, VerdictGiven)) == 3


def test_plain_content_is_an_answer_too(tmp_path: Path) -> None:
    """Text without a call is verified by sentence; a rejection comes back as a message; dropped reasoning is journalled."""
    plain = Message(role="assistant", reasoning="Hm.", content="It is 43. Surely.")
    turns = [calling("double", {"number": 21}, 0), plain, Message(role="assistant", content="It is 42.")]
    result, events = ask(agent_of(tmp_path, turns))

    assert (result.status, result.answer.text) == ("answered", "It is 42.")
    assert any("number 43 is in no result" in message.content for message in projection.messages(stored(events)))
    assert "history rule drops its reasoning" in of_kind(events, Warned)[0].text


@pytest.mark.parametrize(
    ("text", "claims", "status"),
    [
        ("I cannot answer this with my tools.", [], "declined"),
        ("I could not find twice 21.", [], "declined"),
        ("It is 42.", [], "answered"),
        ("Twice 21 is that.", [{"evidence": [0], "text": "Twice 21"}], "answered"),
    ],
)
def test_an_answer_that_answers_nothing_is_marked_as_declined(
    text: str, claims: list[Any], status: str, tmp_path: Path
) -> None:
    """Accepted, but no claim, and no finding of its text in a result alone: declined, in the answer and in the run's end."""

    class Words:
        name = "words"

        def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
            places = [
                (trajectory.question_event, trajectory.question),
                *((one.event, one.text) for one in trajectory.observations),
            ]
            findings = []
            for word in answer.text.rstrip(".").split():
                events = tuple(event for event, said in places if word in said.rstrip("?").split())
                findings.append(
                    Finding(verifier=self.name, subject=word, status="supported" if events else "unchecked", events=events)
                )
            return Verdict(findings=tuple(findings))

    answer = calling("answer", {"claims": claims, "text": text}, 1)
    result, events = ask(agent_of(tmp_path, [calling("double", {"number": 21}, 0), answer], verifiers=[Words()]))

    assert (result.status, events[-1].status) == (status, status)
    assert bool(result.answer.reason) == (status == "declined")


def stored(events: Sequence[Any]) -> list[Stored]:
    """Events with numbers, as a journal returns them."""
    return [Stored(run="r", sequence=place + 1, time="", event=event) for place, event in enumerate(events)]


@pytest.mark.parametrize("content", ["", "  \n"])
def test_an_empty_turn_gets_a_hint_and_then_an_end(tmp_path: Path, content: str) -> None:
    """A model that says nothing is told so twice; the third silence ends the run as failed."""
    result, events = ask(agent_of(tmp_path, [Message(role="assistant", content=content)] * 3))

    assert result.status == "failed" and "empty" in result.answer.reason
    assert len(of_kind(events, TurnEnded)) == 3


def test_calls_of_a_cut_turn_are_not_run(tmp_path: Path) -> None:
    """A turn that hit its limit may hold half a call: nothing of it runs, and the model is told why."""

    class Cut(ScriptedModel):
        async def generate(self, messages: Any, tools: Any, options: Any) -> Any:
            first = not self.requests
            async for part in super().generate(messages, tools, options):
                yield evolve(part, finish_reason="length") if first and isinstance(part, TurnEnd) else part

    agent = agent_of(tmp_path, [])
    agent.model = Cut([calling("double", {"number": 21}, 0), answering("Hello.", 1)])
    result, events = ask(agent)

    assert result.status == "answered"
    assert of_kind(events, ToolReturned)[0].text == "error: not run: the turn was cut at its limit of 1024 tokens"


def test_the_budget_of_calls_ends_with_what_is_known(tmp_path: Path) -> None:
    """A model that does not conclude when it is told to ends as partial, with the budget's name and the results so far."""
    turns = [calling("double", {"number": index}, index) for index in range(9)]
    result, events = ask(agent_of(tmp_path, turns, limits=Limits(calls=4)))

    assert (result.status, result.calls) == ("partial", 3)
    assert of_kind(events, BudgetReached)[0] == BudgetReached(which="calls", limit=4.0, used=3.0, near=True)
    assert of_kind(events, ToolReturned)[-1].text == "error: not run: the budget of 4 calls is nearly used up. Call answer"
    assert "Known so far" in result.answer.text and "- double number=2: 4" in result.answer.text
    assert result.answer.partial is not None and len(result.answer.partial.known) == 3


def test_the_budget_of_calls_holds_within_one_turn(tmp_path: Path) -> None:
    """Calls beyond the budget in the same turn are not run, and say why."""
    calls = tuple(calling("double", {"number": index}, index).tool_calls[0] for index in range(5))
    result, events = ask(agent_of(tmp_path, [Message(role="assistant", tool_calls=calls)], limits=Limits(calls=2)))

    texts = [event.text for event in of_kind(events, ToolReturned)]
    assert (result.status, result.calls) == ("partial", 2)
    assert texts == ["0", "2", *["error: not run: the budget of 2 calls is used up"] * 3]


def test_the_budget_of_seconds_bounds_a_tool(tmp_path: Path) -> None:
    """A tool gets no more time than the question has left."""

    @tool(effect="read", timeout_s=30)
    def wait() -> str:
        """Wait long."""
        time.sleep(20)
        return "late"

    agent = agent_of(tmp_path, [calling("wait", {}, 0), answering("It did not come.", 1)], limits=Limits(seconds=2))
    agent.tools.add(wait)
    result, events = ask(agent)

    assert result.status == "partial" and result.seconds < 10
    assert re.fullmatch(r"error: timed out after [01]\.\d+ s", of_kind(events, ToolReturned)[0].text)


def test_what_was_heard_of_an_interrupted_turn_is_kept(tmp_path: Path) -> None:
    """When the seconds run out in a turn, its thinking so far is in the journal, and the conversation stays valid."""
    agent = agent_of(tmp_path, [], limits=Limits(seconds=2))
    agent.model = ScriptedModel([Message(role="assistant", reasoning="word " * 4000)] * 2, delay_s=0.01)
    result, events = ask(agent)

    turn = of_kind(events, TurnEnded)[0]
    assert result.status == "partial" and turn.finish_reason == "cancelled" and turn.reasoning.startswith("word word")


def test_results_of_repeated_ids_keep_their_order(tmp_path: Path) -> None:
    """A model that writes one id twice gets two results in order, and evidence is told apart by number."""
    twice = tuple(ToolCall(id="functions.double:0", name="double", arguments=f'{{"number":{number}}}') for number in (3, 4))
    result, events = ask(agent_of(tmp_path, [Message(role="assistant", tool_calls=twice), answering("It is 8.", 2, [1])]))

    assert result.status == "answered"
    contents = [message.content for message in projection.messages(stored(events)) if message.name == "double"]
    assert contents == ["6", "8"]
    observations = projection.trajectory(stored(events)).observations
    assert [(one.index, one.arguments) for one in observations] == [(0, '{"number":3}'), (1, '{"number":4}')]


def test_the_budget_of_seconds_interrupts_a_slow_model(tmp_path: Path) -> None:
    """A model that never ends its turn is stopped by the clock, and the run still ends with an answer event."""

    class Slow(ScriptedModel):
        async def generate(self, messages: Any, tools: Any, options: Any) -> Any:
            await asyncio.sleep(60)
            yield None

    agent = agent_of(tmp_path, [], limits=Limits(seconds=0.05))
    agent.model = Slow([])
    result, events = ask(agent)

    assert result.status == "partial" and of_kind(events, BudgetReached)[0].which == "seconds"


def test_a_failing_verifier_is_a_warning_and_blocks_nothing(tmp_path: Path) -> None:
    """A verifier that raises is journalled by name; the others decide."""

    class Broken:
        name = "broken"

        def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
            raise RuntimeError("out of order")

    result, events = ask(agent_of(tmp_path, [answering("Hello.", 0)], verifiers=[Broken(), Grounded()]))

    assert result.status == "answered"
    assert [event.text for event in of_kind(events, Warned)] == ["verifier 'broken' failed: out of order"]


def test_calls_after_an_accepted_answer_are_not_run(tmp_path: Path) -> None:
    """What follows an accepted answer in the same turn is dropped, and the conversation stays valid."""
    both = answering("Hello.", 0).tool_calls + calling("double", {"number": 1}, 1).tool_calls
    result, events = ask(agent_of(tmp_path, [Message(role="assistant", tool_calls=both)]))

    assert result.calls == 1 and len(of_kind(events, ToolIntent)) == 1
    roles = [(message.role, message.content) for message in projection.messages(stored(events))][3:]
    assert roles == [("tool", "accepted"), ("tool", projection.INTERRUPTED), ("assistant", "Hello.")]


def test_a_run_goes_on_with_a_second_question(tmp_path: Path) -> None:
    """Continuing a run keeps its messages and counts call indices on; earlier results may support the new answer."""
    agent = agent_of(
        tmp_path, [calling("double", {"number": 21}, 0), answering("It is 42.", 1, [0]), answering("Still 42.", 2, [0])]
    )
    first, _ = ask(agent)
    second, events = ask(agent, "Again?", run=first.run)

    assert second.run == first.run and second.status == "answered"
    assert [event.index for event in of_kind(events, ToolIntent)] == [0, 1, 2]
    assert [event.text for event in of_kind(events, AnswerGiven)] == ["It is 42.", "Still 42."]


def test_a_run_with_events_of_another_version_goes_on(tmp_path: Path) -> None:
    """An event of a kind that is not known, in the middle of a run, changes nothing of the conversation."""
    agent = agent_of(tmp_path, [calling("double", {"number": 21}, 0), answering("It is 42.", 1, [0]), answering("42.", 2, [0])])
    first, events = ask(agent)
    before = projection.messages(stored(events))
    plan = UnknownEvent(kind="plan", body={"v": 1, "kind": "plan", "text": "double: 21"})
    asyncio.run(agent.journal.append(first.run, plan))
    second, events = ask(agent, "Again?", run=first.run)

    assert second.status == "answered" and plan in events
    assert projection.messages(stored(events))[: len(before)] == before


def test_a_rejection_is_no_evidence_for_what_it_rejects(tmp_path: Path) -> None:
    """The number that a verdict quotes stays unfounded: repeating the wrong answer is rejected again."""
    _, events = ask(agent_of(tmp_path, [answering("It is 43.", index) for index in range(3)]))

    assert [one.tool for one in projection.trajectory(stored(events)).observations] == []


def test_a_model_that_fails_leaves_a_run_that_ended(tmp_path: Path) -> None:
    """When the model itself raises, the error comes out and the journal says that the run failed."""
    agent = agent_of(tmp_path, [calling("double", {"number": 21}, 0)])

    with pytest.raises(K2Error, match="asked for turn 2"):
        agent.run("Twice 21?")
    (summary,) = agent.journal.runs()
    assert summary.status == "failed"


def test_an_empty_question_is_refused(tmp_path: Path) -> None:
    """A blank question is one clear line and leaves nothing in the journal."""
    agent = agent_of(tmp_path, [])

    with pytest.raises(InputError, match="the question is empty"):
        agent.run("  \n")
    assert agent.journal.runs() == []


def test_cancelling_leaves_a_run_that_can_be_shown(tmp_path: Path) -> None:
    """Closing the stream in the middle records the end as cancelled, after everything that happened before."""

    async def half(agent: Agent) -> str:
        stream = agent.stream("Twice 21?")
        async for item in stream:
            if isinstance(item, Stored) and isinstance(item.event, ToolReturned):
                await stream.aclose()  # type: ignore[attr-defined]
                return item.run
        raise AssertionError("no result came")

    agent = agent_of(tmp_path, [calling("double", {"number": 21}, 0), answering("It is 42.", 1)])
    run = asyncio.run(half(agent))

    events = [stored.event for stored in agent.journal.events(run)]
    assert isinstance(events[-1], RunEnded) and events[-1].status == "cancelled"
    assert [message.role for message in projection.messages(agent.journal.events(run))] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]


def test_a_run_ends_once(tmp_path: Path) -> None:
    """Leaving the stream at its very last event cancels nothing: the run has ended, and says so once."""

    async def to_the_end(agent: Agent) -> str:
        stream = agent.stream("Hi?")
        async for item in stream:
            if isinstance(item, Stored) and isinstance(item.event, RunEnded):
                await stream.aclose()  # type: ignore[attr-defined]
                return item.run
        raise AssertionError("the run did not end")

    agent = agent_of(tmp_path, [answering("Hello.", 0)])
    run = asyncio.run(to_the_end(agent))

    events = [stored.event for stored in agent.journal.events(run)]
    assert [event.status for event in of_kind(events, RunEnded)] == ["answered"]


def test_deltas_are_live_and_come_before_their_turn(tmp_path: Path) -> None:
    """Streamed pieces are provisional: each arrives before the stored turn that holds it."""

    async def kinds(agent: Agent) -> list[str]:
        return ["live" if isinstance(item, Live) else item.event.kind async for item in agent.stream("Hi?")]

    seen = asyncio.run(kinds(agent_of(tmp_path, [answering("Hello.", 0)])))

    assert "live" in seen[: seen.index("turn")] and "live" not in seen[seen.index("turn") :]


@given(cut=st.integers(min_value=0, max_value=14))
def test_the_projection_is_total(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Cut anywhere, the log gives a conversation in which every call has exactly one result, right after its turn."""
    agent = agent_of(
        tmp_path_factory.mktemp("cut"),
        [calling("double", {"number": 21}, 0), answering("It is 43.", 1), answering("It is 42.", 2, [0])],
    )
    _, events = ask(agent)

    messages = projection.messages(stored(events)[:cut])

    open_calls: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id == open_calls.pop(0)
        else:
            assert not open_calls
            open_calls = [call.id for call in message.tool_calls]
    assert not open_calls


def test_old_results_are_hidden_in_a_block_when_the_context_is_nearly_full(tmp_path: Path) -> None:
    """At 90 % the oldest results give way until 60 %; the newest stay, the journal keeps all, and the run goes on."""
    long = " ".join("7" * 100)

    @tool(effect="read")
    def page(number: int) -> str:
        """Show a page."""
        return f"{7919 * number} {long}"

    agent = agent_of(tmp_path, [*(calling("page", {"number": index}, index) for index in range(12)), answering("Hello.", 12)])
    agent.tools.add(page)
    agent.model.profile = ModelProfile(context=600)
    result, events = ask(agent)

    hidden = of_kind(events, ResultsHidden)
    assert result.status == "answered" and hidden and len(hidden) < 6
    assert all(event.text.endswith(long) for event in of_kind(events, ToolReturned)[:-1])
    shown = [message.content for message in projection.messages(stored(events)) if message.name == "page"]
    assert shown[0] == projection.HIDDEN and shown[-1] == f"87109 {long}"


def test_steps_are_left_out_in_blocks_when_hiding_is_not_enough(tmp_path: Path) -> None:
    """A run of many calls stays within a small context: the oldest steps go, in blocks, and calls are numbered on."""
    thought = "So it goes on and on as it did before."
    script = [*(calling("double", {"number": index}, index, thought) for index in range(60)), answering("Hello.", 60)]
    agent = agent_of(tmp_path, script)
    agent.model.profile = ModelProfile(context=250)
    agent.limits = evolve(agent.limits, calls=100)
    result, events = ask(agent)

    assert result.status == "answered"
    left_out = [event.through for event in of_kind(events, StepsLeftOut)]
    assert 1 < len(left_out) < 12 and left_out == sorted(set(left_out))
    numbers = [
        one.options.calls_left_out + sum(len(message.tool_calls) for message in one.messages) for one in agent.model.requests
    ]
    assert numbers == list(range(61))
    assert max(turn.usage.prompt_tokens for turn in of_kind(events, TurnEnded)) <= 250
    shown = projection.messages(stored(events))
    assert [one.role for one in shown[:2]] == ["system", "user"]
    called = [int(call.id.rpartition(":")[2]) for one in shown for call in one.tool_calls]
    assert called == list(range(left_out[-1] + 1, 61))
    assert len([one for one in shown if one.role == "tool"]) == len(called)


def test_nothing_is_hidden_while_there_is_room() -> None:
    """A short conversation keeps every result."""
    messages = [
        Message(role="user", content="x"),
        calling("double", {"number": 1}, 0),
        Message(role="tool", content="2", tool_call_id="functions.double:0"),
    ]

    assert window.make_room(messages, Usage(prompt_tokens=10, completion_tokens=5), 1000) is None
