"""``k2 eval nano``: fresh questions through the whole agent, against faulty tools, beside a perfect policy.

Every question is drawn from the held-out side of the generator (names, numbers, and by level combinations or frames that
training never drew) and put to the shipped configuration: the engine, the loop, the verifiers. The oracle's policy runs beside
the model on the same results. Questions written by hand (`hand_written`) have no policy, and none of the figures that need one.

Every question is asked with masks and again without, unless one of the two is asked for. A call is *invalid* when its tool does
not exist or refuses its arguments. It is *exact* when it equals the oracle's; after the first that differs the two go separate
ways, so calls are compared up to there. A *wrong result* is one that the oracle notices and computes again; the model detected
it when it makes the same call, and raised a *false alarm* when it computes again where the oracle went on. *Recovery* from a
fault is the share of right answers among the questions that met it; a question may meet several.
"""

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, field

from k2core.agent.budget import Limits
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent, RunResult, result_of
from k2core.agent.session import Choice, open_model
from k2core.errors import UnknownName
from k2core.events import Stored, ToolReturned
from k2core.interfaces import ChatModel, GenerateOptions, Tool, Verifier
from k2core.plugins import Plugins
from k2core.testing.evaluation import EvaluationReport, EvaluationRequest
from k2core.testing.shares import Share, table
from k2core.tools import Registry
from k2core_nano import hand_written
from k2core_nano.comparing import Compared, compare
from k2core_nano.hand_written import HandWritten
from k2core_nano.posing import posed, runner, shipped_tools
from k2core_nano.train import arithmetic, chains, code, conversions, facts, reports, search, sorting, unseen
from k2core_nano.train.mix import question as draw
from k2core_nano.train.questions import Question

GROUPS = {  # as the table, --json and --family name them
    "arithmetic": tuple(arithmetic.FAMILIES),
    "conversions": (conversions.FAMILY,),
    "fact": ("fact",),
    "facts-combined": tuple(family for family in facts.FAMILIES if family != "fact"),
    "sorting": tuple(sorting.FAMILIES),
    "reports": (reports.FAMILY,),
    "search": tuple(search.FAMILIES),
    "code": tuple(code.FAMILIES),
    "unseen-tools": (unseen.FAMILY,),
    "chains": tuple(chains.FAMILIES),
    "outside": ("decline", unseen.NO_TOOL),
    "tool-missing": ("missing",),
    "chat": ("chat",),
}
LONG = {"chains-50": 50, "chains-300": 300}  # calls; only where --family names them, at the first level
LEVELS = {0: "known phrasings", 1: "unseen combinations", 2: "unseen phrasings", hand_written.LEVEL: hand_written.GROUP}
INVALID = ("error: invalid arguments", "error: no tool")  # what the registry says of a call that no tool can carry out
STREAMS = 16  # questions at once: the model computes their tokens together
LIMITS = Limits(calls=40, reasoning_tokens=4000, seconds=60.0)
LONGEST_SHORT = 20  # facts of a question that is not a long chain
LONG_LIMITS = Limits(calls=400, reasoning_tokens=40_000, seconds=600.0)


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
    seconds: float = 0.0  # of all questions, each from its begin to its end
    tokens: int = 0
    faults: dict[str, tuple[int, int]] = field(factory=dict)  # questions that met one, and right ones among them
    kinds: dict[str, tuple[int, int]] = field(factory=dict)  # the same of hand-written questions, by how they are judged
    outcomes: dict[int, str] = field(factory=dict)  # right, wrong, declined, unfinished, by the question's number
    misses: list[dict[str, Any]] = field(factory=list)


Tallies = dict[tuple[bool, str, int], Tally]  # by masks, family and level


def evaluate(plugins: Plugins, request: EvaluationRequest) -> EvaluationReport:
    """Run the evaluation.

    Args:
        plugins: where models, tools and verifiers come from.
        request: `families` are keys of `GROUPS` (all by default) or of `LONG`, or ``hand-written``; `count` questions per
            family and level, of hand-written ones the first.

    Raises:
        UnknownName: a family that does not exist.
        K2Error, Unavailable: see `hand_written.asked`.
    """
    for family in request.families:
        if family not in (known := (*GROUPS, *LONG, hand_written.GROUP)):
            raise UnknownName("family", family, known)
    chosen = request.families or tuple(GROUPS)
    written = hand_written.asked(runner(plugins), request.count) if hand_written.GROUP in chosen else ()
    model = open_model(plugins, Choice(model=request.model, backend=request.backend), progress=request.progress)
    tallies: Tallies = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = request.store or Path(folder) / "runs.sqlite"
            asyncio.run(_ask_all(plugins, model, store, request, chosen, written, tallies))
    finally:
        model.close()
    return _report(request, model, tallies)


