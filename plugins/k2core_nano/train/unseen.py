"""Questions for tools that a model has not seen: a quarter of the conversations declare one to four of them.

The model reads a declaration, finds the tool whose description fits the question, and writes the arguments that the question
names. Names of tools are made from the action's stem in several styles, or mean nothing, so that the description decides.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from attrs import field, frozen

from k2core_nano.train import names, phrasing
from k2core_nano.train.actions import FILES, Action, actions, too_alike, value_of
from k2core_nano.train.declines import reply_at_once
from k2core_nano.train.oracle import DECLINE, Policy, Step, Stopped, final, persist, stop
from k2core_nano.train.questions import Question
from k2core_nano.train.wire import compact
from k2core_nano.train.world import Handler

FAMILY, NO_TOOL = "unseen", "no-tool"
_RENAMED = {"string": ("value", "text", "item", "input", "target", "name"), "integer": ("value", "input", "n", "number")}


@frozen(kw_only=True)
class Offer:
    """An action as a tool that is declared.

    Attributes:
        name, description: of the tool.
        renamed: parameters that have another name in the declaration.
        declaration: compact JSON with sorted keys.
    """

    action: Action
    name: str
    description: str
    renamed: Mapping[str, str] = field(factory=dict)
    declaration: str


def offers(rng: random.Random, *, held_out: bool, taken: Sequence[str] = ()) -> tuple[Offer, ...]:
    """One to four tools of one side of the split, none of a name that is taken; now and then two that are easily confused."""
    known = actions(rng.choice(FILES), held_out)
    chosen: list[Action] = []
    count = rng.choice((1, 2, 2, 3, 3, 4))
    while len(chosen) < count:
        if chosen and rng.random() < 0.25:  # one that shares a word of its name
            words = set(chosen[-1].stem.split("_"))
            near = [
                action
                for action in known
                if action not in chosen
                and words & set(action.stem.split("_"))
                and not any(too_alike(action, other) for other in chosen)
            ]
            if near:
                chosen.append(rng.choice(near))
                continue
        action = rng.choice(known)
        if action not in chosen and not any(too_alike(action, other) for other in chosen):
            chosen.append(action)
    made: list[Offer] = []
    for action in chosen:
        one = _offer(rng, action)
        if one.name not in taken and all(one.name != other.name for other in made):
            made.append(one)
    return tuple(made) or offers(rng, held_out=held_out, taken=taken)


def question(rng: random.Random, offered: Sequence[Offer], level: int | None) -> Question:
    """A question for one of the offered tools.

    Args:
        offered: the tools that are declared.
        level: 2 asks in held-out wordings, every other in known ones; None for training.
    """
    offer = rng.choice(offered)
    action, held_out = offer.action, level is not None
    values = action.values(rng, held_out)
    text = _asked(rng, action, values, level)
    result = filled(rng, action, values, held_out)
    arguments = {
        offer.renamed.get(parameter.name, parameter.name): parameter.value(values[parameter.name])
        for parameter in action.parameters
    }
    refused = rng.random() < 0.05
    result = "error: " + rng.choice(("not allowed", "not found", "no connection", "no such entry")) if refused else result
    return Question(
        family=FAMILY,
        level=level,
        text=text,
        needed=(offer.name,),
        faults=_faults(rng),
        odd="refused" if refused else "",
        expected=() if refused else (result,),
        declines=(refusal(offer.name, result),) if refused else (),
        declares={one.name: one.declaration for one in offered},
        handlers=lambda: {one.name: _nothing for one in offered} | {offer.name: _handler(arguments, result)},
        policy=_policy(offer, arguments, values),
    )


def undeclared(rng: random.Random, offered: Sequence[Offer], level: int | None) -> Question:
    """A question for an action that none of the offered tools does: to be declined."""
    known = actions(offered[0].action.file if offered else rng.choice(FILES), level is not None)
    while True:
        action = rng.choice(known)
        if not any(action == offer.action or too_alike(action, offer.action) for offer in offered):
            break
    text = _asked(rng, action, action.values(rng, level is not None), level)
    policy = reply_at_once("No tool does this. Decline.", DECLINE)
    return Question(
        family=NO_TOOL,
        level=level,
        text=text,
        declines=(DECLINE,),
        declares={one.name: one.declaration for one in offered},
        handlers=lambda: {one.name: _nothing for one in offered},
        policy=policy,
    )


def filled(rng: random.Random, action: Action, values: Mapping[str, str], held_out: bool) -> str:
    """A result of an action: parameters by their names, ``#a-b`` a number, ``@kind`` a value of a kind."""

    def one(found: re.Match[str]) -> str:
        if found[1]:
            return values[found[1]]
        if found[2]:
            return str(rng.randint(*sorted((int(found[2]), int(found[3])))))
        return value_of(rng, action.file, found[4], held_out)

    return re.sub(r"\{(\w+)\}|#(\d+)-(\d+)|@(\w+)", one, rng.choice(action.results))


