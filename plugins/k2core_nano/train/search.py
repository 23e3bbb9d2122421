"""Questions over documents: one to three relations in a row, found by searching, each passage judged before the next search.

The documents are invented for each question: a few short files whose sentences state what is asked, the same of other entities,
other things of the same ones, and things that nobody asks.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cache

from attrs import frozen

from k2core_nano.train import names, phrasing
from k2core_nano.train.oracle import Policy, Returned, Step, Stopped, final, persist, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.relations import GENERAL, KINDS, MACROS, RELATIONS, VALUES, Relation
from k2core_nano.train.search_wordings import COMPARE_ASKS, COMPARE_ASKS_HELD_OUT, FILLERS, HOP_FRAMES, HOP_FRAMES_HELD_OUT
from k2core_nano.train.sorting import signed
from k2core_nano.train.world import Handler

FAMILIES = ("search", "search-compare")
RESULTS = 5  # of one search, as of the shipped tool
LONGEST = 300  # characters of a passage, as of the shipped tool
NOTHING = "no results"
_FILES = (
    "guide", "notes", "history", "visit", "about", "diary", "local", "report", "archive", "stories", "places", "people",
    "works", "index", "letters", "news",
)  # fmt: skip
_BY_SUBJECT: Mapping[str, tuple[Relation, ...]] = {
    kind: tuple(relation for relation in RELATIONS if relation.subject == kind) for kind in KINDS
}
_BY_NAME = {relation.name: relation for relation in RELATIONS}


@frozen(kw_only=True)
class Entity:
    """Something that documents speak of: its kind, its name, and the name as prose has it."""

    kind: str
    name: str
    prose: str


@frozen(kw_only=True)
class Hop:
    """One relation that has to be found: of which entity, and the value as documents have it."""

    relation: Relation
    of: Entity
    value: str
    prose: str

    @property
    def word(self) -> str:
        """The relation in the words that plan and query use."""
        return word_of(self.relation)


@frozen(kw_only=True)
class Passage:
    """A passage of the documents."""

    file: str
    line: int
    text: str


def word_of(relation: Relation) -> str:
    """A relation's name without its subject's: ``bridge_opened`` is opened, ``born_in`` is born in."""
    head, _, rest = relation.name.partition("_")
    return (rest if rest and head == relation.subject.split(" ")[0] else relation.name).replace("_", " ")


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """A question of `FAMILIES`; levels as of `phrasing.phrase`, where 2 asks in held-out words."""
    return _compared(rng, level) if family == "search-compare" else _chained(rng, level)


def _chained(rng: random.Random, level: int | None) -> Question:
    held_out = level is not None
    count = rng.choice((1, 1, 1, 2, 2, 3))
    hops = _hops(rng, count, held_out)
    text = _asked(rng, hops, level)
    lost = rng.randrange(count) if rng.random() < 0.07 else None
    passages = _documents(rng, hops, held_out, lost=None if lost is None else hops[lost])
    last = hops[-1]
    missing = "" if lost is None else not_found(hops[lost])
    return Question(
        family="search",
        level=level,
        text=text,
        needed=("search",),
        faults=_faults(rng),
        expected=() if missing else (last.value,),
        odd="unknown" if missing else "",
        declines=(missing,) if missing else (),
        handlers=lambda: {"search": searcher(passages)},
        policy=_policy(hops),
    )


def _hops(rng: random.Random, count: int, held_out: bool) -> list[Hop]:
    """Relations in a row: the value of each is the subject of the next."""
    while True:
        first = rng.choice([relation for relation in RELATIONS if count == 1 or relation.object in KINDS])
        entity, hops, relation = _entity(rng, first.subject, held_out), [], first
        taken = {entity.name}
        for place in range(count):
            hop, value = _valued(rng, relation, entity, held_out)
            if hop.value in taken:
                break
            taken.add(hop.value)
            hops.append(hop)
            if place + 1 == count:
                return hops
            onward = [
                one
                for one in _BY_SUBJECT.get(relation.object, ())
                if one.name not in (relation.inverse, *(hop.relation.name for hop in hops))
                and (place + 2 == count or one.object in KINDS)
            ]
            if value is None or not onward:
                break
            entity, relation = value, rng.choice(onward)


def _valued(rng: random.Random, relation: Relation, entity: Entity, held_out: bool) -> tuple[Hop, Entity | None]:
    if relation.object in KINDS:
        value = _entity(rng, relation.object, held_out)
        return Hop(relation=relation, of=entity, value=value.name, prose=value.prose), value
    if relation.object in ("year", "number"):
        text = str(rng.randint(relation.low, relation.high))
    else:
        text = rng.choice(VALUES[relation.object])
    return Hop(relation=relation, of=entity, value=text, prose=text), None


def _entity(rng: random.Random, kind: str, held_out: bool) -> Entity:
    pattern = rng.choice(KINDS[kind])
    prose = pattern.format(*(names.invented(rng, held_out) for _ in range(pattern.count("{}"))))
    return Entity(kind=kind, name=prose.removeprefix("the "), prose=prose)


@cache
def _frames(frames: tuple[str, ...]) -> tuple[str, ...]:
    return phrasing.with_macros(frames, MACROS)


def _drawn(rng: random.Random, frames: Sequence[str]) -> str:
    """One of the frames with its alternatives decided."""
    return "".join(rng.choice(options) for options in phrasing.parsed(rng.choice(_frames(tuple(frames)))).parts)


def _asked(rng: random.Random, hops: Sequence[Hop], level: int | None) -> str:
    """The last relation's question, in which the entity is named by the relations before it."""
    subject = hops[0].of.prose
    for hop in hops[:-1]:
        subject = _drawn(rng, hop.relation.noun).format(e=subject)
    last = hops[-1].relation
    asks = last.asks_held_out if level == 2 else last.asks
    text = capital(_drawn(rng, asks).format(e=subject))
    if rng.random() < 0.3:
        frame = _drawn(rng, HOP_FRAMES_HELD_OUT if level == 2 else HOP_FRAMES)
        return capital(frame.format(q=text, e0=hops[0].of.prose))
    opening, closing = rng.choice(phrasing.OPENINGS), rng.choice(phrasing.CLOSINGS)
    return phrasing.dressed(rng, opening, text, closing)


