"""Training documents: conversations of the mix, in groups that share the declarations of one set of tools.

A question (`mix`) is solved by the oracle against its faulty world and encoded (`wire`) with a loss weight for every token.
"""

import random
import re
from collections.abc import Iterator, Sequence

from k2core_nano.train import chains, names
from k2core_nano.train.drills import drill
from k2core_nano.train.mix import COPY_SHARE, draw_question, question
from k2core_nano.train.oracle import Step
from k2core_nano.train.questions import Question, Turn, solved
from k2core_nano.train.tool_sets import tool_set
from k2core_nano.train.unseen import Offer, offers
from k2core_nano.train.wire import SPEC, Builder, Document, Group, prefix
from k2core_nano.train.world import NUMBER, near_miss

__all__ = ["Document", "Group", "conversation", "question", "stream", "with_rejection"]

PLAN_ONLY = 0.5  # share of documents cut after their first call: the plan is the hardest part
CHAIN_PLAN_ONLY = 0.35  # the same for questions of several look-ups, whose later turns are hard too
LATE = (
    "total", "difference", "compare", "sort", "sort-facts", "report", "search", "write", "repair", "chain-count", "chain-steps",
)  # fmt: skip
REJECTED = 0.08  # share of the others in which a wrong answer is rejected first
SECOND_TURN = 0.06  # share of documents that begin with an earlier question
OFFERED = 0.38  # share of groups that declare tools which the model has not seen
WINDOWS = 0.4  # share of chains that are long ones, of which a window is shown
LONGEST_CHAIN = 330  # calls
LONGEST = 1400  # tokens of a document; with the prefix it stays inside the window
HIDDEN = str(SPEC["results"]["hidden"])


def stream(seed: int, *, tokens: int, phase: str) -> Iterator[Group]:
    """Groups without end, the same for the same arguments on every machine.

    Args:
        seed: of everything random.
        tokens: about how many tokens the documents of one group sum to, prefix not counted.
        phase: "copy" (drills only) or "main" (the mix).

    Raises:
        ValueError: no such phase.
    """
    if phase not in ("copy", "main"):
        raise ValueError(f"cannot generate phase {phase!r}: expected 'copy' or 'main'")
    rng = random.Random(f"{phase} {seed}")
    while True:
        declared = tool_set(rng)
        chosen = {name: SPEC["tools"][name] for name in declared}
        offered = offers(rng, held_out=False, taken=tuple(SPEC["tools"])) if rng.random() < OFFERED else ()
        chosen |= {offer.name: offer.declaration for offer in offered}
        if phase == "copy":
            chosen = {"answer": SPEC["tools"]["answer"]} if rng.random() < 0.7 else chosen
        documents: list[Document] = []
        total = 0
        while total < tokens:
            document = drill(rng) if phase == "copy" else conversation(rng, declared, offered)
            documents.append(document)
            total += len(document.ids)
        yield Group(prefix=prefix(tuple(chosen[name] for name in sorted(chosen))), documents=documents)


def conversation(rng: random.Random, declared: tuple[str, ...], offered: Sequence[Offer] = ()) -> Document:
    """One document of the mix: plan-only, whole, with a rejected answer, or with an earlier question before it."""
    if rng.random() < COPY_SHARE:
        return drill(rng)
    while True:
        document = _conversation(rng, declared, offered)
        if len(document.ids) <= LONGEST:
            return document


def _conversation(rng: random.Random, declared: tuple[str, ...], offered: Sequence[Offer]) -> Document:
    asked = draw_question(rng, declared, offered)
    if asked.family in chains.FAMILIES and rng.random() < WINDOWS:
        return window(rng, asked.family)
    builder = Builder()
    start = 0
    if rng.random() < SECOND_TURN:
        earlier = draw_question(rng, declared, offered)
        builder.user(earlier.text)
        past = solved(earlier, rng)
        for turn in past:
            builder.step(turn.step, turn.index, 0, thought=False)
            builder.result(turn.step.tool, turn.index, turn.result)
        builder.final(str(past[-1].step.arguments["text"]))
        start = len(past)
    builder.user(asked.text)
    turns = solved(asked, rng, start)
    plan_only = CHAIN_PLAN_ONLY if asked.family in LATE else PLAN_ONLY
    if rng.random() < plan_only and len(turns) > 1 and turns[0].step.weight:
        turns = turns[:1]
    elif rng.random() < REJECTED:
        turns = with_rejection(rng, turns)
    for place, turn in enumerate(turns):
        builder.step(turn.step, turn.index, turn.step.weight)
        if place + 1 < len(turns):
            builder.result(turn.step.tool, turn.index, turn.result)
    return builder.document(asked.family)


def window(rng: random.Random, family: str) -> Document:
    """A part of a long chain as a full context shows it: the question and some steps, the oldest results hidden."""
    length = int(chains.SHORT * (LONGEST_CHAIN / chains.SHORT) ** rng.random())
    asked: Question = chains.question(rng, family, None, length=length)
    turns = solved(asked, rng, rng.choice((0, 0, 0, 0, rng.randint(1, 9))))
    last = len(turns) if rng.random() < 0.35 else rng.randint(min(4, len(turns)), len(turns))
    first = max(0, last - rng.randint(4, 16))
    hidden = rng.choice((0, 0, rng.randint(0, max(0, last - first - 3)))) if first else 0
    builder = Builder()
    builder.user(asked.text)
    for place, turn in enumerate(turns[first:last]):
        builder.step(turn.step, turn.index, turn.step.weight if place >= hidden else 0)
        if first + place + 1 < last:
            builder.result(turn.step.tool, turn.index, HIDDEN if place < hidden else turn.result)
    return builder.document(family)


def with_rejection(rng: random.Random, turns: list[Turn]) -> list[Turn]:
    """The same turns with a wrong answer (weight 0), its rejection and the right answer.

    They come back unchanged where nothing can be miscopied.
    """
    last = turns[-1]
    claims = last.step.arguments["claims"]
    if not isinstance(claims, list) or not claims:
        return turns
    text, claim = str(last.step.arguments["text"]), str(rng.choice(claims)["text"])
    head, separator, tail = claim.rpartition(": ") if ": " in claim else claim.rpartition(" = ")
    right = tail.split(" ")[0] if any(letter.isdigit() for letter in tail) else tail
    if not separator or right not in text:
        return turns
    if re.fullmatch(NUMBER, right):
        wrong = near_miss(rng, right)
        finding = (
            f"{head} is {right}, not {wrong}"
            if separator == " = " and rng.random() < 0.5
            else f"number {wrong} is in no result"
        )
    elif right.isalpha() and len(right) > 3:
        wrong = names.misspelt(rng, right)
        finding = f"name {wrong} is in no result"
    else:
        return turns
    if any(wrong in turn.result for turn in turns):
        return turns
    mistaken: dict[str, object] = {
        "claims": [dict(item, text=item["text"].replace(right, wrong)) if item["text"] == claim else item for item in claims],
        "text": text.replace(right, wrong),
    }
    refused = Turn(Step(last.step.think, "answer", mistaken, 0), last.index, f"rejected: {finding}")
    repaired = Step(f"Rejected: {finding}. Use {right}.", "answer", last.step.arguments, 2)
    return [*turns[:-1], refused, Turn(repaired, last.index + 1, "accepted")]
