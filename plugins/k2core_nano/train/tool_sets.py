# ruff: noqa: SIM905  (word lists read best as text)
"""Which tools a group of training documents declares: sets of our own, and foreign ones that nothing calls."""

import random

from k2core_nano.train.wire import SPEC, compact


def tool_set(rng: random.Random) -> tuple[str, ...]:
    """The names of a random set of our tools, "answer" among them; the product's defaults are the most frequent."""
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
    """One to three invented tools that no conversation calls: name to declaration, in compact JSON with sorted keys."""
    verbs = "get set send open list play book find count draw make move stop mark plan".split()
    things = "tide mail light route photo order table song price clock door stock file room card".split()
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
