"""Tools of a running session by other implementations: at once where nothing changes for the model, else between questions."""

import asyncio
import io
import itertools
import json
from types import SimpleNamespace

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from swap.parts import ANSWER, call, calls, opened, plugins_with_parts, results, swaps

from k2core import hookimpl, tool
from k2core.agent import projection
from k2core.agent.loop import Agent
from k2core.agent.session import Choice, Session
from k2core.agent.swapping import SessionTools, tool_of
from k2core.cli.display import Display
from k2core.cli.screen import screen_on
from k2core.errors import InputError, PluginError, UnknownName, UsageError
from k2core.events import Stored, Swapped, ToolIntent, ToolReturned, TurnEnded
from k2core.interfaces import ToolContext
from k2core.plugins import Plugins
from k2core.testing.formats import ByteFormat
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry
from k2core_nano import WEIGHTS

needs_nano = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)


def test_a_tool_declared_alike_takes_over_at_once(tmp_path):
    """In the middle of a question the next call is the other's; declarations stay, and the log has the swap before its turn."""
    told = []

    def swapping(_messages):
        told.append(tools.use("double", "adding"))
        return call("double", number=4)

    agent, tools, _ = opened(tmp_path, [call("double", number=3), swapping, call("double", number=5), ANSWER])
    result = agent.run("Double them.")
    assert told[0].at_once
    assert str(told[0]) == "double is carried out by adding from the next call on (before: default)"
    assert results(agent, result.run) == ["6", "8 by adding", "10 by adding"]
    assert len({json.dumps(one.tools) for one in agent.model.requests}) == 1
    (swap,) = swaps(agent, result.run)
    assert (swap.what, swap.name, swap.old, swap.new, swap.same_prompt) == ("tool", "double", "default", "adding", True)
    events = [one.event for one in agent.journal.events(result.run)]
    turn, following = events[events.index(swap) + 1 :][:2]
    assert isinstance(turn, TurnEnded) and isinstance(following, ToolIntent)
    assert json.loads(following.arguments) == {"number": 4}


def test_a_tool_declared_otherwise_waits_for_the_next_question(tmp_path):
    """The question goes on with the old tool and the old declaration; the next one has the new, and its log says so first."""

    def swapping(_messages):
        told = tools.use("double", "words")
        assert not told.at_once and "it waits for the next question (until then: default)" in str(told)
        return call("double", number=4)

    turns = [swapping, call("double", number=5), ANSWER, call("double", number=6), ANSWER, call("double", number=7), ANSWER]
    agent, tools, _ = opened(tmp_path, turns)
    run = agent.run("Double them.").run
    assert results(agent, run) == ["8", "10"] and swaps(agent, run) == []
    assert tools.implementations()["double"][0] == "default"
    agent.run("Double another.", run=run)
    assert results(agent, run) == ["8", "10", "12 in other words"]
    declared = [json.dumps(one.tools) for one in agent.model.requests]
    assert len(set(declared[:3])) == 1 and len(set(declared[3:])) == 1 and declared[0] != declared[3]
    (swap,) = swaps(agent, run)
    assert (swap.new, swap.same_prompt) == ("words", False)
    kinds = [one.event.kind for one in agent.journal.events(run)]
    assert kinds[kinds.index("swapped") - 1] == "message" and kinds[kinds.index("swapped") + 1] == "turn"
    assert not tools.use("double", "default").at_once
    agent.run("And another.", run=run)
    assert results(agent, run)[-1] == "14" and [one.same_prompt for one in swaps(agent, run)] == [False, False]


def test_a_swap_that_waits_is_forgotten_by_the_next_one(tmp_path):
    """Who thinks better of it before the next question has nothing swapped."""
    agent, tools, _ = opened(tmp_path, [call("double", number=1), ANSWER])
    assert not tools.use("double", "words").at_once
    assert str(tools.use("double", "default")) == "double is carried out by default already"
    run = agent.run("Double it.").run
    assert results(agent, run) == ["2"] and swaps(agent, run) == []


