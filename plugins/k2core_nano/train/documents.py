"""Training documents: groups that share the declarations of one set of tools, encoded, with a loss weight for every token."""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache

from attrs import evolve, frozen

from k2core_nano.train import arithmetic, declines, facts, names
from k2core_nano.train.oracle import Step, compared
from k2core_nano.train.questions import Question, Turn, solved
from k2core_nano.train.tokenizer import CONTROL, load
from k2core_nano.train.world import near_miss
from k2core_specs import load as load_spec

SPEC = load_spec("formats/nano_episode.toml")
PLAN_ONLY = 0.5  # share of documents cut after their first call: the plan is the hardest part
CHAIN_PLAN_ONLY = 0.35  # the same for questions of several look-ups, whose later turns are hard too
REJECTED = 0.08
SECOND_TURN = 0.06
LONGEST = 1200  # tokens of a document; with the prefix it stays inside the window
_MIX = (
    ("plus", 6.0), ("minus", 6.0), ("times", 5.5), ("divide", 4.5), ("twostep", 4.5), ("percent", 3.0),
    ("area", 2.0), ("perimeter", 2.0), ("speed", 2.0), ("change", 2.5), ("average", 3.0),
    ("fact", 10.0), ("total", 10.0), ("difference", 11.0), ("compare", 12.0),
    ("decline", 6.0), ("missing", 2.5), ("chat", 2.0), ("copy", 5.0),
)  # fmt: skip


@frozen(kw_only=True)
class Document:
    """One conversation (or copy drill) after its group's prefix."""

    ids: list[int]
    weights: list[int]  # same length; the loss weight of each token as a target, 0 = none
    family: str


@frozen(kw_only=True)
class Group:
    """Documents of mixed families after one prefix; each attends to the prefix and to itself only."""

    prefix: list[int]
    documents: list[Document]


def stream(seed: int, *, tokens: int, phase: str) -> Iterator[Group]:
    """Groups without end, the same for the same seed.

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
        if rng.random() < 0.25:
            chosen |= foreign_tools(rng)
        if phase == "copy":
            chosen = {"answer": SPEC["tools"]["answer"]} if rng.random() < 0.7 else chosen
        documents: list[Document] = []
        total = 0
        while total < tokens:
            document = drill(rng) if phase == "copy" else conversation(rng, declared)
            documents.append(document)
            total += len(document.ids)
        yield Group(prefix=prefix(tuple(chosen[name] for name in sorted(chosen))), documents=documents)


def tool_set(rng: random.Random) -> tuple[str, ...]:
    """A random set of our tools; the product's defaults are the most frequent."""
    draw = rng.random()
    if draw < 0.42:
        return tuple(SPEC["tool_sets"]["default"])
    if draw < 0.57:
        return tuple(SPEC["tool_sets"]["with_documents"])
    if draw < 0.7:
        return ("answer", "calculator", "facts")
    chances = {"calculator": 0.72, "facts": 0.72, "note": 0.4, "read": 0.3, "search": 0.3, "units": 0.4}
    return ("answer", *(name for name, chance in chances.items() if rng.random() < chance))


def foreign_tools(rng: random.Random) -> dict[str, str]:
    """One to three invented declarations that no conversation calls."""
    verbs = (
        "get",
        "set",
        "send",
        "open",
        "list",
        "play",
        "book",
        "find",
        "count",
        "draw",
        "make",
        "move",
        "stop",
        "mark",
        "plan",
    )
    things = (
        "tide",
        "mail",
        "light",
        "route",
        "photo",
        "order",
        "table",
        "song",
        "price",
        "clock",
        "door",
        "stock",
        "file",
        "room",
        "card",
    )
    made: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        verb, thing = rng.choice(verbs), rng.choice(things)
        parameters = sorted(
            rng.sample(("city", "count", "date", "id", "name", "place", "size", "time", "user", "to"), rng.randint(1, 3))
        )
        schema = {
            "additionalProperties": False,
            "properties": {name: {"type": "integer" if name in ("count", "size") else "string"} for name in parameters},
            "required": parameters,
            "type": "object",
        }
        description = rng.choice(
            ("{V} the {t}.", "{V} a {t} for the user.", "{V} {t} data.", "Use this to {v} one {t}.")
        ).format(V=verb.capitalize(), v=verb, t=thing)
        name = rng.choice((f"{verb}_{thing}", f"{thing}_{verb}", f"{verb}{thing.capitalize()}", thing))
        made[name] = compact({"function": {"description": description, "name": name, "parameters": schema}, "type": "function"})
    return made


