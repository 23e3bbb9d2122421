"""Guards: what they refuse is not done, what they change is told, and nothing that they do takes a run down."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent.worlds import AnyAnswer, Valid, World, of_kind, policy, resumed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from k2core import hookimpl
from k2core.agent import guarding
from k2core.agent.approving import Approval, Question, Spoken
from k2core.agent.choice import Choice
from k2core.agent.control import control_tools
from k2core.agent.deciding import decide
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.session import Session
from k2core.errors import K2Error
from k2core.events import (
    CallDecided,
    DecisionNeeded,
    Event,
    GuardActed,
    RunEnded,
    Stored,
    ToolBegun,
    ToolIntent,
    ToolReturned,
    VerdictGiven,
)
from k2core.guards import HOOKS
from k2core.interfaces import AskFirst, ChangedArguments, ChangedResult, Refusal
from k2core.messages import Message
from k2core.plugins import Plugins
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry

OPENED = ExitStack()


@pytest.fixture(autouse=True)
def journals_are_closed() -> Iterator[None]:
    """Close each test's journals at its end."""
    yield
    OPENED.close()


def guard(name: str = "watch", **hooks: Any) -> Any:
    """A guard with these hooks: functions, or what they return."""
    made = {hook: does if callable(does) else _always(does) for hook, does in hooks.items()}
    return SimpleNamespace(name=name, **made)