def capital(text: str) -> str:
    """The text with a capital at its begin and after each full stop."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda found: found[1] + found[2].upper(), text)


def _documents(rng: random.Random, hops: Sequence[Hop], held_out: bool, *, lost: Hop | None = None) -> tuple[Passage, ...]:
    """Passages in files, in the order of the files' names."""
    texts: list[str] = []
    for hop in hops:
        if hop is not lost:
            texts.append(_said(rng, hop.relation, hop.of, hop.prose))
        for _ in range(rng.choice((1, 1, 2))):  # the same of another
            other, _ = _valued(rng, hop.relation, _entity(rng, hop.of.kind, held_out), held_out)
            texts.append(_said(rng, hop.relation, other.of, other.prose))
        others = [one for one in _BY_SUBJECT[hop.of.kind] if one is not hop.relation and one not in [h.relation for h in hops]]
        for relation in rng.sample(others, min(len(others), rng.choice((0, 1, 1, 2)))):  # something else of the same
            other, _ = _valued(rng, relation, hop.of, held_out)
            texts.append(_said(rng, relation, hop.of, other.prose))
    for _ in range(rng.choice((0, 1, 2))):
        texts.append(_filler(rng, rng.choice(hops).of))
    rng.shuffle(texts)
    files = sorted(rng.sample(_FILES, rng.choice((1, 2, 2, 3))))
    passages: list[Passage] = []
    cuts = sorted(rng.sample(range(1, len(texts)), len(files) - 1)) if len(texts) > len(files) else []
    for file, start, end in zip(files, [0, *cuts], [*cuts, len(texts)], strict=False):
        line = 1
        for text in texts[start:end]:
            passages.append(Passage(file=f"{file}.md", line=line, text=text))
            line += rng.choice((2, 2, 2, 3, 4))
    return tuple(passages)


def _said(rng: random.Random, relation: Relation, of: Entity, value: str) -> str:
    while True:
        text = capital(_drawn(rng, relation.says).format(e=of.prose, v=value))
        if rng.random() < 0.2:
            text = f"{text} {_filler(rng, of)}" if rng.random() < 0.5 else f"{_filler(rng, of)} {text}"
        if len(text) <= LONGEST:
            return text