def compact(value: object) -> str:
    """JSON without spaces, non-ASCII raw."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@cache
def _encoder() -> Callable[[str], list[int]]:
    return load().encode_ordinary


@lru_cache(maxsize=20000)
def _fixed(text: str) -> tuple[int, ...]:
    return tuple(_encoder()(text))


def encoded(text: str) -> list[int]:
    """The ids of a text without control tokens."""
    return _encoder()(text)


@lru_cache(maxsize=2000)
def _prefix(declarations: tuple[str, ...]) -> tuple[int, ...]:
    control = CONTROL
    declared = [
        control["<|im_system|>"],
        *encoded("tool_declare"),
        control["<|im_middle|>"],
        *encoded("[" + ",".join(declarations) + "]"),
        control["<|im_end|>"],
    ]
    return (
        *declared,
        control["<|im_system|>"],
        *encoded("system"),
        control["<|im_middle|>"],
        *encoded(SPEC["system"]),
        control["<|im_end|>"],
    )


def prefix(declarations: tuple[str, ...]) -> list[int]:
    """The ids of the declaration block and the system message."""
    return list(_prefix(declarations))


class Builder:
    """Collects the ids and weights of one document."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.weights: list[int] = []

    def add(self, ids: list[int] | tuple[int, ...], weight: int = 0) -> None:
        """Append ids that all have one weight."""
        self.ids += ids
        self.weights += [weight] * len(ids)

    def user(self, text: str) -> None:
        """A user message."""
        self.add([CONTROL["<|im_user|>"], *_fixed("user"), CONTROL["<|im_middle|>"], *encoded(text), CONTROL["<|im_end|>"]])

    def step(self, step: Step, index: int, weight: int, *, thought: bool = True) -> None:
        """An assistant step; without its thought it is history."""
        self.add((CONTROL["<|im_assistant|>"], *_fixed("assistant"), CONTROL["<|im_middle|>"]))
        think = encoded(step.think) if thought else []
        begun = (CONTROL["</think>"], CONTROL["<|tool_calls_section_begin|>"], CONTROL["<|tool_call_begin|>"])
        ended = (CONTROL["<|tool_call_end|>"], CONTROL["<|tool_calls_section_end|>"], CONTROL["<|im_end|>"])
        name = _fixed(f"functions.{step.tool}:{index}")
        self.add(
            [
                CONTROL["<think>"],
                *think,
                *begun,
                *name,
                CONTROL["<|tool_call_argument_begin|>"],
                *encoded(compact(step.arguments)),
                *ended,
            ],
            weight,
        )

    def result(self, tool: str, index: int, text: str) -> None:
        """A tool's result."""
        body = encoded(f"## Return of functions.{tool}:{index}\n{text}")
        self.add([CONTROL["<|im_system|>"], *_fixed(tool), CONTROL["<|im_middle|>"], *body, CONTROL["<|im_end|>"]])

    def final(self, text: str) -> None:
        """The framework's final message in a history."""
        self.add(
            [
                CONTROL["<|im_assistant|>"],
                *_fixed("assistant"),
                CONTROL["<|im_middle|>"],
                CONTROL["<think>"],
                CONTROL["</think>"],
                *encoded(text),
                CONTROL["<|im_end|>"],
            ]
        )

    def document(self, family: str) -> Document:
        """What was collected."""
        return Document(ids=self.ids, weights=self.weights, family=family)


def question(rng: random.Random, family: str, level: int | None = None) -> Question:
    """A question of any family of the specification ("missing" too: its tool is then taken as not declared).

    Args:
        level: 0, 1 or 2 for evaluation (see phrasing); None for training. For evaluation, a question
            whose tools never recover expects the answer that says so.

    Raises:
        ValueError: no such family.
    """
    asked = _question(rng, family, level)
    if level is None:
        return asked
    answer = str(solved(asked, random.Random(0))[-1].step.arguments["text"])
    return asked if asked.right(answer) else evolve(asked, expected=(), declines=(answer,))


def _question(rng: random.Random, family: str, level: int | None) -> Question:
    if family in arithmetic.FAMILIES:
        return arithmetic.question(rng, family, level)
    if family in facts.FAMILIES:
        return facts.question(rng, family, level)
    if family in ("decline", "chat"):
        return declines.question(rng, family, level)
    if family == "missing":
        return undeclared(rng, ("answer",), level)
    raise ValueError(f"no question family {family!r}")


def undeclared(rng: random.Random, declared: tuple[str, ...], level: int | None) -> Question:
    """A question for which a tool is missing from ``declared`` (which must lack calculator, facts or units)."""
    if "units" not in declared and (rng.random() < 0.25 or {"calculator", "facts"} <= set(declared)):
        return declines.conversion(rng, level)
    while True:
        asked = question(rng, rng.choice((*arithmetic.FAMILIES, *facts.FAMILIES, *facts.FAMILIES)), level)
        lacking = [tool for tool in asked.needed if tool not in declared]
        if lacking:
            return declines.without(asked, lacking[0])