def _always(value: Any) -> Callable[..., Any]:
    def hook(*about: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    return hook


def agent_over(world: World, plan: Sequence[Any], path: Path, *guards: Any, **more: Any) -> Agent:
    """An agent in that world, with guards."""
    return Agent(
        model=Valid([policy(plan)] * 100),
        tools=Registry.of([*control_tools(), *world.tools()]),
        verifiers=[AnyAnswer()],
        journal=OPENED.enter_context(Journal.open(path)),
        guards=guards,
        **more,
    )


def worked(tmp_path: Path, plan: Sequence[Any], *guards: Any, **more: Any) -> tuple[World, Any, list[Event]]:
    """A world after a question, its result, and the events."""
    world = World()
    agent = agent_over(world, plan, tmp_path / "runs.sqlite", *guards, **more)
    result = agent.run("Do it.")
    return world, result, [one.event for one in agent.journal.events(result.run)]


def only(events: Sequence[Any], kind: type) -> Any:
    """The one event of a kind."""
    (found,) = (one for one in events if isinstance(one, kind))
    return found


def texts(events: Sequence[Any]) -> list[str]:
    """What came back from calls."""
    return [one.text for one in events if isinstance(one, ToolReturned)]


SEND = [("send", {"number": 1}), "Done."]
DOUBLE = [("double", {"number": 4}), "Done."]


# ── around a call ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_call_is_an_error_for_the_model(tmp_path: Path) -> None:
    """It is not made; the model is told by whom and why, and the journal too."""
    world, result, events = worked(tmp_path, SEND, guard("no-mail", before_call=Refusal(reason="mails are off limits")))

    assert result.answer.text == "Done." and world.effects == []
    assert texts(events)[0] == "error: not run: guard 'no-mail' refused it: mails are off limits"
    acted = only(events, GuardActed)
    assert (acted.guard, acted.hook, acted.action, acted.why, acted.index) == (
        "no-mail", "before_call", "refused", "mails are off limits", 0,
    )  # fmt: skip


def test_a_guard_sees_what_would_be_called(tmp_path: Path) -> None:
    """Name, number, arguments and effect; changing the arguments in place changes nothing."""
    seen = []

    def before_call(call: Any) -> None:
        seen.append((call.name, call.index, dict(call.arguments), call.effect, call.untrusted))
        call.arguments["number"] = 9

    _, _, events = worked(tmp_path, DOUBLE, guard(before_call=before_call), guard("second", before_call=before_call))

    assert seen == [("double", 0, {"number": 4}, "pure", False)] * 2
    assert texts(events)[0] == "8" and not [one for one in events if isinstance(one, GuardActed)]


def test_changed_arguments_are_told_and_used(tmp_path: Path) -> None:
    """The call is made with them, the next guard sees them, and the journal has both."""
    seen = []

    async def cap(call: Any) -> Any:
        return ChangedArguments(arguments={"number": min(3, call.arguments["number"])}, reason="at most 3")

    second = guard("second", before_call=lambda call: seen.append(call.arguments["number"]))
    _, _, events = worked(tmp_path, DOUBLE, guard("cap", before_call=cap), second)

    acted = only(events, GuardActed)
    assert texts(events)[0] == "6" and seen == [3]
    assert (acted.action, json.loads(acted.before), json.loads(acted.after)) == ("changed", {"number": 4}, {"number": 3})
    intent = next(one for one in events if isinstance(one, ToolIntent))
    assert json.loads(intent.arguments) == {"number": 4}


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (RuntimeError("no luck"), "RuntimeError: no luck"),
        (SystemExit(3), "RuntimeError: SystemExit: 3"),
        ("yes", "TypeError: it returned str, expected None or Refusal or AskFirst or ChangedArguments"),
        (ChangedResult(text="x", reason="y"), "TypeError: it returned ChangedResult"),
        (ChangedArguments(arguments={"digits": 1}, reason="why not"), "its arguments do not fit"),
        (ChangedArguments(arguments={"number": {1}}, reason="why not"), "its arguments are no JSON"),
        (lambda call: time.sleep(5), "timed out after 0.2 s"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_guard_that_fails_stops_calls_with_side_effects_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: Any, why: str, is_async: bool
) -> None:
    """It raises, is late or returns nonsense: what only looks is made with a warning, anything else is not made."""
    monkeypatch.setattr(guarding, "TIMEOUT_S", 0.2)
    hook = does if callable(does) else _always(does)

    async def later(call: Any) -> Any:
        if callable(does):
            await asyncio.sleep(5)
        return hook(call)

    failing = guard("shaky", before_call=later if is_async else hook)
    plan = [("double", {"number": 4}), ("put", {"number": 1}), ("book", {"number": 1}), ("send", {"number": 1}), "Done."]
    world, result, events = worked(tmp_path, plan, failing)

    assert result.answer.text == "Done." and world.effects == []
    assert texts(events)[0] == "8"
    for text in texts(events)[1:4]:
        assert text.startswith("error: not run: guard 'shaky' refused it: it failed: ") and why in text
    acted = [one for one in events if isinstance(one, GuardActed)]
    assert [one.action for one in acted] == ["failed", *["failed", "refused"] * 3]
    assert acted[0].why.endswith("the call only looks and is made all the same")


def test_a_guard_that_cancels_itself_cancels_nothing_else(tmp_path: Path) -> None:
    """asyncio.CancelledError out of a guard is its own fault."""

    async def cancels(call: Any) -> None:
        raise asyncio.CancelledError

    async def asks(call: Any) -> Any:
        return Refusal(reason="x")

    sync_that_forgot_to_wait = guard("forgot", before_call=lambda call: asks(call))
    _, result, events = worked(tmp_path, DOUBLE, guard(before_call=cancels), sync_that_forgot_to_wait)

    assert result.answer.text == "Done." and texts(events)[0] == "8"
    whys = [one.why for one in events if isinstance(one, GuardActed)]
    assert "it cancelled itself" in whys[0] and "it returned coroutine" in whys[1]


def test_results_are_redacted_before_the_model_sees_them(tmp_path: Path) -> None:
    """The model sees the changed text, the journal keeps both; an error stays one."""
    hidden = ChangedResult(text="[hidden]", reason="secrets")
    plan = [("double", {"number": 4}), ("nobody", {}), ("pay", {"number": 1}), "Done."]
    seen = []
    shy = guard("shy", after_call=hidden, on_call_error=lambda call, result: seen.append(call.name))
    world, _, events = worked(tmp_path, plan, shy, guard("no-pay", before_call=_refuses("pay")))

    assert texts(events)[:2] == ["[hidden]", "error: no tool 'nobody'. Known: answer, book, double, note, pay, put, send."]
    assert "refused it" in texts(events)[2]
    acted = next(one for one in events if isinstance(one, GuardActed))
    assert (acted.hook, acted.before, acted.after) == ("after_call", "8", "[hidden]")
    assert seen == [] and world.effects == []  # of calls that were not made there is nothing to see


def _refuses(tool: str) -> Callable[[Any], Refusal | None]:
    return lambda call: Refusal(reason="no") if call.name == tool else None


def test_errors_of_tools_go_through_both_hooks(tmp_path: Path) -> None:
    """on_call_error sees it first, after_call may change it, and an error is still marked as one."""
    from k2core import tool

    @tool(effect="read")
    def fails() -> str:
        """Fail."""
        raise RuntimeError("password hunter2")

    order: list[str] = []
    shy = guard(
        "shy",
        on_call_error=lambda call, result: order.append(f"error {result.ok}"),
        after_call=lambda call, result: order.append("after") or ChangedResult(text="hidden", reason="secrets"),  # type: ignore[func-returns-value]
    )
    world = World()
    agent = agent_over(world, [("fails", {}), "Done."], tmp_path / "runs.sqlite", shy)
    agent.tools.add(fails)

    result = agent.run("Do it.")

    assert order == ["error False", "after"]
    assert of_kind(agent.journal.events(result.run), ToolReturned)[0].text == "error: hidden"


def test_a_call_is_made_again_with_the_arguments_that_guards_gave_it(tmp_path: Path) -> None:
    """After a cut the same attempt has the same arguments, also where the guard is gone."""
    cap = guard("cap", before_call=ChangedArguments(arguments={"number": 3}, reason="at most 3"))
    whole = agent_over(World(), DOUBLE, tmp_path / "whole.sqlite", cap)
    events = whole.journal.events(whole.run("Do it.").run)
    place = next(number for number, one in enumerate(events) if isinstance(one.event, GuardActed))
    with Journal.open(tmp_path / "cut.sqlite") as journal:
        journal.write("cut", *(one.event for one in events[: place + 1]))

    other = agent_over(World(), DOUBLE, tmp_path / "cut.sqlite")
    resumed(other, "cut")

    assert of_kind(other.journal.events("cut"), ToolReturned)[0].text == "6"


def test_a_refusal_that_was_cut_off_stays_one(tmp_path: Path) -> None:
    """Between the refusal and what the model is told of it: the call is not made when the run goes on, whoever refused it."""
    whole = agent_over(World(), SEND, tmp_path / "whole.sqlite", guard("no-mail", before_call=Refusal(reason="no")))
    events = whole.journal.events(whole.run("Do it.").run)
    place = next(number for number, one in enumerate(events) if isinstance(one.event, GuardActed))
    with Journal.open(tmp_path / "cut.sqlite") as journal:
        journal.write("cut", *(one.event for one in events[: place + 1]))
    world = World()

    other = agent_over(world, SEND, tmp_path / "cut.sqlite")

    assert resumed(other, "cut").answer.text == "Done." and world.effects == []
    assert of_kind(other.journal.events("cut"), ToolReturned)[0].text == "error: not run: guard 'no-mail' refused it: no"


def test_a_guard_asks_a_person(tmp_path: Path) -> None:
    """The run waits with the guard's reason; approved, the call is made with what was shown, and no guard is asked again."""
    asked: list[Any] = []

    def before_call(call: Any) -> Any:
        asked.append(call.arguments["number"])
        return AskFirst(reason="large sum")

    world = World()
    cap = guard("cap", before_call=ChangedArguments(arguments={"number": 3}, reason="at most 3"))
    agent = agent_over(world, [("send", {"number": 7}), "Done."], tmp_path / "r.sqlite", cap, guard(before_call=before_call))
    waits = agent.run("Do it.")

    assert waits.status == "waiting" and "send number=3: guard 'watch' asks: large sum" in waits.answer.text
    asyncio.run(decide(agent.journal, waits.run, 0, "approve"))
    assert resumed(agent, waits.run).answer.text == "Done."
    assert asked == [3] and len(world.effects) == 1


# ── around an answer, a step, the model ─────────────────────────────────────────────────────────────────────────────


def test_a_refused_answer_is_revised_and_never_given(tmp_path: Path) -> None:
    """The model is told why; an answer that is still refused after the last revision does not reach the user."""

    def no_names(answer: Any, trajectory: Any) -> Refusal | None:
        return Refusal(reason="it has a name in it") if "Smith" in answer.text else None

    plan = [("double", {"number": 4}), "Smith did it.", "Somebody did it."]
    _, result, events = worked(tmp_path, plan, guard("discreet", before_answer=no_names))
    assert result.answer.text == "Somebody did it."
    assert "rejected: guard 'discreet' refused the answer: it has a name in it" in texts(events)

    _, result, events = worked(tmp_path / "again", [("double", {"number": 4}), "Smith did it."], guard(before_answer=no_names))
    assert result.status == "partial" and "Smith" not in result.answer.text
    assert "guard 'watch' refused the answer: it has a name in it" in result.answer.reason
    assert sum(isinstance(one, VerdictGiven) for one in events) == 3
    assert all("Smith" not in one.to_json()["text"] for one in events if one.kind == "answer")


def test_an_answer_in_words_is_guarded_too(tmp_path: Path) -> None:
    """Plain content is an answer like any other."""
    agent = agent_over(World(), [], tmp_path / "r.sqlite", guard(before_answer=Refusal(reason="hush")))
    agent.model = ScriptedModel([Message(role="assistant", content="Secret words.")] * 3)

    result = agent.run("Do it.")

    assert result.status == "failed" and "Secret" not in result.answer.text


def test_what_was_found_is_withheld_where_a_guard_objects(tmp_path: Path) -> None:
    """What the framework ends with is shown to guards as well; nobody can revise it."""

    def no_eight(answer: Any, trajectory: Any) -> Refusal | None:
        return Refusal(reason="eights") if "8" in answer.text else None

    _, result, _ = worked(tmp_path, [("double", {"number": 4}), "It is 8."], guard("shy", before_answer=no_eight))

    assert result.status == "failed" and "8" not in result.answer.text
    assert "What was found is withheld: guard 'shy' refused it: eights." in result.answer.text


@pytest.mark.parametrize(("hook", "what"), [("before_step", "the next step"), ("before_model", "the next turn of the model")])
def test_a_refused_step_ends_the_work_with_what_is_known(tmp_path: Path, hook: str, what: str) -> None:
    """The answer says who refused what, and has what was found before."""

    def after_one(step: Any) -> Refusal | None:
        return Refusal(reason="that is enough") if step.calls else None

    _, result, _ = worked(tmp_path, DOUBLE, guard("stop", **{hook: after_one}))

    assert result.status == "partial" and result.answer.reason == f"guard 'stop' refused {what}: that is enough"
    assert "double number=4: 8" in result.answer.text


@pytest.mark.parametrize("decision", ["approve", "deny"])
@pytest.mark.parametrize("hook", ["before_step", "before_model", "before_answer"])
def test_what_is_no_call_waits_for_a_person_too(tmp_path: Path, hook: str, decision: Any) -> None:
    """A guard asks before a step, a turn or an answer: the run waits, and goes on as decided."""

    def asks(about: Any, *more: Any) -> AskFirst | None:
        return AskFirst(reason="look at it") if more or about.calls else None

    agent = agent_over(World(), DOUBLE, tmp_path / "r.sqlite", guard(**{hook: asks}))
    result = agent.run("Do it.")
    run = result.run
    for _ in range(2):
        assert result.status == "waiting" and "guard 'watch' asks: look at it. One of: approve, deny" in result.answer.text
        result = resumed(agent, run)
    needed = of_kind(agent.journal.events(run), DecisionNeeded)[-1]
    assert needed.about == hook.removeprefix("before_") and (hook != "before_answer" or "Done." in result.answer.text)

    asyncio.run(decide(agent.journal, run, needed.index, decision, text="" if decision == "approve" else "not today"))
    for _ in range(3):
        result = resumed(agent, run)
        if result.status != "waiting" or decision == "deny":
            break
        asyncio.run(decide(agent.journal, run, of_kind(agent.journal.events(run), DecisionNeeded)[-1].index, decision))

    if decision == "approve":
        assert result.answer.text == "Done."
    elif hook == "before_answer":
        assert "rejected: guard 'watch' asks about the answer, and the user denied it: not today" in [
            one.text for one in of_kind(agent.journal.events(run), ToolReturned)
        ]
    else:
        assert result.status == "partial" and "the user denied it: not today" in result.answer.reason


def test_every_hook_is_called_in_its_place(tmp_path: Path) -> None:
    """Around two steps with a call and an answer; what guards say afterwards is no event while nothing is wrong."""
    order: list[str] = []
    watch = guard(**{hook: lambda *about, hook=hook: order.append(hook) for hook in HOOKS})

    _, _, events = worked(tmp_path, DOUBLE, watch)

    assert " ".join(order) == (
        "before_step before_model after_model before_call after_call after_step "
        "before_step before_model after_model before_answer after_step after_answer"
    )
    assert not [one for one in events if isinstance(one, GuardActed)] and isinstance(events[-1], RunEnded)


def test_an_error_of_the_model_is_told(tmp_path: Path) -> None:
    """Guards hear of it, and it is raised as before."""
    heard = []
    agent = agent_over(World(), [], tmp_path / "r.sqlite", guard(on_model_error=lambda step, reason: heard.append(reason)))
    agent.model = ScriptedModel([])

    with pytest.raises(K2Error, match="its script has 0"):
        agent.run("Do it.")

    assert len(heard) == 1 and "its script has 0" in heard[0]


@pytest.mark.parametrize("hook", [one for one in HOOKS if one != "before_call"])
def test_a_guard_that_fails_elsewhere_is_a_warning(tmp_path: Path, hook: str) -> None:
    """At any other hook the run goes on to the same end, and the journal names the guard."""
    _, result, events = worked(tmp_path, DOUBLE, guard("shaky", **{hook: RuntimeError("no luck")}))

    assert (result.status, result.answer.text) == ("declined", "Done.")
    acted = [one for one in events if isinstance(one, GuardActed)]
    assert {(one.guard, one.hook, one.action) for one in acted} == (
        set() if hook.startswith("on_") else {("shaky", hook, "failed")}
    )


# ── the door ────────────────────────────────────────────────────────────────────────────────────────────────────────


def plugins_with(*things: Any, **more: Any) -> Plugins:
    """Plugins with guards that are registered through the hook."""

    def register_guards(register: Any) -> None:
        for thing in things:
            register(thing, **more)

    plugins = Plugins()
    plugins.add(SimpleNamespace(register_guards=hookimpl(register_guards)), name="guarding")
    return plugins


class NoMail:
    """A guard as a plugin has it."""

    name = "no-mail"

    def before_call(self, call: Any) -> Refusal | None:
        """Refuse to double."""
        return Refusal(reason="no doubles") if call.name == "double" else None


class Unmade:
    """A guard that cannot be made."""

    name = "unmade"

    def __init__(self) -> None:
        raise RuntimeError("no luck")

    def before_call(self, call: Any) -> None:
        """Never called."""


def test_guards_come_through_the_door_of_all_plugins(tmp_path: Path) -> None:
    """A class is made, an object is taken; every session has them."""
    plugins = plugins_with(NoMail)
    assert plugins.names("guard") == ("no-mail",) and plugins.reports[0].provides == (("guard", "no-mail"),)
    choice = Choice(store=tmp_path / "runs.sqlite", approve=("external",))
    with Session.open(choice, plugins=plugins, model=ScriptedModel(["Hello."])) as session:
        (one,) = session.agent.guards
        assert session.agent.started("q").options["guards"] == ["no-mail"]
        assert isinstance(one, NoMail) and session.agent.approval.classes == {"external"}


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (guard("odd", before_cal=None), "it implements no hook of guards 'before_cal'"),
        (SimpleNamespace(name="empty"), "it has none of a guard's hooks: before_step"),
        (SimpleNamespace(name="flat", before_call=3), "its before_call is int, expected a method"),
        (SimpleNamespace(before_call=print), "it registers a guard without a name"),
    ],
)
def test_what_is_no_guard_is_refused(thing: Any, reason: str) -> None:
    """A misspelt hook, none at all, or no name: the plugin is listed as failed with the reason."""
    (report,) = plugins_with(thing).reports

    assert report.status == "failed" and reason in report.reason