async def _ask_all(
    plugins: Plugins,
    model: ChatModel,
    store: Path,
    request: EvaluationRequest,
    chosen: Sequence[str],
    written: Sequence[HandWritten],
    tallies: Tallies,
) -> None:
    journal, verifiers = Journal.open(store), plugins.verifiers()
    closing = ExitStack()
    shipped = shipped_tools(plugins, closing)
    code.run_unknown_with(runner(plugins))
    closing.callback(code.run_unknown_with, None)
    rows = [(*pair, level) for pair in itertools.product(request.masks, chosen) for level in _levels(pair[1])]
    counts = {hand_written.GROUP: len(written)}
    jobs = iter(listed := [(row, number) for row in rows for number in range(counts.get(row[1], request.count))])
    done = 0

    async def ask() -> None:
        nonlocal done
        for (masks, group, level), number in jobs:
            question, rng = drawn(request.seed, group, level, number, written)
            tally = tallies[masks, group, level]
            await _ask(question, model, shipped, verifiers, journal, rng, tally, number, masks=masks)
            done += 1
            if request.progress is not None:
                with_ = "with masks" if masks else "without"
                request.progress(f"eval nano: {group}, {LEVELS[level]}, {with_}", done, len(listed))

    tallies.update({row: Tally() for row in rows})
    try:
        async with asyncio.TaskGroup() as streams:
            for _ in range(STREAMS):
                streams.create_task(ask())
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        journal.close()
        closing.close()


def _levels(group: str) -> tuple[int, ...]:
    return (hand_written.LEVEL,) if group == hand_written.GROUP else (0,) if group in LONG else (0, 1, 2)


def drawn(
    seed: int, group: str, level: int, number: int, written: Sequence[HandWritten] = ()
) -> tuple[Question, random.Random]:
    """One question of a group, of those *written* by hand too, and the chance that goes on with it; nothing else decides."""
    rng = random.Random(f"{seed} {group.replace('-', ' ')} {level} {number}")  # blanks, as in figures under former names
    if group == hand_written.GROUP:
        return written[number], rng
    if group in LONG:
        return chains.question(rng, rng.choice(chains.FAMILIES), level, length=LONG[group]), rng
    return draw(rng, rng.choice(GROUPS[group]), level), rng


async def _ask(
    question: Question,
    model: ChatModel,
    shipped: Mapping[str, Tool],
    verifiers: Sequence[Verifier],
    journal: Journal,
    rng: random.Random,
    tally: Tally,
    number: int,
    *,
    masks: bool,
) -> None:
    world = question.tools(rng)
    agent = Agent(
        model=model,
        tools=Registry.of(posed(question, world, shipped)),
        verifiers=verifiers,
        journal=journal,
        limits=LIMITS if len(question.world) <= LONGEST_SHORT else LONG_LIMITS,
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
    if isinstance(question, HandWritten):  # outside the loop: it may run tests
        right = await asyncio.to_thread(question.passed, result, events)
    else:  # a decline is right where nothing else is
        right = result.status in ("answered", "declined") and question.right(result.answer.text)
    _count(tally, question, result, compared, number, right)
    for fault in {*world.used, *([question.odd] if question.odd else [])}:
        met, recovered = tally.faults.get(fault, (0, 0))
        tally.faults[fault] = met + 1, recovered + right


def _count(tally: Tally, question: Question, result: RunResult, compared: Compared, number: int, right: bool) -> None:
    finished = result.status in ("answered", "declined", "unverified")
    declined = result.status == "declined" and not right
    tally.asked += 1
    tally.outcomes[number] = "r" if right else "d" if declined else "w" if finished else "u"
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
    miss: dict[str, Any] = {"number": number, "status": result.status, "run": result.run}
    if isinstance(question, HandWritten):  # their text stays where it is
        asked, passed = tally.kinds.get(question.kind, (0, 0))
        tally.kinds[question.kind] = asked + 1, passed + right
        miss |= {"line": question.line, "kind": question.kind}
    else:
        wanted = list(question.expected or question.declines)
        miss |= {"question": question.text, "answer": result.answer.text, "expected": wanted}
    if not right:
        tally.misses.append(miss)


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
                "faults": {name: Share(right, met).to_json() for name, (met, right) in sorted(tally.faults.items())},
                "kinds": {name: Share(right, asked).to_json() for name, (asked, right) in sorted(tally.kinds.items())},
                "seconds": round(tally.seconds, 3),
                "tokens": tally.tokens,
                "outcomes": "".join(tally.outcomes[number] for number in sorted(tally.outcomes)),
                "misses": sorted(tally.misses, key=lambda miss: miss["number"])[:20],
            }
        )
    about = {"evaluation": "nano", "seed": request.seed, "count": request.count, "model": dict(model.identity())}
    return EvaluationReport(rows=tuple(rows), text=table(header, lines), json={**about, "rows": rows})
