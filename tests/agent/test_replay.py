"""Replay: what is asked for again is what was asked for, every token is chosen again, and one that is not is found."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent.long_runs import Chain, Follower
from agent.worlds import OPENED, PLAN, World, agent_over, cut, of_kind, resumed
from attrs import evolve
from safetensors.numpy import load_file, save_file
from swap.parts import LANGUAGES, PARTS

from k2core.agent.asked import options_of, written
from k2core.agent.budget import EFFORTS, Limits
from k2core.agent.control import control_tools
from k2core.agent.forking import Given, fork
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.replaying import Replayed, asked_turn, replay
from k2core.agent.session import Choice, Session
from k2core.engine.following import Difference
from k2core.errors import InputError
from k2core.events import Stalled, Stored, TurnEnded
from k2core.interfaces import GenerateOptions
from k2core.plugins import Plugins
from k2core.testing.models import Request, ScriptedModel, call_turn
from k2core.tools import Registry
from k2core_nano import WEIGHTS

needs_nano = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)
QUESTIONS = ("What is 23 times 47?", "What is 12 plus 30?", "How many metres are 3 miles?")


@pytest.fixture(autouse=True)
def journals_are_closed() -> Iterator[None]:
    """Close each test's journals at its end."""
    yield
    OPENED.close()


# ── what is asked for ───────────────────────────────────────────────────────────────────────────────────────────────


def assert_asked_again(agents: Sequence[Agent], events: Sequence[Stored]) -> None:
    """The turns in the log are asked for as the agents' models were asked, one after the other."""
    asked = [one for agent in agents for one in agent.model.requests]  # type: ignore[attr-defined]
    turns = [(place, one.event) for place, one in enumerate(events) if isinstance(one.event, TurnEnded)]
    assert len(asked) == len(turns) > 0
    for request, (place, turn) in zip(asked, turns, strict=True):
        again = asked_turn(turn, events[:place])
        assert again is not None
        assert tuple(again.messages) == request.messages, place
        assert again.options == request.options, place
        assert list(again.tools) == [one["function"]["name"] for one in request.tools]


@pytest.mark.parametrize("limits", [Limits(), Limits(calls=5), Limits(tokens=60), Limits(reasoning_tokens=9)])
def test_a_run_is_asked_for_again(tmp_path: Path, limits: Limits) -> None:
    """Messages, options and tools of every turn are in the log, also of those that conclude."""
    agent = agent_over(World(), PLAN, tmp_path / "runs.sqlite", limits)
    assert_asked_again([agent], agent.journal.events(agent.run("Which numbers?").run))


def test_a_run_that_goes_round_in_circles_is_asked_for_again(tmp_path: Path) -> None:
    """What may not be called in a turn, and what was taken out, are in the log."""
    plan = [("double", {"number": 3})] * 30
    agent = agent_over(World(), plan, tmp_path / "runs.sqlite")
    alone = agent_over(World(), plan, tmp_path / "runs.sqlite")
    alone.tools = Registry.of([one for one in map(agent.tools.get, agent.tools.names()) if one.name in ("double", "answer")])
    for one in (agent, alone):
        events = one.journal.events(one.run("Which numbers?").run)
        assert {stalled.action for stalled in of_kind(events, Stalled)} == {"steer", "roll-back", "stop"}
        assert_asked_again([one], events)
    assert any(request.options.forbidden_tools for request in agent.model.requests)  # type: ignore[attr-defined]
    assert any(request.options.forbidden_calls for request in alone.model.requests)  # type: ignore[attr-defined]