def test_a_call_is_carried_out_by_whom_its_intent_was_logged_for(tmp_path):
    """A swap between an intent and its call is for the next call: what the log says of effects stays true."""

    async def ask():
        async for item in agent.stream("Double them."):
            if isinstance(item, Stored) and isinstance(item.event, ToolIntent) and item.event.name == "double":
                tools.use("double", "sending")
                seen.append(item.run)

    seen = []
    both = calls(("double", {"number": 1}), ("double", {"number": 2}))
    agent, tools, _ = opened(tmp_path, [both, call("answer", text="Done.", claims=[])])
    asyncio.run(ask())
    events = [one.event for one in agent.journal.events(seen[0])]
    effects = [one.effect for one in events if isinstance(one, ToolIntent) and one.name == "double"]
    assert results(agent, seen[0]) == ["2", "4 sent"] and effects == ["pure", "external"]
    order = [one.kind for one in events if isinstance(one, Swapped | ToolIntent | ToolReturned)]
    assert order[:5] == ["tool.intent", "tool.result", "swapped", "tool.intent", "tool.result"]


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.tuples(st.sampled_from(["shifting", "default", "words", None]), st.booleans()), min_size=1, max_size=6)
)
def test_swaps_never_change_what_the_model_is_shown_within_a_question(tmp_path_factory, places):
    """Wherever tools are swapped, the prompts of a question are those of the question without swaps, to the last token id.

    One that is declared in other words among them: it waits.
    """

    def script(swapping):
        def turn(place, number):
            def said(_messages):
                if swapping and place is not None:
                    tools.use("double", place)
                return call("double", number=number)

            return said

        return [*(turn(place, number) for number, (place, _) in enumerate(places)), ANSWER]

    prompts, projections = [], []
    for swapping in (False, True):
        agent, tools, _ = opened(tmp_path_factory.mktemp("swap"), script(swapping))

        async def ask(agent=agent, tools=tools, swapping=swapping):
            number, run = 0, ""
            async for item in agent.stream("Double them."):
                run = item.run if isinstance(item, Stored) else run
                if swapping and isinstance(item, Stored) and isinstance(item.event, ToolReturned) and number < len(places):
                    place, after_call = places[number]  # also between a result and the next turn
                    if after_call and place is not None:
                        tools.use("double", place)
                    number += 1
            return run

        run = asyncio.run(ask())
        prompts.append([ByteFormat().render(one.messages, one.tools) for one in agent.model.requests])
        projections.append(projection.messages(agent.journal.events(run)))
        logged = swaps(agent, run)
        assert all(one.old != one.new and one.same_prompt for one in logged)
        assert all(first.new == second.old for first, second in itertools.pairwise(logged))
    assert prompts[0] == prompts[1] and projections[0] == projections[1]


@needs_nano
def test_the_cache_is_as_warm_as_without_a_swap(tmp_path):
    """Turn by turn as many tokens are cached and computed as without, where the tool is declared alike; not where it is not."""

    def described(description):
        def make(context):
            shipped = Plugins.discover().tools(context, ["calculator"])[0]
            return evolve(shipped, description=description or shipped.description)

        return make

    class More:
        @hookimpl
        def register_tools(self, register):
            register(described(""), name="alike", implements="calculator")
            register(described("Works out sums."), name="otherwise", implements="calculator")

    plugins = Plugins.discover()
    assert plugins.add(More(), name="more").status == "loaded"
    questions = ("What is 23 times 47?", "What is 12 plus 30?")
    counts = {}
    for swap in (None, "alike", "otherwise"):
        choice = Choice(store=tmp_path / f"{swap}.sqlite", drafts=0)  # guesses also leave tokens in the cache
        with Session.open(choice, plugins=plugins) as session:
            first = session.agent.run(questions[0])
            if swap is not None:
                assert session.tools.use("calculator", swap).at_once == (swap == "alike")
            second = session.agent.run(questions[1], run=first.run)
            turns = [one.event for one in session.agent.journal.events(first.run) if isinstance(one.event, TurnEnded)]
            counts[swap] = [(one.token_ids, one.usage.cached_tokens, one.usage.prompt_tokens) for one in turns]
            assert second.status == "answered" or swap == "otherwise", second
    assert counts[None] == counts["alike"]
    after = len(counts[None]) // 2
    assert counts["otherwise"][after][1] < counts[None][after][1]


def test_a_run_that_is_continued_elsewhere_says_who_carries_tools_out_there(tmp_path):
    """Another session's default after a swap is a swap back, and whether the prompt changed is told by what was declared."""
    for implementation, same in (("adding", True), ("words", False)):
        agent, tools, _ = opened(tmp_path, [ANSWER, ANSWER])
        tools.use("double", implementation)
        run = agent.run("hi").run
        other, _, _ = opened(tmp_path, [ANSWER, ANSWER])
        other.run("hi", run=run)
        other.run("hi", run=run)
        assert [(one.old, one.new, one.same_prompt) for one in swaps(other, run)] == [
            ("default", implementation, same),
            (implementation, "default", same),
        ]
        without = Agent(model=ScriptedModel(["Hello."]), tools=Registry.of([]), journal=other.journal)
        without.run("hi", run=run)
        assert len(swaps(other, run)) == 2  # it has no such tool


