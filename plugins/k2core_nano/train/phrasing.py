# ruff: noqa: E501, SIM905  (word lists and frames read best undivided)
"""A small grammar for questions: frames with alternatives, openings and closings, in three levels of novelty.

A frame is text with ``(one|other)`` alternatives, ``<macro>`` abbreviations and ``{slot}`` fields; ``=>unit`` at its end names the unit of the
answer. Level 0 draws known frames, level 1 combinations of known frames that training never draws, level 2 frames that training never draws.
"""

import itertools
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

from attrs import frozen

HELD_OUT_FRAMES = 5
OPENINGS = (
    "", "", "", "", "", "", "Please: ", "Please tell me: ", "Tell me: ", "I need to know: ", "Quick question: ", "A question: ", "Can you help me? ", "Can you help? ",
    "Hello! ", "Hi! ", "Hi, ", "Hello, ", "Hey, ", "Good morning. ", "Good evening! ", "My teacher asks: ", "My friend asks: ", "A customer asks: ", "This is for school. ",
    "This is for work. ", "Homework: ", "So, ", "Okay, ", "Ok. ", "Next question: ", "Next one: ", "One more: ", "Another one: ", "Help me with this: ", "Question: ",
    "I wonder: ", "Now this: ", "Excuse me, ", "Sorry to ask, ", "Dear agent, ", "I have a question. ", "Let us see. ", "Let me ask: ", "Just curious: ", "Again: ",
)  # fmt: skip
CLOSINGS = (
    "", "", "", "", "", "", " Thanks.", " Thank you.", " Thanks!", " Please check it.", " Please be exact.", " Please verify.", " I am in a hurry.", " Check the result.",
    " Verify it.", " No rush.", " Please.", " That is all.", " Be careful.", " Answer briefly.", " Show evidence.", " I need it today.", " It is important.", " Double check it.",
)  # fmt: skip
HELD_OUT_OPENINGS = (
    "",
    "",
    "Tell me please, ",
    "We were wondering: ",
    "My boss wants to know: ",
    "Good afternoon, one thing: ",
)
HELD_OUT_CLOSINGS = ("", "", " Many thanks!", " I appreciate it.", " Make sure it is right.")
_ALTERNATIVES = re.compile(r"\(([^()]*\|[^()]*)\)")
_MACRO = re.compile(r"<(\w+)>")
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()


@frozen
class Frame:
    """A parsed frame: fixed texts and tuples of alternatives in turn, and the unit of the answer."""

    parts: tuple[tuple[str, ...], ...]
    unit: str


@cache
def parsed(frame: str) -> Frame:
    """Split a frame (macros expanded) into its alternatives."""
    text, _, unit = frame.partition("=>")
    pieces = _ALTERNATIVES.split(text)
    return Frame(tuple((piece,) if place % 2 == 0 else tuple(piece.split("|")) for place, piece in enumerate(pieces)), unit)


def with_macros(frames: Sequence[str], macros: Mapping[str, str]) -> tuple[str, ...]:
    """Replace every ``<name>`` by its text; macros may use macros."""

    def replaced(frame: str) -> str:
        while _MACRO.search(frame):
            frame = _MACRO.sub(lambda found: macros[found[1]], frame)
        return frame

    return tuple(flat(replaced(frame)) for frame in frames)


def flat(frame: str) -> str:
    """The frame with alternatives inside alternatives multiplied out, so that none is nested."""
    text = ""
    for piece in _outermost(frame):
        if isinstance(piece, str):
            text += piece
            continue
        options: list[str] = []
        for option in piece:
            options += _every(option)
        text += f"({'|'.join(options)})"
    return text


def _every(text: str) -> list[str]:
    """Every text that the alternatives in ``text`` allow."""
    parts = [
        [piece] if isinstance(piece, str) else [choice for option in piece for choice in _every(option)]
        for piece in _outermost(text)
    ]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _outermost(text: str) -> list[str | list[str]]:
    """Plain text and groups of alternatives in turn, at the outermost level; parentheses without ``|`` are plain text."""
    pieces: list[str | list[str]] = []
    plain, place = "", 0
    while place < len(text):
        if text[place] != "(":
            plain += text[place]
            place += 1
            continue
        depth, end, options = 0, place, [""]
        while True:
            letter = text[end]
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                break
            if letter == "|" and depth == 1:
                options.append("")
            elif end > place:
                options[-1] += letter
            end += 1
        if len(options) == 1:
            plain += text[place : end + 1]
        else:
            pieces += [plain, options]
            plain = ""
        place = end + 1
    return [*pieces, plain]


def phrase(rng: random.Random, family: str, frames: Sequence[str], level: int | None) -> tuple[str, str]:
    """Draw a question's wording.

    Args:
        family: names the frames in the split of combinations.
        frames: the last HELD_OUT_FRAMES are level 2.
        level: 0, 1 or 2 for evaluation; None for training, which draws what level 0 draws.

    Returns:
        The text with its ``{slot}`` fields open, and the unit of the answer (it may name a slot).
    """
    while True:
        if level == 2:
            place = len(frames) - HELD_OUT_FRAMES + rng.randrange(HELD_OUT_FRAMES)
        else:
            place = rng.randrange(len(frames) - HELD_OUT_FRAMES)
        frame = parsed(frames[place])
        text = "".join([rng.choice(options) if len(options) > 1 else options[0] for options in frame.parts])
        if level == 2 and rng.random() < 0.5:
            opening, closing = rng.choice(HELD_OUT_OPENINGS), rng.choice(HELD_OUT_CLOSINGS)
        else:
            opening, closing = rng.choice(OPENINGS), rng.choice(CLOSINGS)
        if level != 2 and (zlib.crc32(f"{family}\n{opening}{text}{closing}".encode()) % 6 == 0) != (level == 1):
            continue
        return dressed(rng, opening, text, closing), frame.unit


def dressed(rng: random.Random, opening: str, text: str, closing: str) -> str:
    """Opening, text and closing as one message, sometimes with careless case or punctuation."""
    if opening.endswith((", ",)) and not text.startswith(("I ", "I'", "{")):
        text = text[0].lower() + text[1:]
    message = opening + text + closing
    careless = rng.random()
    if careless < 0.04 and message[0].isalpha():
        message = message[0].lower() + message[1:]
    elif careless < 0.08 and message.endswith(("?", ".")):
        message = message[:-1]
    return message


def spelled(rng: random.Random, text: str) -> str:
    """Now and then write small numbers as words and dollars with their sign."""
    if rng.random() < 0.2:
        text = re.sub(r"(?<![\d.])(\d+(?:\.\d+)?) dollars\b", r"$\1", text)
    if rng.random() < 0.06:
        text = re.sub(r"(?<![\d.,$*+/-])([2-9]|1[0-2])(?![\d.,%*+/-])", lambda found: _WORDS[int(found[1])], text)
    return text