def test_a_run_that_is_cut_anywhere_is_asked_for_again(tmp_path: Path) -> None:
    """Before the cut and behind it, where sampling, tools and budgets are others."""
    agent = agent_over(World(), PLAN, tmp_path / "whole.sqlite", Limits(calls=6))
    events = agent.journal.events(agent.run("Which numbers?").run)
    for count in range(1, len(events)):
        path = tmp_path / f"cut-{count}.sqlite"
        run = cut(events, count, path)
        other = agent_over(World(), PLAN, path, Limits(calls=20))
        other.options = GenerateOptions(seed=count, temperature=0.5, max_tokens=77)
        other.tools = Registry.of([one for one in map(other.tools.get, other.tools.names()) if one.name != "send"])

        resumed(other, run)

        after = other.journal.events(run)
        before = sum(isinstance(one.event, TurnEnded) for one in events[:count])
        first = evolve_requests(agent, before)
        assert_asked_again([first, other] if other.model.requests else [first], after)  # type: ignore[attr-defined]


def evolve_requests(agent: Agent, count: int) -> Agent:
    """The agent as it was after some turns."""
    model = ScriptedModel([])
    model.requests = agent.model.requests[:count]  # type: ignore[attr-defined]
    return Agent(model=model, tools=agent.tools, journal=agent.journal)


class Noted(Follower):
    """One that notes what it is asked."""

    def generate(self, messages: Any, tools: Any, options: Any) -> Any:
        """As it does."""
        self.requests.append(Request(messages=tuple(messages), tools=tuple(tools), options=options))
        return super().generate(messages, tools, options)


def test_a_long_run_in_a_small_context_is_asked_for_again(tmp_path: Path) -> None:
    """What was hidden and left out by then, and nothing else, is missing from each turn's messages."""
    chain = Chain(100, 3)
    with Journal.open(tmp_path / "runs.sqlite") as journal:
        tools = Registry.of([*control_tools(), *chain.tools()])
        agent = Agent(
            model=Noted(chain.model().first, every=10, context=600), tools=tools, journal=journal, limits=EFFORTS["max"]
        )
        assert_asked_again([agent], journal.events(agent.run(chain.question).run))
    assert any(one.options.calls_left_out for one in agent.model.requests)  # type: ignore[attr-defined]


def test_a_conversation_and_its_fork_are_asked_for_again(tmp_path: Path) -> None:
    """Question by question; a fork's turns are those of both."""
    agent = agent_over(World(), [("double", {"number": 3}), "Done."], tmp_path / "runs.sqlite")
    run = agent.run("Do it.").run
    agent.run("Once more.", run=run)
    events = agent.journal.events(run)
    assert_asked_again([agent], events)
    step = next(one.sequence for one in reversed(events) if isinstance(one.event, TurnEnded))

    other = agent_over(World(), ["Well."], tmp_path / "runs.sqlite")
    new = asyncio.run(fork(other.journal, run, step - 1, Given(tool="double", text="7")))
    resumed(other, new)

    assert_asked_again([evolve_requests(agent, 3), other], other.journal.events(new))


def test_options_are_written_and_read() -> None:
    """What a turn's event keeps of any options gives them again."""
    for options in (
        GenerateOptions(),
        GenerateOptions(seed=2**63, path=3, max_reasoning_tokens=5, tool_choice="answer", masks=False, temperature=0.7),
        GenerateOptions(forbidden_tools=("a", "b"), forbidden_calls=(("a", "{}"), ("b", '{"x":1}')), calls_left_out=4),
        GenerateOptions(response_schema={"type": "object", "properties": {"a": {"enum": [1, None]}}}),
    ):
        kept = written(options, (), ())
        assert options_of(TurnEnded(options=kept)) == options
        assert options_of(TurnEnded(options={**kept, "of a later version": 1})) == options
    assert options_of(TurnEnded()) is None


# ── what is chosen ──────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(folder: Path, **choice: Any) -> tuple[Choice, list[str]]:
    """Runs of the embedded model, one of them with two questions."""
    chosen = Choice(store=folder / "runs.sqlite", **choice)
    with Session.open(chosen) as session:
        runs = [session.agent.run(question).run for question in QUESTIONS]
        session.agent.run(QUESTIONS[1], run=runs[0])
    return chosen, runs


