"""Which tools of our own a group of training documents declares."""

import random

from k2core_nano.train.questions import Question
from k2core_nano.train.wire import SPEC


def set_of(question: Question) -> tuple[str, ...]:
    """The names of our tools that are declared for a question of evaluation."""
    name = "with_workspace" if question.files else "with_documents" if "search" in question.needed else "default"
    missing = set(question.needed) if question.family == "missing" else set()
    return tuple(tool for tool in SPEC["tool_sets"][name] if tool not in missing)


def tool_set(rng: random.Random) -> tuple[str, ...]:
    """The names of a random set of our tools, "answer" among them; the product's defaults are the most frequent."""
    draw = rng.random()
    if draw < 0.42:
        return tuple(SPEC["tool_sets"]["default"])
    if draw < 0.57:
        return tuple(SPEC["tool_sets"]["with_documents"])
    if draw < 0.67:
        return tuple(SPEC["tool_sets"]["with_workspace"])
    if draw < 0.74:
        return ("answer", "calculator", "facts")
    chances = {"calculator": 0.72, "facts": 0.72, "note": 0.4, "read": 0.3, "search": 0.3, "units": 0.4}
    return ("answer", *(name for name, chance in chances.items() if rng.random() < chance))
