"""``k2 eval nano``: fresh questions through the whole agent, against faulty tools, beside a perfect policy.

Every question is drawn from the held-out side of the generator (names, numbers, and by level combinations or frames that
training never drew) and put to the shipped configuration: the engine, the loop, the verifiers. The oracle's policy runs beside
the model on the same results.

Every question is asked with masks and again without, unless one of the two is asked for. A call is *invalid* when its tool does
not exist or refuses its arguments. It is *exact* when it equals the oracle's; after the first that differs the two go separate
ways, so calls are compared up to there. A *wrong result* is one that the oracle notices and computes again; the model detected
it when it makes the same call, and raised a *false alarm* when it computes again where the oracle went on.
"""

import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

from k2core.agent.budget import Limits
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult, result_of
from k2core.agent.session import Choice, open_model, session_tools
from k2core.errors import ToolError, UnknownName
from k2core.events import Stored, ToolIntent, ToolReturned
from k2core.interfaces import ChatModel, GenerateOptions, Tool, Verifier
from k2core.plugins import Plugins
from k2core.testing.evaluation import EvaluationReport, EvaluationRequest
from k2core.testing.shares import Share, table
from k2core.tools import Registry
from k2core_nano.train import arithmetic, facts
from k2core_nano.train.documents import question as draw
from k2core_nano.train.oracle import Returned, Step
from k2core_nano.train.questions import Question
from k2core_nano.train.world import World

GROUPS = {  # as the table, --json and --family name them
    "arithmetic": tuple(arithmetic.FAMILIES),
    "fact": ("fact",),
    "facts-combined": tuple(family for family in facts.FAMILIES if family != "fact"),
    "outside": ("decline",),
    "tool-missing": ("missing",),
    "chat": ("chat",),
}
LEVELS = {0: "known phrasings", 1: "unseen combinations", 2: "unseen phrasings"}
INVALID = ("error: invalid arguments", "error: no tool")  # what the registry says of a call that no tool can carry out
LIMITS = Limits(calls=40, reasoning_tokens=4000, seconds=60.0)


@define(kw_only=True)
class Tally:
    """Counts of one family and level."""

    asked: int = 0
    right: int = 0
    wrong: int = 0
    declined: int = 0
    unfinished: int = 0
    calls: int = 0
    calls_exact: int = 0
    calls_made: int = 0
    calls_invalid: int = 0
    wrong_results: int = 0
    detected: int = 0
    good_results: int = 0
    false_alarms: int = 0
    seconds: float = 0.0
    tokens: int = 0
    misses: list[dict[str, Any]] = field(factory=list)


Tallies = dict[tuple[bool, str, int], Tally]  # by masks, family and level


@frozen(kw_only=True)
class Compared:
    """How a run's calls compare with the oracle's on the same results."""

    calls: int
    exact: int
    wrong_results: int
    detected: int
    good_results: int
    false_alarms: int


def evaluate(plugins: Plugins, request: EvaluationRequest) -> EvaluationReport:
    """Run the evaluation.

    Args:
        plugins: where models, tools and verifiers come from.
        request: `families` are keys of `GROUPS` (all by default); `count` questions per family and level.

    Raises:
        UnknownName: a family that does not exist.
    """
    for family in request.families:
        if family not in GROUPS:
            raise UnknownName("family", family, GROUPS)
    chosen = request.families or tuple(GROUPS)
    model = open_model(plugins, Choice(model=request.model, backend=request.backend), progress=request.progress)
    tallies: Tallies = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = request.store or Path(folder) / "runs.sqlite"
            asyncio.run(_ask_all(plugins, model, store, request, chosen, tallies))
    finally:
        model.close()
    return _report(request, model, tallies)


async def _ask_all(
    plugins: Plugins,
    model: ChatModel,
    store: Path,
    request: EvaluationRequest,
    chosen: Sequence[str],
    tallies: Tallies,
) -> None:
    journal, verifiers = Journal.open(store), plugins.verifiers()
    closing = ExitStack()
    shipped = session_tools(plugins, Choice(), closing)
    rows = list(itertools.product(request.masks, chosen, LEVELS))
    total, done = len(rows) * request.count, 0
    try:
        for masks, group, level in rows:
            tally = tallies.setdefault((masks, group, level), Tally())
            for number in range(request.count):
                # blanks: the questions stay those of figures taken under the former names
                rng = random.Random(f"{request.seed} {group.replace('-', ' ')} {level} {number}")
                question = draw(rng, rng.choice(GROUPS[group]), level)
                await _ask(question, model, shipped, verifiers, journal, rng, tally, masks=masks)
                done += 1
                if request.progress is not None:
                    with_ = "with masks" if masks else "without"
                    request.progress(f"eval nano: {group}, {LEVELS[level]}, {with_}", done, total)
    finally:
        journal.close()
        closing.close()


