"""Questions that must not reach a tool: outside the tools' world, a tool that is not declared, or no question at all."""

import random
from collections.abc import Callable

from k2core_nano.train import facts, names, phrasing
from k2core_nano.train.decline_wordings import CHAT, CONVERT, OUTSIDE, WORDS
from k2core_nano.train.oracle import DECLINE, Policy, final
from k2core_nano.train.questions import Question
from k2core_nano.train.wordings import GOODS

UNITS = (
    ["km", "m", "cm", "mm", "miles", "feet", "inches", "yards"],
    ["kg", "g", "pounds", "ounces", "tons", "mg"],
    ["hours", "minutes", "seconds", "days", "weeks"],
    ["liters", "ml", "gallons", "pints"],
    ["celsius", "fahrenheit", "kelvin"],
)


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """A question to decline ("decline") or a message to answer with a short reply ("chat")."""
    held_out = level is not None
    picks = {key: rng.choice(options) for key, options in WORDS.items()}
    some = facts.entity(rng, rng.choice(("country", "country", "element", "town", "mountain", "river", "lake")), held_out)
    slots = dict(
        picks,
        e=some,
        w=names.person(rng, held_out),
        v=names.person(rng, held_out),
        n=str(rng.randint(2, 20)),
        thing2=rng.choice(WORDS["thing"]),
        code2=rng.choice(WORDS["code"]),
        g=rng.choice(GOODS),
    )
    reply, think = DECLINE, "No tool knows this. Decline."
    if family == "chat":
        reply = rng.choice(tuple(CHAT))
        template, think = _chat(rng, CHAT[reply], level), "No question. Reply."
    else:
        template, _ = phrasing.phrase(rng, family, OUTSIDE, level)
    return Question(
        family=family, level=level, text=template.format_map(slots), declines=(reply,), policy=reply_at_once(think, reply)
    )


def _chat(rng: random.Random, frames: tuple[str, ...], level: int | None) -> str:
    chosen = frames[-phrasing.HELD_OUT_FRAMES :] if level == 2 else frames[: -phrasing.HELD_OUT_FRAMES]
    text = "".join(rng.choice(options) for options in phrasing.parsed(rng.choice(chosen)).parts)
    return text.lower() if rng.random() < 0.15 and "{" not in text else text


def conversion(rng: random.Random, level: int | None) -> Question:
    """A conversion, to be declined where ``units`` is not declared."""
    unit, other = rng.sample(rng.choice(UNITS), 2)
    template, _ = phrasing.phrase(rng, "convert", CONVERT, level)
    text = template.format_map({"n": str(names.number(rng, 2, 5000)), "u": unit, "u2": other})
    return without(Question(family="convert", level=level, text=text, needed=("units",), policy=reply_at_once("", "")), "units")


def without(question: Question, tool: str) -> Question:
    """The same question where a tool it needs is not declared."""
    policy = reply_at_once(f"This needs {tool}, not declared. Decline.", DECLINE)
    return Question(
        family="missing", level=question.level, text=question.text, needed=question.needed, declines=(DECLINE,), policy=policy
    )


def reply_at_once(think: str, reply: str) -> Callable[[], Policy]:
    """A policy of one step: the answer without claims."""

    def policy() -> Policy:
        yield from ()
        return final(think, reply, weight=3)

    return policy