def _filler(rng: random.Random, of: Entity) -> str:
    frames = FILLERS.get(GENERAL.get(of.kind, ""), ()) or FILLERS["any"]
    return capital(_drawn(rng, frames if rng.random() < 0.6 else FILLERS["any"]).format(e=of.prose))


def _faults(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.choice(("", "", "", "", "", "", "", "timeout", "busy", "empty")) for _ in range(10))


def searcher(passages: Sequence[Passage]) -> Handler:
    """The tool ``search`` over the passages: the best by the words of the query, rare ones first, as BM25 ranks them."""
    words = [Counter(stems(f"{passage.file.removesuffix('.md')} {passage.text}")) for passage in passages]
    known = Counter(word for counted in words for word in counted)
    mean = sum(sum(counted.values()) for counted in words) / max(1, len(words))

    def handler(arguments: Mapping[str, object], fault: str, rng: random.Random) -> str:
        if fault == "empty":
            return NOTHING
        query = list(dict.fromkeys(stems(str(arguments["query"]))))
        scored = []
        for place, counted in enumerate(words):
            score = 0.0
            for word in query:
                if word in counted:
                    rarity = math.log((len(words) - known[word] + 0.5) / (known[word] + 0.5))
                    length = 0.25 + 0.75 * sum(counted.values()) / mean
                    score += max(rarity, 1e-6) * counted[word] * 2.2 / (counted[word] + 1.2 * length)
            if score:
                scored.append((-score, place))
        found = [passages[place] for _, place in sorted(scored)[:RESULTS]]
        return "\n".join(f"[{rank}] {one.file}:{one.line} {one.text}" for rank, one in enumerate(found, 1)) or NOTHING

    return handler


def stems(text: str) -> list[str]:
    """The words, in lower case and without common endings."""
    return [re.sub(r"(?<=\w{3})(?:ing|ed|es|s)$", "", word) for word in re.findall(r"\w+", text.casefold())]


def not_found(hop: Hop) -> str:
    """The answer where documents do not tell."""
    return f"I could not find the {hop.word} of {hop.of.name}."


def _policy(hops: Sequence[Hop]) -> Callable[[], Policy]:
    def policy() -> Policy:
        chain = f"{hops[0].of.name}, {', then '.join(hop.word for hop in hops)}"
        think, claims, weight = f"Plan search: {chain}.", [], 4
        for place, hop in enumerate(hops):
            found = yield from _found(hop, think, weight)
            if isinstance(found, Stopped):
                return stop(found)
            index, said = found
            claims.append(((index,), f"{hop.word} of {hop.of.name}: {hop.value}{_unit(hop)}"))
            think, weight = f"{said} Next {hops[place + 1].word} of {hop.value}." if place + 1 < len(hops) else said, 2
        last = hops[-1]
        return final(think, f"The {last.word} of {last.of.name} is {last.value}{_unit(last)}.", claims)

    return policy


def _found(hop: Hop, think: str, weight: int) -> Generator[Step, Returned, "tuple[int, str] | Stopped"]:
    """Search for one relation, then again by the name alone; the call's number, and what the passages say."""
    for query in (f"{hop.of.name} {hop.word}", hop.of.name):
        returned = yield from persist(Step(think, "search", {"query": query}, weight), query)
        if isinstance(returned, Stopped):
            return returned
        said, found = judged(hop, returned.text)
        if found:
            return returned.index, said
        think, weight = f"{said} Search {hop.of.name} alone.", 2
    return Stopped(f"{said} Nothing more. Stop.", not_found(hop))


def judged(hop: Hop, text: str) -> tuple[str, bool]:
    """What each passage says of the relation, up to the one that states it."""
    if not text.startswith("["):  # nothing was found, or the call was not carried out
        return "No results.", False
    said = []
    for line in text.split("\n"):
        rank, passage = line[1 : line.index("]")], line.partition(" ")[2].partition(" ")[2]
        if hop.of.name.casefold() not in passage.casefold():
            said.append(f"{rank} other.")
        elif not _states(hop, passage):
            said.append(f"{rank} {hop.of.name}, no {hop.word}.")
        else:
            said.append(f"{rank} {hop.of.name}, {hop.word} {hop.value}.")
            return " ".join(said), True
    return " ".join(said), False