def test_the_guard_of_the_readme(tmp_path: Path) -> None:
    """It is what a plugin may look like, and does what the text says."""
    from k2core import tool

    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", readme, re.S) if "class Careful" in one)
    module: dict[str, Any] = {}
    exec(code, module)
    plugins = Plugins()
    plugins.add(SimpleNamespace(register_guards=module["register_guards"]), name="careful")

    @tool
    def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount} from IBAN XY12"

    plan = [("pay", {"amount": 2000}), ("pay", {"amount": 20}), "Done."]
    agent = agent_over(World(), plan, tmp_path / "runs.sqlite", *plugins.guards())
    agent.tools = Registry.of([*control_tools(), pay])
    run = agent.run("Pay.").run
    asyncio.run(decide(agent.journal, run, 1, "approve"))
    resumed(agent, run)

    found = [one.text for one in of_kind(agent.journal.events(run), ToolReturned)]
    assert found[:2] == ["error: not run: guard 'careful' refused it: more than 1000", "paid 20 from "]


def test_a_guard_that_cannot_be_made_is_missed(tmp_path: Path) -> None:
    """It is listed as failed, and no call with side effects is made without it."""
    plugins = plugins_with(Unmade)
    with capture_logs() as logs:
        guards = plugins.guards()
    assert [one["kind"] for one in logs] == ["guard"] and plugins.reports[0].status == "failed"
    plan = [("double", {"number": 4}), ("send", {"number": 1}), "Done."]

    world, result, events = worked(tmp_path, plan, *guards)

    assert result.answer.text == "Done." and world.effects == [] and texts(events)[0] == "8"
    assert texts(events)[1].startswith("error: not run: guard 'unmade' refused it: it failed: cannot make guard 'unmade'")


