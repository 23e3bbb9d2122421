"""Questions for the facts tool: one look-up, totals, differences and comparisons, with the errors that the tool really makes.

Values are random even for real countries and elements: the model must copy what the tool says, not remember.
"""

import difflib
import random
from collections.abc import Callable, Generator
from functools import cache

from attrs import frozen

from k2core_nano.train import arithmetic, names, phrasing
from k2core_nano.train.fact_wordings import ATTRIBUTES, COMPARE, DIFFERENCE, FACT, MORE, MORE_DIFFERENCE, TOTAL, Attribute
from k2core_nano.train.oracle import Policy, Returned, Step, Stopped, computed, final, persist, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.world import Fact, evaluate, plain

FAMILIES = ("fact", "total", "difference", "compare")
_SOURCES = (
    "CIA World Factbook",
    "CIA World Factbook",
    "CRC",
    "CRC",
    "CRC Handbook",
    "IUPAC",
    "Atlas",
    "Survey",
    "Census",
    "UN",
    "Almanac",
    "World Bank",
    "Register",
    "Yearbook",
)
_WITH_ARTICLE = (
    "Netherlands",
    "Philippines",
    "Maldives",
    "Gambia",
    "Seychelles",
    "Solomon Islands",
    "Comoros",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
)
_FRAMES = {"fact": FACT, "total": TOTAL, "difference": DIFFERENCE, "compare": COMPARE}


@frozen
class Found:
    """A looked-up value with the names under which it was found and the thought about it."""

    entity: str
    attribute: str
    value: str
    unit: str
    index: int
    think: str

    def claim(self) -> tuple[tuple[int, ...], str]:
        """The claim this look-up supports."""
        unit = f" {self.unit}" if self.unit else ""
        return (self.index,), f"{self.attribute} of {self.entity}: {self.value}{unit}"


@cache
def frames(family: str, attribute: str) -> tuple[str, ...]:
    """The family's frames in the words of one attribute."""
    words = ATTRIBUTES[attribute]
    macros = {
        "A": words.terms,
        "Q": words.direct,
        "H": words.indirect,
        "more": words.more,
        "less": words.less,
        "most": words.most,
    }
    own = {"compare": MORE, "difference": MORE_DIFFERENCE}.get(family, ()) if words.more else ()
    return phrasing.with_macros((*own, *_FRAMES[family]), macros)


def entity(rng: random.Random, kind: str, held_out: bool) -> str:
    """A name of this kind, real where there are real ones."""
    if kind == "country" and rng.random() < 0.6:
        return names.listed(rng, names.COUNTRIES, held_out)
    if kind == "element" and rng.random() < 0.75:
        name = names.listed(rng, names.ELEMENTS, held_out)
        return name.capitalize() if rng.random() < 0.15 else name
    name = names.invented(rng, held_out)
    if kind == "element":
        return name.lower() if rng.random() < 0.7 else name
    forms = {
        "mountain": ("Mount {}", "Mount {}", "{} Peak", "{}"),
        "river": ("{} River", "{} River", "River {}", "{}"),
        "lake": ("Lake {}", "Lake {}", "{}"),
    }
    return rng.choice(forms.get(kind, ("{}",))).format(name)


def in_prose(rng: random.Random, name: str) -> str:
    """The name as a sentence has it: some take an article."""
    if name in _WITH_ARTICLE or (name.endswith(" River") and rng.random() < 0.8):
        return f"the {name}"
    return name


def row(rng: random.Random, name: str, attribute: str) -> Fact:
    """A fact with a random value in the attribute's range and a random source."""
    words = ATTRIBUTES[attribute]
    if attribute == "capital":
        value = (
            names.invented(rng, False) if rng.random() < 0.9 else f"{names.invented(rng, False)} {names.invented(rng, False)}"
        )
    elif attribute == "symbol":
        value = rng.choice("ABCDEFGHIKLMNOPRSTUVWXYZ") + (rng.choice("abcdefghiklmnorstuy") if rng.random() < 0.8 else "")
    else:
        whole = int(10 ** rng.uniform(*words.decades))
        places = rng.choice(words.places)
        value = str(whole) if not places else f"{whole}.{rng.randint(0, 10**places - 1):0{places}d}".rstrip("0").rstrip(".")
        if value == "0":
            value = "0.5"
    year = str(rng.choice((2023, 2023, 2024, 2022, rng.randint(1995, 2026)))) if words.dated and rng.random() < 0.8 else ""
    return Fact(entity=name, attribute=attribute, value=value, unit=words.unit, source=rng.choice(_SOURCES), year=year)


