"""Questions for the facts tool: one look-up, totals, differences and comparisons, with the errors that the tool really makes.

Values are random even for real countries and elements: the model must copy what the tool says, not remember.
"""

import difflib
import random
from collections.abc import Sequence
from functools import cache

from attrs import evolve

from k2core_nano.train import arithmetic, names, phrasing
from k2core_nano.train.fact_policies import policy
from k2core_nano.train.fact_wordings import (
    ARTICLES,
    ATTRIBUTES,
    COMPARE,
    DIFFERENCE,
    ENTITY_FORMS,
    FACT,
    MORE,
    MORE_DIFFERENCE,
    TOTAL,
)  # fmt: skip
from k2core_nano.train.questions import Question
from k2core_nano.train.world import Fact, evaluate
from k2core_tools.calculator import render

FAMILIES = ("fact", "total", "difference", "compare")
_SOURCES = (
    "CIA World Factbook", "CIA World Factbook", "CRC", "CRC", "CRC Handbook", "IUPAC", "Atlas", "Survey", "Census", "UN",
    "Almanac", "World Bank", "Register", "Yearbook",
)  # fmt: skip
_WITH_ARTICLE = (
    "Netherlands", "Philippines", "Maldives", "Gambia", "Seychelles", "Solomon Islands", "Comoros", "United Arab Emirates",
    "United Kingdom", "United States",
)  # fmt: skip
_ENDINGS = tuple(one for one in ARTICLES if one.startswith(" "))
_BEGINNINGS = tuple(one for one in ARTICLES if not one.startswith(" "))
_FRAMES = {"fact": FACT, "total": TOTAL, "difference": DIFFERENCE, "compare": COMPARE}


@cache
def frames(family: str, attribute: str) -> tuple[str, ...]:
    """The family's frames in the words of one attribute."""
    own = {"compare": MORE, "difference": MORE_DIFFERENCE}.get(family, ()) if ATTRIBUTES[attribute].more else ()
    return _expanded(joined(own, _FRAMES[family]), attribute)


@cache
def _expanded(frames: tuple[str, ...], attribute: str) -> tuple[str, ...]:
    words = ATTRIBUTES[attribute]
    macros = {
        "A": words.terms,
        "Q": words.direct,
        "H": words.indirect,
        "more": words.more,
        "less": words.less,
        "most": words.most,
    }
    return phrasing.with_macros(frames, macros)


def joined(own: Sequence[str], frames: Sequence[str]) -> tuple[str, ...]:
    """Both lists' frames, with what either holds out at the end: as many as of one list."""
    kept = phrasing.HELD_OUT_FRAMES
    if not own:
        return tuple(frames)
    return (*own[:-kept], *frames[:-kept], *own[-kept // 2 :], *frames[-(kept - (kept + 1) // 2) :])


def entity(rng: random.Random, kind: str, held_out: bool) -> str:
    """A name of this kind (see Attribute.kinds), mostly real where there are real ones, from one side of the split."""
    if kind == "country" and rng.random() < 0.6:
        return names.listed(rng, names.COUNTRIES, held_out)
    if kind == "element" and rng.random() < 0.75:
        name = names.listed(rng, names.ELEMENTS, held_out)
        return name.capitalize() if rng.random() < 0.15 else name
    name = names.invented(rng, held_out)
    if kind == "element":
        return name.lower() if rng.random() < 0.7 else name
    return rng.choice(ENTITY_FORMS.get(kind, ("{}",))).format(name)


def in_prose(rng: random.Random, name: str) -> str:
    """The name as a sentence has it: some take an article."""
    if name in _WITH_ARTICLE or ((name.endswith(_ENDINGS) or name.startswith(_BEGINNINGS)) and rng.random() < 0.8):
        return f"the {name}"
    return name


def row(rng: random.Random, name: str, attribute: str) -> Fact:
    """A fact with a random value in the attribute's range and a random source."""
    words = ATTRIBUTES[attribute]
    if attribute == "capital":
        value = (
            names.invented(rng, False) if rng.random() < 0.75 else f"{names.invented(rng, False)} {names.invented(rng, False)}"
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


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """One facts question with its world and oracle.

    Now and then an entity is misspelt, known under a synonym of its attribute, without the attribute, or not there at all; in
    the last two cases (and where the misspelling is nearest to another name) the right answer is that it was not found.

    Args:
        family: a name of FAMILIES.
        level: 0, 1 or 2 with names held out from training, or None for training (see phrasing.phrase).
    """
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
        if all(fresh.entity.lower() != other.entity.lower() and fresh.value != other.value for other in rows):
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
    lost, kind_of_odd = False, ""
    odd = rng.random()
    chance = 1.0 if family == "fact" else 0.4
    if odd < 0.06 * chance and len(asked[0]) > 4:
        kind_of_odd, asked[0] = "misspelt", names.misspelt(rng, asked[0])
        lost = difflib.get_close_matches(asked[0], [fact.entity for fact in world], n=1, cutoff=0.0)[0] != rows[0].entity
    elif odd < 0.13 * chance and words.synonyms:
        place = rng.randrange(count)
        kind_of_odd, world[place] = "renamed", evolve(rows[place], attribute=rng.choice(words.synonyms))
    elif odd < 0.16 * chance:
        world[0] = row(rng, rows[0].entity, rng.choice([name for name in ATTRIBUTES if name != attribute]))
        lost, kind_of_odd = True, "unknown"
    elif odd < 0.21 * chance:
        world[0] = row(rng, _unlike(rng, asked, kind, held_out), attribute)
        lost, kind_of_odd = True, "unknown"
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
    return Question(
        family=family,
        level=level,
        text=text,
        needed=("facts",) if family == "fact" else ("facts", "calculator"),
        world=tuple(world),
        faults=_faults(rng, family, count, lost),
        odd=kind_of_odd,
        expected=() if lost else _expected(family, rows, less),
        declines=(f"I could not find the {attribute} of {asked[0]}.",) if lost else (),
        policy=policy(family, attribute, asked, less=less),
    )


@cache
def _compare_frames(attribute: str, count: int) -> tuple[str, ...]:
    words = ATTRIBUTES[attribute]
    kept = [[frame for frame in own if ("{l}" in frame) == (count == 3)] for own in (MORE if words.more else (), COMPARE)]
    return _expanded(joined(*kept), attribute)


def _unlike(rng: random.Random, asked: list[str], kind: str, held_out: bool) -> str:
    while True:
        name = entity(rng, kind, held_out)
        if all(not names.is_variant(name, other) for other in asked):
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


def _expected(family: str, rows: list[Fact], less: bool) -> tuple[str, ...]:
    """What a right answer contains: the value, the result, or the winner and its value."""
    values = [fact.value for fact in rows]
    if family == "fact":
        return (values[0],)
    if family in ("total", "difference"):
        return (render(evaluate(("+" if family == "total" else "-").join(values))),)
    place = sorted(range(len(values)), key=lambda item: evaluate(values[item]) * (1 if less else -1))[0]
    return (rows[place].entity, values[place])