def refusal(name: str, result: str) -> str:
    """The answer where a tool refuses."""
    return f"{name} says: {result}."


def _policy(offer: Offer, arguments: Mapping[str, object], values: Mapping[str, str]) -> Callable[[], Policy]:
    def policy() -> Policy:
        given = ", ".join(f"{offer.renamed.get(name, name)} {value}" for name, value in values.items())
        think = f"Use {offer.name}: {offer.description}" + (f" {given}." if given else "")
        step = Step(think, offer.name, dict(sorted(arguments.items())), 4)
        returned = yield from persist(step, offer.name)
        if isinstance(returned, Stopped):
            return stop(returned)
        if returned.text.startswith("error: "):
            return final("Refused. Stop.", refusal(offer.name, returned.text))
        return final("Got it.", f"Result: {returned.text}", [((returned.index,), returned.text)])

    return policy


def _handler(arguments: Mapping[str, object], result: str) -> Handler:
    def handler(given: Mapping[str, object], fault: str, rng: random.Random) -> str:
        return result if dict(given) == dict(arguments) else "ok"

    return handler


def _nothing(given: Mapping[str, object], fault: str, rng: random.Random) -> str:
    return "ok"


def _offer(rng: random.Random, action: Action) -> Offer:
    words = action.stem.split("_")
    style = rng.random()
    if style < 0.55:
        name = action.stem
    elif style < 0.67:
        name = words[0] + "".join(word.capitalize() for word in words[1:])
    elif style < 0.77 and len(words) > 1:
        name = "_".join([*words[1:], words[0]])
    elif style < 0.85:
        name = rng.choice(("get", "run", "tool", "my", "do", "api")) + "_" + rng.choice(words)
    else:  # the name says nothing
        name = names.invented(rng, False).lower()
        name = "".join(letter for letter in name if letter.isascii() and letter.isalpha()) or "tool"
    renamed: dict[str, str] = {}
    if action.parameters and rng.random() < 0.12:
        parameter = rng.choice(action.parameters)
        other = rng.choice(_RENAMED.get(parameter.type, ("value", "x")))
        if all(other != one.name for one in action.parameters):
            renamed = {parameter.name: other}
    described = rng.random() < 0.3
    properties = {renamed.get(one.name, one.name): one.schema(described) for one in action.parameters}
    description = rng.choice(action.descriptions)
    schema = {
        "additionalProperties": False,
        "properties": {key: dict(sorted(own.items())) for key, own in sorted(properties.items())},
        "required": sorted(properties),
        "type": "object",
    }
    declaration = compact({"function": {"description": description, "name": name, "parameters": schema}, "type": "function"})
    return Offer(action=action, name=name, description=description, renamed=renamed, declaration=declaration)


def _asked(rng: random.Random, action: Action, values: Mapping[str, str], level: int | None) -> str:
    ask = rng.choice(action.held_out_asks if level == 2 else action.asks)
    text = "".join(rng.choice(options) for options in phrasing.parsed(ask).parts).format_map(values)
    text = text[0].upper() + text[1:]
    if level == 2 and rng.random() < 0.5:
        opening, closing = rng.choice(phrasing.HELD_OUT_OPENINGS), rng.choice(phrasing.HELD_OUT_CLOSINGS)
    else:
        opening, closing = rng.choice(phrasing.OPENINGS), rng.choice(phrasing.CLOSINGS)
    return phrasing.dressed(rng, opening, text, closing)


def _faults(rng: random.Random) -> tuple[str, ...]:
    """Failures before the result: in a quarter of the questions, rarely more than the tool is asked again."""
    if rng.random() < 0.015:
        return ("timeout",) * 4
    return tuple(rng.choice(("timeout", "busy")) for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 2))))