def draw_question(rng: random.Random, declared: tuple[str, ...]) -> Question:
    """A training question of the mix that suits the declared tools."""
    family = rng.choices(_FAMILIES, _WEIGHTS)[0]
    if family == "missing":
        if {"calculator", "facts", "units"} <= set(declared):
            family = "decline"
        else:
            return undeclared(rng, declared, None)
    for _ in range(8):
        asked = question(rng, family)
        lacking = [tool for tool in asked.needed if tool not in declared]
        if not lacking:
            return asked
        if rng.random() < 0.12:
            return declines.without(asked, lacking[0])
        family = rng.choices(_FAMILIES[:-2], _WEIGHTS[:-2])[0]
        if family == "missing":
            family = "decline"
    return declines.without(asked, lacking[0])


_FAMILIES = tuple(family for family, _ in _MIX if family != "copy")
_WEIGHTS = tuple(weight for family, weight in _MIX if family != "copy")
_COPY_SHARE = dict(_MIX)["copy"] / sum(weight for _, weight in _MIX)


def conversation(rng: random.Random, declared: tuple[str, ...]) -> Document:
    """One document of the mix: plan-only, whole, with a rejected answer, or with an earlier question before it."""
    if rng.random() < _COPY_SHARE:
        return drill(rng)
    while True:
        document = _conversation(rng, declared)
        if len(document.ids) <= LONGEST:
            return document


def _conversation(rng: random.Random, declared: tuple[str, ...]) -> Document:
    asked = draw_question(rng, declared)
    builder = Builder()
    start = 0
    if rng.random() < SECOND_TURN:
        earlier = draw_question(rng, declared)
        builder.user(earlier.text)
        past = solved(earlier, rng)
        for turn in past:
            builder.step(turn.step, turn.index, 0, thought=False)
            builder.result(turn.step.tool, turn.index, turn.result)
        builder.final(str(past[-1].step.arguments["text"]))
        start = len(past)
    builder.user(asked.text)
    turns = solved(asked, rng, start)
    plan_only = CHAIN_PLAN_ONLY if asked.family in ("total", "difference", "compare") else PLAN_ONLY
    if rng.random() < plan_only and len(turns) > 1:
        turns = turns[:1]
    elif rng.random() < REJECTED:
        turns = with_rejection(rng, turns)
    for place, turn in enumerate(turns):
        builder.step(turn.step, turn.index, turn.step.weight)
        if place + 1 < len(turns):
            builder.result(turn.step.tool, turn.index, turn.result)
    return builder.document(asked.family)


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
    if not separator or (right not in text and " against " not in text):
        return turns
    if right.replace(".", "").replace("-", "").isdigit():
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


def drill(rng: random.Random) -> Document:
    """A copy drill: random pieces, names, numbers or expressions repeated, or a written-out comparison."""
    builder = Builder()
    if rng.random() < 0.25:
        value = _something(rng)
        other = (
            value
            if rng.random() < 0.5
            else near_miss(rng, value)
            if value[-1].isdigit() and value.replace(".", "").isdigit()
            else _something(rng)
        )
        written, same = compared(value, other)
        builder.add(encoded(f"Got {value}, want {other}:"))
        builder.add(encoded(f" {written}." + (" Right." if same else "")), 1)
        return builder.document("copy")
    if rng.random() < 0.45:
        piece = [
            rng.randrange(256, CONTROL["[BOS]"]) if rng.random() < 0.8 else rng.randrange(CONTROL["[BOS]"])
            for _ in range(rng.randint(4, 24))
        ]
        mark = encoded(rng.choice((".", ";", ":", "\n")))
    else:
        piece = encoded(rng.choice((", ", " ", "; ")).join(_something(rng) for _ in range(rng.randint(2, 5))))
        mark = encoded(rng.choice((". ", "; ", ": ", "\n", " = ")))
    builder.add([*piece, *mark])
    for _ in range(rng.choice((1, 1, 2))):
        builder.add(piece, 1)
        builder.add(mark)
    return builder.document("copy")


def _something(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return names.invented(rng, False)
    if draw < 0.45:
        return names.listed(rng, rng.choice((names.COUNTRIES, names.ELEMENTS)), False)
    if draw < 0.8:
        value = str(names.number(rng, 2, 99999))
        return arithmetic.with_decimals(rng, value) if rng.random() < 0.25 else value
    kind = rng.choice(tuple(arithmetic.KINDS.values()))
    return kind.expression.format_map(arithmetic.operands(rng, "times") | {"q": str(rng.randint(2, 999))})