def replayed(choice: Choice, run: str, plugins: Plugins | None = None) -> list[Replayed]:
    """Every turn of a run in a session of its own."""

    async def turns(session: Session) -> list[Replayed]:
        return [one async for one in replay(session, session.agent.journal.events(run))]

    with Session.open(choice, plugins=plugins) as session:
        found = asyncio.run(turns(session))
        assert session.agent.last_run is None
    return found


@needs_nano
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0, "seed": 7}, {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01, "masks": False}]
)
def test_every_token_is_chosen_again(tmp_path: Path, sampling: dict[str, Any]) -> None:
    """Whatever the sampling was, and whatever the session that replays samples with, guesses and caches."""
    choice, runs = recorded(tmp_path, limits=Limits(calls=12), max_tokens=120, **sampling)
    for changed in (choice, Choice(store=choice.store, seed=3, temperature=0.3, drafts=0)):
        total = 0
        for run in runs:
            found = replayed(changed, run)
            tokens = [len(one.token_ids) for one in turns_of(choice, run)]
            assert [(one.tokens, one.agreed, one.differences, one.notes) for one in found] == [(n, n, (), ()) for n in tokens]
            assert not any(one.others or one.skipped for one in found)
            total += sum(tokens)
        assert total > 150


def turns_of(choice: Choice, run: str) -> list[Any]:
    """The turns of a run."""
    with Journal.open(choice.store) as journal:
        return of_kind(journal.events(run), TurnEnded)


def altered(choice: Choice, run: str, change: Callable[[TurnEnded], TurnEnded], number: int) -> tuple[str, int]:
    """A run with one turn changed and its hashes right, and the number of that turn's event."""
    with Journal.open(choice.store) as journal:
        events = journal.events(run)
        place = [at for at, one in enumerate(events) if isinstance(one.event, TurnEnded)][number]
        changed = [one.event for one in events]
        changed[place] = change(changed[place])  # type: ignore[arg-type]
        journal.write("altered", *changed)
    return "altered", place + 1


@needs_nano
def test_a_changed_token_is_found(tmp_path: Path) -> None:
    """At its place, with both tokens and a margin; other places of that turn are judged behind it, turns before it agree."""
    choice, (run, *_) = recorded(tmp_path)
    turn = turns_of(choice, run)[1]
    at = turn.token_ids.index(ord("/"))

    def change(one: TurnEnded) -> TurnEnded:
        assert one.token_ids is not None
        return evolve(one, token_ids=(*one.token_ids[:at], ord("*"), *one.token_ids[at + 1 :]))

    name, event = altered(choice, run, change, 1)
    before, found, *after = replayed(choice, name)

    assert (before.differences, found.event) == ((), event)
    first = found.differences[0]
    assert (first.position, first.given, first.chosen) == (at, ord("*"), ord("/"))
    assert first.margin is not None and 0 < first.margin < 100
    assert found.agreed == found.tokens - len(found.differences) > found.tokens / 2
    assert [one.tokens for one in after] == [len(one.token_ids) for one in turns_of(choice, run)[2:]]


@needs_nano
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_margin_is_that_of_the_logits_behind_the_given_tokens(tmp_path: Path, temperature: float) -> None:
    """By how much the chosen one's logit exceeds the given one's where the prompt and the turn up to there were fed."""
    from k2core.agent import projection
    from k2core.agent.placement import load_model
    from k2core.engine.switch import score

    choice, (run, *_) = recorded(tmp_path, temperature=temperature)
    name, event = altered(choice, run, lambda one: evolve(one, token_ids=(*one.token_ids[:3], 1000, *one.token_ids[4:])), 0)  # type: ignore[index]
    (first, *_) = replayed(choice, name)[0].differences
    with Session.open(choice) as session:
        declarations = session.agent.tools.declarations()
        events = session.agent.journal.events(name)
    plugins = Plugins.discover()
    language = plugins.get("chat format", "kimi").load()(plugins.get("tokenizer", "kimi").load()(WEIGHTS))
    prompt = language.render(projection.messages(events[: event - 1]), declarations)
    turn = events[event - 1].event
    assert isinstance(turn, TurnEnded) and turn.token_ids is not None
    loaded = load_model(plugins, choice)
    try:
        row = score(loaded, [*prompt, *turn.token_ids[:3]], 1)[0]
    finally:
        loaded.close()

    assert first == Difference(position=3, given=1000, chosen=first.chosen, margin=float(row[first.chosen]) - float(row[1000]))  # type: ignore[index]
    if temperature == 0.0:
        assert first.margin is not None and first.margin > 0