async def _ask(
    question: Question,
    model: ChatModel,
    shipped: Sequence[Tool],
    verifiers: Sequence[Verifier],
    journal: Journal,
    rng: random.Random,
    tally: Tally,
    *,
    masks: bool,
) -> None:
    world = question.tools(rng)
    missing = set(question.needed) if question.family == "missing" else set()
    tools = [in_world(tool, world) for tool in shipped if tool.name not in missing]
    agent = Agent(
        model=model,
        tools=Registry.of(tools),
        verifiers=verifiers,
        journal=journal,
        limits=LIMITS,
        options=GenerateOptions(max_tokens=400, temperature=model.profile.temperature, masks=masks),
    )
    started = time.perf_counter()
    events = [item async for item in agent.stream(question.text) if isinstance(item, Stored)]
    tally.seconds += time.perf_counter() - started
    result = result_of(events)
    compared = compare(question, events)
    returned = [stored.event for stored in events if isinstance(stored.event, ToolReturned)]
    tally.calls_made += len(returned)
    tally.calls_invalid += sum(not one.ok and one.text.startswith(INVALID) for one in returned)
    _count(tally, question, result, compared)


def in_world(tool: Tool, world: World) -> Tool:
    """The shipped tool's declaration over the question's world; other tools stay as they are."""
    if tool.name not in ("calculator", "facts"):
        return tool

    def function(**arguments: Any) -> str:
        text = world.call(tool.name, arguments)
        if text.startswith("error: "):
            raise ToolError(text.removeprefix("error: "))
        return text

    return evolve(tool, function=function)


def compare(question: Question, events: Sequence[Stored]) -> Compared:
    """Walk the oracle along the run's calls and results, up to the first call that differs."""
    intents = [stored.event for stored in events if isinstance(stored.event, ToolIntent)]
    results = {stored.event.index: stored.event.text for stored in events if isinstance(stored.event, ToolReturned)}
    calls = exact = wrong = detected = good = alarms = 0
    policy = question.policy()
    step, final = _advance(policy, None)
    for intent in intents:
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
        alarms += went_on and intent.name == "calculator"
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


def _count(tally: Tally, question: Question, result: RunResult, compared: Compared) -> None:
    text = result.answer.text
    finished = result.status in ("answered", "declined", "unverified")
    right = result.status in ("answered", "declined") and question.right(text)  # a decline is right where nothing else is
    declined = result.status == "declined" and not right
    tally.asked += 1
    tally.right += right
    tally.declined += declined
    tally.unfinished += not finished
    tally.wrong += finished and not right and not declined
    tally.calls += compared.calls
    tally.calls_exact += compared.exact
    tally.wrong_results += compared.wrong_results
    tally.detected += compared.detected
    tally.good_results += compared.good_results
    tally.false_alarms += compared.false_alarms
    tally.tokens += result.tokens
    if not right:
        wanted = list(question.expected or question.declines)
        tally.misses.append(
            {"question": question.text, "answer": text, "status": result.status, "expected": wanted, "run": result.run}
        )


def _report(request: EvaluationRequest, model: ChatModel, tallies: Tallies) -> EvaluationReport:
    header = (
        "masks",
        "family",
        "level",
        "asked",
        "right",
        "wrong",
        "declined",
        "unfinished",
        "calls exact",
        "calls invalid",
        "wrong results noticed",
        "false alarms",
    )
    lines, rows = [], []
    for (masks, group, level), tally in tallies.items():
        shares = {
            "right": Share(tally.right, tally.asked),
            "wrong": Share(tally.wrong, tally.asked),
            "declined": Share(tally.declined, tally.asked),
            "unfinished": Share(tally.unfinished, tally.asked),
            "calls_exact": Share(tally.calls_exact, tally.calls),
            "calls_invalid": Share(tally.calls_invalid, tally.calls_made),
            "wrong_results_noticed": Share(tally.detected, tally.wrong_results),
            "false_alarms": Share(tally.false_alarms, tally.good_results),
        }
        lines.append(
            ("yes" if masks else "no", group, LEVELS[level], str(tally.asked), *(str(share) for share in shares.values()))
        )
        rows.append(
            {
                "masks": masks,
                "family": group,
                "level": level,
                "asked": tally.asked,
                **{name: share.to_json() for name, share in shares.items()},
                "seconds": round(tally.seconds, 3),
                "tokens": tally.tokens,
                "misses": tally.misses[:20],
            }
        )
    about = {"evaluation": "nano", "seed": request.seed, "count": request.count, "model": dict(model.identity())}
    return EvaluationReport(rows=tuple(rows), text=table(header, lines), json={**about, "rows": rows})
