"""Cutting a document into passages of a few lines."""

import re

from attrs import frozen

PASSAGE = 300  # characters that a passage should not exceed
_HEADING = re.compile(r"#{1,6}\s+(.*)")


@frozen(kw_only=True)
class Passage:
    """A few consecutive lines.

    Attributes:
        line: number of the first line, from 1.
        text: the lines, joined by single spaces.
        context: headings above it, which a search also looks at.
    """

    line: int
    text: str
    context: str = ""


def cut(text: str) -> list[Passage]:
    """Passages of *text* in order: paragraphs, divided where they grow beyond 300 characters; a heading stays with what
    follows it.
    """
    passages: list[Passage] = []
    lines: list[str] = []
    first, length, headings_only, context = 1, 0, True, ""

    def flush() -> None:
        nonlocal lines, length, headings_only
        if lines:
            passages.append(Passage(line=first, text=" ".join(lines), context=context))
        lines, length, headings_only = [], 0, True

    for number, raw in enumerate(text.split("\n"), 1):
        line = " ".join(raw.split())
        if not line:
            if not headings_only:
                flush()
            continue
        heading = _HEADING.fullmatch(line)
        if heading:
            if not headings_only:
                flush()
            context = heading[1]
        if lines and length + len(line) > PASSAGE:
            flush()
        for piece in _pieces(line):
            if lines and length + len(piece) > PASSAGE:
                flush()
            if not lines:
                first = number
            lines.append(piece)
            length += len(piece) + 1
        headings_only = headings_only and heading is not None
    flush()
    return passages


def _pieces(line: str) -> list[str]:
    """*line* in parts of at most 300 characters, divided after a sentence or else at a space."""
    pieces = []
    while len(line) > PASSAGE:
        head = line[:PASSAGE]
        end = max(head.rfind(". "), head.rfind("; ")) + 1
        if end < PASSAGE // 3:
            end = head.rfind(" ") if head.rfind(" ") > 0 else PASSAGE
        pieces.append(line[:end].strip())
        line = line[end:].strip()
    return [*pieces, line] if line else pieces
