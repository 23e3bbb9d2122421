"""The mix of question families, and a question of any family."""

import random
from collections.abc import Sequence

from attrs import evolve

from k2core_nano.train import arithmetic, chains, code, conversions, declines, facts, reports, search, sorting, unseen
from k2core_nano.train.questions import Question, solved

_MIX = (
    ("plus", 6.0), ("minus", 6.0), ("times", 5.5), ("divide", 4.5), ("twostep", 4.5), ("percent", 3.0),
    ("area", 2.0), ("perimeter", 2.0), ("speed", 2.0), ("change", 2.5), ("average", 3.0),
    ("fact", 10.0), ("total", 14.0), ("difference", 9.0), ("compare", 14.0),
    ("convert", 4.0), ("sort", 3.0), ("extreme", 2.5), ("sort-facts", 3.5), ("report", 5.0),
    ("chain-count", 3.0), ("chain-steps", 3.0), ("search", 4.0), ("write", 2.0), ("repair", 2.0),
    ("decline", 6.0), ("missing", 2.5), ("chat", 2.0), ("copy", 5.0),
)  # fmt: skip
_FAMILIES = tuple(family for family, _ in _MIX if family != "copy")
_WEIGHTS = tuple(weight for family, weight in _MIX if family != "copy")
OFFERED_SHARE = 0.62  # of the questions where tools are declared that the model has not seen: for these
UNDECLARED_SHARE = 0.12  # of those: for a tool that is not declared
DOCUMENTS_SHARE = 0.45  # of the questions where documents can be searched: by searching
WORKSPACE_SHARE = 0.6  # of the questions where there is a workspace: a function
COPY_SHARE = dict(_MIX)["copy"] / sum(weight for _, weight in _MIX)  # of the documents of the mix


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
    if family in sorting.FAMILIES:
        return sorting.question(rng, family, level)
    if family in chains.FAMILIES:
        return chains.question(rng, family, level)
    if family in search.FAMILIES:
        return search.question(rng, family, level)
    if family in code.FAMILIES:
        return code.question(rng, family, level)
    if family == conversions.FAMILY:
        return conversions.question(rng, level)
    if family == reports.FAMILY:
        return reports.question(rng, level)
    if family == unseen.FAMILY:
        return unseen.question(rng, unseen.offers(rng, held_out=level is not None), level)
    if family == unseen.NO_TOOL:
        return unseen.undeclared(rng, unseen.offers(rng, held_out=level is not None), level)
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


def draw_question(rng: random.Random, declared: tuple[str, ...], offered: Sequence[unseen.Offer] = ()) -> Question:
    """A training question of the mix that suits the declared tools: one that they can answer, or one to decline.

    Args:
        declared: names of our own tools.
        offered: tools that the model has not seen.
    """
    if offered and rng.random() < OFFERED_SHARE:
        if rng.random() < UNDECLARED_SHARE:
            return unseen.undeclared(rng, offered, None)
        return unseen.question(rng, offered, None)
    if "search" in declared and rng.random() < DOCUMENTS_SHARE:
        return search.question(rng, rng.choice(search.FAMILIES), None)
    if "run_tests" in declared and rng.random() < WORKSPACE_SHARE:
        return code.question(rng, rng.choice(code.FAMILIES), None)
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
        family = rng.choices(_FAMILIES[:-2], _WEIGHTS[:-2])[0]  # neither missing nor chat
    return declines.without(asked, lacking[0])