def look_up(name: str, attribute: str, unit: str, think: str, weight: int = 2) -> Generator[Step, Returned, "Found | Stopped"]:
    """Look a value up; answer errors with a synonym or an obvious spelling, refuse a wrong unit or an impossible sign."""
    asked, wanted = attribute, name
    while True:
        step = Step(think, "facts", {"attribute": attribute, "entity": name}, weight)
        returned = yield from persist(step, f"{attribute} of {name}")
        if isinstance(returned, Stopped):
            return returned
        weight = 2
        missing = Stopped("", f"I could not find the {asked} of {wanted}.")
        text = returned.text
        if text.startswith("error: no entity"):
            near = text.partition("Nearest: ")[2].split(", ")[0]
            if not is_variant(name, near):
                return Stopped(f"No {name}. Nearest {near} is another name. Stop.", missing.answer)
            think, name = f"No {name}. Nearest {near} is one letter off. Use {near}.", near
            continue
        if text.startswith("error: no attribute"):
            known = [word for word in text.partition("Known: ")[2].split(", ") if word in ATTRIBUTES[asked].synonyms]
            if not known:
                return Stopped(f"No {attribute}. None known is the same. Stop.", missing.answer)
            think, attribute = f"No {attribute}. Known {known[0]} is the same. Use {known[0]}.", known[0]
            continue
        value = text.partition(" [")[0]
        if not unit:
            return Found(name, attribute, value, "", returned.index, f"Got {value}.")
        number, got = value.split(" ")
        if got != unit:
            think = f"Got {value}, want {unit}: differ. Ask again: {attribute} of {name}."
        elif number.startswith("-"):
            think = f"Got {value}: negative, wrong. Ask again: {attribute} of {name}."
        else:
            return Found(name, attribute, number, unit, returned.index, f"Got {value}, want {unit}: same.")


def is_variant(name: str, near: str) -> bool:
    """Whether two names are spellings of one: one letter dropped, added, exchanged, or two neighbours swapped."""
    left, right = name.lower(), near.lower()
    if left == right or sorted(left) == sorted(right):
        return True
    short, long = sorted((left, right), key=len)
    if len(long) - len(short) > 1:
        return False
    same = next((place for place, letter in enumerate(short) if letter != long[place]), len(short))
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """One facts question with its world and oracle (families: see FAMILIES; level as in phrasing.phrase)."""
    held_out = level is not None
    counted = family != "fact"
    attribute = rng.choice(
        [name for name, words in ATTRIBUTES.items() if not counted or (words.compared and (family != "total" or words.adds_up))]
    )
    if not counted and rng.random() < 0.25:
        attribute = rng.choice(("capital", "population", "area", "density"))
    words = ATTRIBUTES[attribute]
    kind = rng.choice(words.kinds)
    count = {"fact": 1, "total": rng.choice((2, 2, 3, 3, 4)), "difference": 2, "compare": rng.choice((2, 2, 3))}[family]
    rows: list[Fact] = []
    while len(rows) < count:
        fresh = row(rng, entity(rng, kind, held_out), attribute)
        if all(fresh.entity != other.entity and fresh.value != other.value for other in rows):
            rows.append(fresh)
    if family == "difference":
        rows.sort(key=lambda fact: -evaluate(fact.value))
    template, _ = phrasing.phrase(
        rng,
        f"{family} {attribute}",
        _compare_frames(attribute, count) if family == "compare" else frames(family, attribute),
        level,
    )
    asked = [fact.entity for fact in rows]
    world = list(rows)
    lost = False
    odd = rng.random()
    chance = 1.0 if family == "fact" else 0.4
    if odd < 0.06 * chance and len(asked[0]) > 4:
        asked[0] = names.misspelt(rng, asked[0])
        lost = difflib.get_close_matches(asked[0], [fact.entity for fact in world], n=1, cutoff=0.0)[0] != rows[0].entity
    elif odd < 0.13 * chance and words.synonyms:
        place = rng.randrange(count)
        fact = rows[place]
        world[place] = Fact(
            entity=fact.entity,
            attribute=rng.choice(words.synonyms),
            value=fact.value,
            unit=fact.unit,
            source=fact.source,
            year=fact.year,
        )
    elif odd < 0.16 * chance:
        world[0] = row(rng, rows[0].entity, rng.choice([name for name in ATTRIBUTES if name != attribute]))
        lost = True
    elif odd < 0.21 * chance:
        world[0] = row(rng, _unlike(rng, asked, kind, held_out), attribute)
        lost = True
    for fact in rows:
        if rng.random() < 0.3:
            other = rng.choice([name for name in ATTRIBUTES if kind in ATTRIBUTES[name].kinds])
            if other != attribute:
                world.append(row(rng, fact.entity, other))
    if rng.random() < 0.5:
        world.append(row(rng, _unlike(rng, asked, kind, held_out), attribute))
    listing = [in_prose(rng, name) for name in asked]
    last = rng.choice((" and ", " and ", " and ", " or ")) if family == "compare" and count == 3 else " and "
    slots = {"e": listing[0], "f": listing[1] if count > 1 else "", "l": ", ".join(listing[:-1]) + last + listing[-1]}
    less = family == "compare" and "=less" in template
    text = template.replace("=less", "").format_map(slots)
    text = text[0].upper() + text[1:] if text.startswith("the ") else text
    policy, expected = _oracle(family, attribute, words, asked, rows, less)
    return Question(
        family=family,
        level=level,
        text=text,
        needed=("facts",) if family == "fact" else ("facts", "calculator"),
        world=tuple(world),
        faults=_faults(rng, family, count, lost),
        expected=() if lost else expected,
        declines=(f"I could not find the {attribute} of {asked[0]}.",) if lost else (),
        policy=policy,
    )