# ── whatever they do ────────────────────────────────────────────────────────────────────────────────────────────────


ANYTHING = st.sampled_from(
    [
        None,
        Refusal(reason="no"),
        AskFirst(reason="may I"),
        ChangedArguments(arguments={"number": 2}, reason="smaller"),
        ChangedArguments(arguments={"digits": 2}, reason="wrong"),
        ChangedResult(text="hidden", reason="secret"),
        ChangedResult(text=7, reason="no text"),  # type: ignore[arg-type]
        "nonsense",
        RuntimeError("no luck"),
        SystemExit(1),
    ]
)
PLAN = [
    ("double", {"number": 3}),
    [("put", {"number": 8}), ("note", {"text": "eight"}), ("send", {"number": 4})],
    ("book", {"number": 5}),
    ("pay", {"number": 9}),
    "The numbers are down.",
]


def _drawn(hooks: dict[str, list[Any]], *, is_async: bool) -> dict[str, Any]:
    """Hooks that do one thing after another."""

    def hook(values: list[Any]) -> Callable[..., Any]:
        left = iter(values * 20)

        def does(*about: Any) -> Any:
            value = next(left, None)
            if isinstance(value, BaseException):
                raise value
            return value

        async def later(*about: Any) -> Any:
            await asyncio.sleep(0)
            return does(*about)

        return later if is_async else does

    return {name: hook(values) for name, values in hooks.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    first=st.dictionaries(st.sampled_from(list(HOOKS)), st.lists(ANYTHING, min_size=1, max_size=4), max_size=4),
    second=st.dictionaries(st.sampled_from(list(HOOKS)), st.lists(ANYTHING, min_size=1, max_size=4), max_size=4),
    is_async=st.booleans(),
    classes=st.lists(st.sampled_from(["pure", "read", "idempotent", "reversible", "external"]), max_size=3),
    decisions=st.lists(st.sampled_from(["approve", "deny", None]), min_size=1, max_size=6),
)
def test_whatever_guards_do(
    tmp_path_factory: pytest.TempPathFactory,
    first: dict[str, list[Any]],
    second: dict[str, list[Any]],
    is_async: bool,
    classes: list[str],
    decisions: list[Any],
) -> None:
    """Every request is valid, the run ends, and each effect was refused by nobody and approved where that was needed."""
    said = itertools.cycle(decisions)

    async def asker(question: Question) -> Spoken | None:
        decision = next(said)
        return None if decision is None else Spoken(decision=decision)

    world = World()
    guards = [guard("one", **_drawn(first, is_async=is_async)), guard("two", **_drawn(second, is_async=not is_async))]
    path = tmp_path_factory.mktemp("run") / "r.sqlite"
    agent = agent_over(world, PLAN, path, *guards, approval=Approval.of(classes), asker=asker)
    result = agent.run("Which numbers?")
    for _ in range(40):
        if result.status != "waiting":
            break
        result = resumed(agent, result.run)

    events = agent.journal.events(result.run)
    assert result.status in ("declined", "partial", "failed", "unverified", "waiting")
    for name, key in world.effects:
        _see_allowed(events, name, int(key.rpartition(":")[2]), classes)
    agent.journal.close()


def _see_allowed(events: Sequence[Stored], name: str, index: int, classes: Sequence[str]) -> None:
    """Whether a call that took effect was allowed to."""
    of_call = [one.event for one in events if getattr(one.event, "index", None) == index]
    acted = [one for one in of_call if isinstance(one, GuardActed) and one.hook == "before_call"]
    assert not [one for one in acted if one.action in ("refused", "failed")]
    effect = next(one for one in of_call if isinstance(one, ToolIntent)).effect
    asked = [one for one in of_call if isinstance(one, DecisionNeeded) and one.about == "call"]
    assert bool(asked) == (effect in classes or any(one.action == "asked" for one in acted))
    if asked:
        kinds = [type(one) for one in of_call]
        decided = next(one for one in of_call if isinstance(one, CallDecided))
        assert decided.decision == "approve"
        assert kinds.index(DecisionNeeded) < kinds.index(CallDecided) < kinds.index(ToolBegun) < kinds.index(ToolReturned)
        changed = [one for one in acted if one.action == "changed"]
        assert not changed or json.loads(asked[0].arguments) == {"number": 2}