@pytest.mark.parametrize(
    ("names", "kind", "complaint"),
    [
        (("duble", "adding"), UnknownName, "Did you mean 'double'"),
        (("double", "ading"), UnknownName, "Known: adding, default, needy, sending, shifting, words. Did you mean 'adding'"),
        (("double", "needy"), UsageError, "needs --docs FOLDER"),
        (("answer", "adding"), InputError, "the agent's own"),
    ],
)
def test_what_cannot_be_swapped_is_one_line(tmp_path, names, kind, complaint):
    """The nearest name, the need that is not met, and the agent's own tools; everything stays as it was."""
    _, tools, _ = opened(tmp_path, [])
    with pytest.raises(kind, match=complaint) as error:
        tools.use(*names)
    assert "\n" not in str(error.value)
    known = ("default", "adding", "needy", "sending", "shifting", "words")
    assert tools.implementations() == {"double": ("default", known)}


def test_a_tool_that_is_not_there_for_want_of_a_folder_says_so(tmp_path):
    """Without documents a session has no search: what is missing is told, and not that there is no such tool."""
    with (
        Session.open(Choice(store=tmp_path / "r.sqlite"), model=ScriptedModel([])) as session,
        pytest.raises(UsageError, match="tool 'search' needs --docs FOLDER"),
    ):
        session.tools.use("search", "tantivy")


def test_a_swap_waits_for_every_question_that_is_worked_on(tmp_path):
    """Questions may overlap: what would change a prompt holds when none of them is left."""
    turns = [call("double", number=1), ANSWER, call("double", number=2), ANSWER, call("double", number=3), ANSWER]

    async def overlapping():
        first = agent.stream("One.")
        begun = await anext(first)
        assert not tools.use("double", "words").at_once
        for question in ("Two.", "Three."):
            other = await agent.ask(question)
            runs.append(other.run)
        runs.insert(0, begun.run)
        async for _ in first:
            pass

    runs = []
    agent, tools, _ = opened(tmp_path, [*turns, call("double", number=4), ANSWER])
    asyncio.run(overlapping())
    runs.append(agent.run("Four.").run)
    assert sorted(text for run in runs for text in results(agent, run)) == ["2", "4", "6", "8 in other words"]
    assert [len(swaps(agent, run)) for run in runs] == [0, 0, 0, 1]


def test_each_implementation_is_made_once_and_the_first_is_kept(tmp_path):
    """Going to and fro opens nothing twice: a tool may hold a process, an index or variables."""
    made = []

    def counting(context):
        made.append(context)

        @tool(effect="pure", name="double")
        def counted(number: int) -> str:
            """Twice a number."""
            return ""

        return counted

    class Counting:
        @hookimpl
        def register_tools(self, register):
            register(counting, name="counting", implements="double")

    plugins = plugins_with_parts()
    assert plugins.add(Counting(), name="counting").status == "loaded"
    _, tools, _ = opened(tmp_path, [])
    tools = SessionTools(registry=tools.registry, plugins=plugins, context=ToolContext(), swaps=tools.swaps)
    first = tools.registry.get("double")
    for _ in range(3):
        tools.use("double", "counting")
        tools.use("double", "default")
    assert len(made) == 1 and tools.registry.get("double") is first


@pytest.mark.parametrize(
    ("hook", "implements", "complaint"),
    [
        ("register_tokenizers", "kimi", "known for tools and verifiers"),
        ("register_tools", "double", "'double/same', which plugin 'taken' has registered already"),
        ("register_verifiers", "polite", "'polite/same', which plugin 'taken' has registered already"),
        ("register_tools", "answer", "reserved"),
    ],
)
def test_what_cannot_be_another_implementation_is_refused(hook, implements, complaint):
    """Of kinds that have none, of the agent's own tools, and of a name that is taken; the plugin is listed with the reason."""

    def twice(register):
        for _ in range(2):
            register("some_module:thing", name="same", implements=implements)

    twice.__name__ = hook
    report = plugins_with_parts().add(SimpleNamespace(**{hook: hookimpl(twice)}), name="taken")
    assert report.status == "failed" and complaint in report.reason


def test_a_tool_of_another_name_is_no_implementation():
    """What a factory makes must be the tool that it implements."""

    @tool(effect="pure")
    def halve(number: int) -> str:
        """Half a number."""
        return str(number / 2)

    class Wrong:
        @hookimpl
        def register_tools(self, register):
            register(lambda context: halve, name="wrong", implements="double")

    plugins = plugins_with_parts()
    plugins.add(Wrong(), name="wrong")
    with pytest.raises(PluginError, match="is named 'halve'"):
        tool_of(plugins, "double/wrong", ToolContext())


def test_people_see_swaps():
    """Live and in the log a swap is one line, with why a later one had waited."""
    out = io.StringIO()
    for same in (True, False):
        event = Swapped(what="tool", name="search", old="default", new="tantivy", same_prompt=same)
        Display(screen=screen_on(out)).show(Stored(run="r", sequence=3, time="", event=event))
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["swap", "swap"]
    assert all("tool search is carried out by tantivy from here on (before: default)" in line for line in lines)
    assert ["it waited for this question" in line for line in lines] == [False, True]
