"""The encoded wire: what a training document is, and how its messages become token ids.

The forms are those of the specification (``[wire]``); control tokens are put in by id, so no text can forge one.
"""

import json
from collections.abc import Callable
from functools import cache, lru_cache

from attrs import frozen

from k2core_nano.train.oracle import Step
from k2core_nano.train.tokenizer import CONTROL, load
from k2core_specs import load as load_spec

SPEC = load_spec("formats/nano_episode.toml")


@frozen(kw_only=True)
class Document:
    """One conversation (or copy drill) after its group's prefix."""

    ids: list[int]  # (tokens,)
    weights: list[int]  # (tokens,), the loss weight of each token as a target, 0 = none
    family: str  # under which its loss is reported


@frozen(kw_only=True)
class Group:
    """Documents of mixed families after one prefix; each attends to the prefix and to itself only."""

    prefix: list[int]  # (tokens,), no loss
    documents: list[Document]


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
    """The ids of the declaration block and the system message.

    Args:
        declarations: JSON of each declared tool, in name order.
    """
    return list(_prefix(declarations))


class Builder:
    """Collects the ids and weights of one document."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.weights: list[int] = []

    def add(self, ids: list[int] | tuple[int, ...], weight: int = 0) -> None:
        """Append ids that all have one loss weight."""
        self.ids += ids
        self.weights += [weight] * len(ids)

    def user(self, text: str) -> None:
        """A user message."""
        self.add([CONTROL["<|im_user|>"], *_fixed("user"), CONTROL["<|im_middle|>"], *encoded(text), CONTROL["<|im_end|>"]])

    def step(self, step: Step, index: int, weight: int, *, thought: bool = True) -> None:
        """An assistant step; without its thought it is history.

        Args:
            index: its call's number, counted over the whole conversation from 0.
            weight: loss weight of every token from ``<think>`` to ``<|im_end|>``.
        """
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