@needs_nano
def test_tokens_that_are_missing_or_too_many_are_found(tmp_path: Path) -> None:
    """The turn would go on, or end before; a token that is none of the vocabulary's cannot be gone on from."""
    choice, (run, *_) = recorded(tmp_path)
    ids = turns_of(choice, run)[2].token_ids
    cases = {
        ids[:-4]: Difference(position=len(ids) - 4, given=None, chosen=ids[-4]),
        (*ids, 65, 66): Difference(position=len(ids), given=65, chosen=None),
        (*ids[:7], 10**6, *ids[8:]): Difference(position=7, given=10**6, chosen=ids[7]),
    }
    for number, (changed, expected) in enumerate(cases.items()):
        store = tmp_path / f"{number}.sqlite"
        with Journal.open(choice.store) as journal, Journal.open(store) as other:
            events = [one.event for one in journal.events(run)]
            events = events[: 1 + max(at for at, one in enumerate(events[:11]) if isinstance(one, TurnEnded))]
            events[-1] = evolve(events[-1], token_ids=changed)
            other.write("altered", *events)

        found = replayed(Choice(store=store), "altered")[-1]

        assert (found.differences, found.tokens) == ((expected,), len(changed))
        assert found.agreed == {0: len(ids) - 4, 1: len(ids), 2: 7}[number]


@needs_nano
def test_a_token_that_no_call_may_have_is_found(tmp_path: Path) -> None:
    """Behind it the turn has left its grammar, and goes on without one."""
    choice, (run, *_) = recorded(tmp_path)
    turn = turns_of(choice, run)[0]
    at = len(turn.token_ids) - 4  # within the call

    name, _ = altered(choice, run, lambda one: evolve(one, token_ids=(*turn.token_ids[:at], 200, *turn.token_ids[at + 1 :])), 0)
    found = replayed(choice, name)[0]

    assert (found.differences[0].position, found.differences[0].given, found.differences[0].chosen) == (
        at,
        200,
        turn.token_ids[at],
    )
    assert found.agreed == found.tokens - len(found.differences) < found.tokens