def _states(hop: Hop, passage: str) -> bool:
    """Whether the passage is one of ours that states the relation: it has both names in one of the relation's sentences."""
    return any(pattern.search(passage) for pattern in _patterns(hop.relation, hop.of.prose, hop.prose))


@cache
def _stated(relation: str) -> tuple[str, ...]:
    """Every sentence that states a relation, its alternatives as a pattern."""
    found = []
    for frame in _frames(_BY_NAME[relation].says):
        pattern = "".join(
            re.escape(part[0]) if len(part) == 1 else f"(?:{'|'.join(map(re.escape, part))})"
            for part in phrasing.parsed(frame).parts
        )
        found.append(pattern)
    return tuple(found)


def _patterns(relation: Relation, subject: str, value: str) -> list[re.Pattern[str]]:
    filled = (
        frame.replace(r"\{e\}", re.escape(subject)).replace(r"\{v\}", re.escape(value)) for frame in _stated(relation.name)
    )
    return [re.compile(one, re.IGNORECASE) for one in filled]


def _unit(hop: Hop) -> str:
    return f" {hop.relation.unit}" if hop.relation.object == "number" else ""


def _compared(rng: random.Random, level: int | None) -> Question:
    held_out = level is not None
    relation = rng.choice([one for one in RELATIONS if (one.older and one.newer) or (one.more and one.less)])
    while True:
        hops = [_valued(rng, relation, _entity(rng, relation.subject, held_out), held_out)[0] for _ in range(2)]
        if hops[0].value != hops[1].value and hops[0].of.name != hops[1].of.name:
            break
    less = rng.random() < 0.5
    phrase = (relation.older if less else relation.newer) or (relation.less if less else relation.more)
    which = "(who|which one)" if relation.subject == "person" else f"(which|which one|which {relation.subject})"
    words = {"p": phrase, "P": phrase, "which": which, "Which": which.replace("which", "Which").replace("who", "Who")}
    asked = tuple(
        re.sub(r"<(p|P|which|Which)>", lambda found: words[found[1]], frame)
        for frame in (COMPARE_ASKS_HELD_OUT if level == 2 else COMPARE_ASKS)
    )
    text = capital(_drawn(rng, asked).format(e=hops[0].of.prose, f=hops[1].of.prose))
    passages = _documents(rng, hops, held_out)
    winner = min(hops, key=lambda hop: int(hop.value)) if less else max(hops, key=lambda hop: int(hop.value))
    return Question(
        family="search-compare",
        level=level,
        text=phrasing.dressed(rng, rng.choice(phrasing.OPENINGS), text, rng.choice(phrasing.CLOSINGS)),
        needed=("search", "calculator"),
        faults=_faults(rng),
        expected=(winner.of.name,),
        handlers=lambda: {"search": searcher(passages)},
        policy=_compare_policy(hops, less),
    )


def _compare_policy(hops: Sequence[Hop], less: bool) -> Callable[[], Policy]:
    def policy() -> Policy:
        side = "smaller" if less else "larger"
        first, second = hops
        think, claims = f"Plan search: compare {first.word}, want {side}. First {first.of.name}.", []
        for place, hop in enumerate(hops):
            found = yield from _found(hop, think, 2 if place else 4)
            if isinstance(found, Stopped):
                return stop(found)
            index, said = found
            claims.append(((index,), f"{hop.word} of {hop.of.name}: {hop.value}{_unit(hop)}"))
            think = f"{said} Next {second.of.name}." if not place else said
        expression = f"{first.value}-{second.value}"
        step = Step(f"{think} Have {expression}. Compute.", "calculator", {"expression": expression})
        returned = yield from persist(step, expression)
        if isinstance(returned, Stopped):
            return stop(returned)
        sign, of_first, of_second = signed(returned.text)
        winner = second if (sign == "negative") != less else first
        think = f"Got {returned.text}: {sign}: {first.of.name} {of_first}, {second.of.name} {of_second}."
        think += f" Want {side}: {winner.of.name} {winner.value}."
        text = f"{winner.of.name} has the {side} {winner.word}: {winner.value}{_unit(winner)}."
        return final(think, text, claims)

    return policy