@cache
def _compare_frames(attribute: str, count: int) -> tuple[str, ...]:
    every = frames("compare", attribute)
    return tuple(frame for frame in every if ("{l}" in frame) == (count == 3))


def _unlike(rng: random.Random, asked: list[str], kind: str, held_out: bool) -> str:
    while True:
        name = entity(rng, kind, held_out)
        if all(not is_variant(name, other) for other in asked):
            return name


def _faults(rng: random.Random, family: str, count: int, lost: bool) -> tuple[str, ...]:
    planned: list[str] = []
    if rng.random() < 0.012:
        return ("timeout",) * 4
    for _ in range(count):
        chance = 0.3 if family == "fact" else 0.2
        while rng.random() < chance and len(planned) < 8:
            planned.append(rng.choice(("timeout", "busy", "negative", "negative", "unit", "unit")))
        planned.append("")
    if lost:
        return ()
    return tuple(planned) + (arithmetic.faults(rng) if family in ("total", "difference") else ())


def _oracle(
    family: str, attribute: str, words: Attribute, asked: list[str], rows: list[Fact], less: bool
) -> tuple[Callable[[], Policy], tuple[str, ...]]:
    unit = f" {words.unit}" if words.unit else ""
    values = [fact.value for fact in rows]
    if family == "fact":
        expected: tuple[str, ...] = (values[0],)
    elif family in ("total", "difference"):
        expected = (plain(evaluate(("+" if family == "total" else "-").join(values))) or "",)
    else:
        place = sorted(range(len(values)), key=lambda item: evaluate(values[item]) * (1 if less else -1))[0]
        expected = (rows[place].entity, *values)

    def one() -> Policy:
        found = yield from look_up(asked[0], attribute, words.unit, f"Look up {attribute} of {asked[0]}.", 4)
        if isinstance(found, Stopped):
            return stop(found)
        return final(found.think, f"The {attribute} of {found.entity} is {found.value}{unit}.", [found.claim()])

    def several() -> Policy:
        think, sign = f"Plan {family} of {attribute}. First {asked[0]}.", "+" if family == "total" else "-"
        found: list[Found] = []
        for place, name in enumerate(asked):
            item = yield from look_up(name, attribute, words.unit, think, 2 if place else 4)
            if isinstance(item, Stopped):
                return stop(item)
            found.append(item)
            expression = sign.join(value.value for value in found)
            think = f"{item.think} Have {expression}." + (
                f" Next {asked[place + 1]}." if place + 1 < len(asked) else " Compute."
            )
        rest = [value.value for value in found[1:]]
        inverse = "R" + ("-" if sign == "+" else "+") + ("-" if sign == "+" else "+").join(rest)
        value = yield from computed(think, expression, inverse, found[0].value, 2)
        if isinstance(value, Stopped):
            return stop(value)
        name = f"total {attribute}" if family == "total" else "difference"
        claims = [*(item.claim() for item in found), (value.evidence, f"{expression} = {value.text}")]
        return final(value.think, f"The {name} is {value.text}{unit}.", claims)

    def compare() -> Policy:
        think, side = f"Plan compare {attribute}. First {asked[0]}.", "smaller" if less else "larger"
        found: list[Found] = []
        best = 0
        for place, name in enumerate(asked):
            item = yield from look_up(name, attribute, words.unit, think, 2 if place else 4)
            if isinstance(item, Stopped):
                return stop(item)
            found.append(item)
            if place == 0:
                think = f"{item.think} Have {item.value}. Next {asked[1]}."
                continue
            expression = f"{found[best].value}-{item.value}"
            step = Step(f"{item.think} Have {expression}. Compute.", "calculator", {"expression": expression}, 2)
            returned = yield from persist(step, expression)
            if isinstance(returned, Stopped):
                return stop(returned)
            negative = returned.text.startswith("-")
            if negative != less:
                best = place
            verdict = f"Got {returned.text}: {'negative' if negative else 'positive'}, so {found[best].entity} is {side}."
            think = verdict if place + 1 == len(asked) else f"{verdict} Have {found[best].value}. Next {asked[place + 1]}."
        winner = found[best]
        others = " and ".join(f"{item.value}{unit}" for item in found if item is not winner)
        text = f"{winner.entity} has the {side} {attribute}: {winner.value}{unit} against {others}."
        return final(think, text, [item.claim() for item in found])

    return {"fact": one, "compare": compare}.get(family, several), expected