@needs_nano
def test_other_weights_are_told_and_found(tmp_path: Path) -> None:
    """A model whose output head is another one chooses other tokens; its weights' hash says that it is another model."""
    choice, (run, *_) = recorded(tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    for one in WEIGHTS.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = head + np.random.default_rng(0).normal(0, head.astype(np.float32).std(), head.shape).astype(
        head.dtype
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    found = replayed(evolve(choice, model=str(folder)), run)

    assert all(set(one.others) == {"model", "weights"} for one in found)
    assert found[0].others["weights"][0] != found[0].others["weights"][1]
    assert sum(len(one.differences) for one in found) > 0
    for one in found:
        assert one.agreed == one.tokens - len(one.differences)
        assert all(other.given != other.chosen and other.margin for other in one.differences)


@needs_nano
@pytest.mark.parametrize(("backend", "numerics"), [("torch", "exact"), ("onnx", "exact")])
def test_another_backend_is_told(tmp_path: Path, backend: str, numerics: Any) -> None:
    """Within its contract it chooses the same wherever the lead is clear, as it is in a greedy run."""
    pytest.importorskip("onnxruntime" if backend == "onnx" else backend)
    choice, (run, *_) = recorded(tmp_path)

    found = replayed(evolve(choice, backend=backend, numerics=numerics), run)

    assert {name for one in found for name in one.others} == {"backend"}
    assert all(abs(other.margin or 0.0) < 2e-3 for one in found for other in one.differences)


@needs_nano
def test_what_cannot_be_compared_is_counted(tmp_path: Path) -> None:
    """Interrupted turns, turns without token ids and those that do not say how they were asked for are skipped, in order."""
    choice, (run, *_) = recorded(tmp_path)
    with Journal.open(choice.store) as journal:
        events = [one.event for one in journal.events(run)]
        places = [at for at, one in enumerate(events) if isinstance(one, TurnEnded)]
        changes: list[dict[str, Any]] = [{"finish_reason": "cancelled"}, {"token_ids": None}, {"options": {}}]
        for place, change in zip(places, changes, strict=False):
            events[place] = evolve(events[place], **change)  # type: ignore[type-var]
        journal.write("altered", *events)

    found = replayed(choice, "altered")

    assert [one.skipped for one in found[:4]] == ["interrupted", "without token ids", "recorded without options", ""]
    assert [one.tokens for one in found[3:]] == [len(one.token_ids) for one in turns_of(choice, run)[3:]]


def test_a_run_without_tokens_says_why(tmp_path: Path) -> None:
    """A script tells no tokens; the question of several paths has no turns."""
    script = [call_turn(0, "answer", text="Done.", claims=[])]
    with Session.open(Choice(store=tmp_path / "r.sqlite", tools=()), model=ScriptedModel(script)) as session:
        run = session.agent.run("Do it.").run
    with pytest.raises(
        InputError, match=rf"cannot replay run {run}: none of its turns can be compared \(1 without token ids\)"
    ):
        replayed(Choice(store=tmp_path / "r.sqlite"), run)


@needs_nano
def test_a_model_that_cannot_be_led_says_so(tmp_path: Path) -> None:
    """A scripted model is none to replay on."""
    choice, (run, *_) = recorded(tmp_path)

    async def first(session: Session) -> None:
        await anext(replay(session, session.agent.journal.events(run)))  # type: ignore[arg-type]

    with (
        Session.open(choice, model=ScriptedModel(["Hello."])) as session,
        pytest.raises(InputError, match=r"on model 'scripted': it cannot be led along tokens\. Give another with -m"),
    ):
        asyncio.run(first(session))


@needs_nano
def test_parts_are_swapped_as_they_were(tmp_path: Path) -> None:
    """A tool that is declared in other words, and a tokenizer with other cuts, count from where they did in the run."""
    plugins = Plugins.discover()
    assert {plugins.add(PARTS, name="parts").status, plugins.add(LANGUAGES, name="languages").status} == {"loaded"}
    few = Limits(calls=2, reasoning_tokens=64)
    choice = Choice(store=tmp_path / "r.sqlite", tools=("calculator", "double"), max_tokens=96, limits=few)
    with Session.open(choice, plugins=plugins) as session:
        run = session.agent.run(QUESTIONS[0]).run
        session.tools.use("double", "words")
        session.tokenizers.use("narrow")
        session.agent.run(QUESTIONS[1], run=run)

    found = replayed(choice, run, plugins)
    assert all((one.differences, one.notes) == ((), ()) for one in found) and len(found) > 3

    others = Plugins.discover()
    assert others.add(PARTS, name="parts").status == "loaded"
    told = [note for one in replayed(choice, run, others) for note in one.notes]
    assert told[0].startswith("tokenizer kimi was carried out by narrow: no tokenizer 'narrow'")
    assert "tokens, " in told[1] and "when it was recorded" in told[1]


@needs_nano
def test_tools_that_are_missing_or_others_are_told(tmp_path: Path) -> None:
    """The prompt is another one then, and its length says so too."""
    choice, (run, *_) = recorded(tmp_path)

    missing = replayed(evolve(choice, tools=("calculator",)), run)

    assert missing[0].notes[:2] == ("tool facts is not here", "tool units is not here")
    assert missing[0].notes[2].startswith("its prompt has ")
    with sqlite3.connect(choice.store) as connection:  # type: ignore[arg-type]
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)
    connection.close()
