"""Text of models and tools made safe to show: no escape sequences, no control characters, no forged direction of writing."""

import json
import re
from collections.abc import Sequence
from typing import Any

# CSI, OSC and the other string sequences (ended by BEL or ST), two-character escapes: ECMA-48, 5.3–5.6
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_RAW_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """*text* with line feeds and tabs as its only control characters; lone surrogates become U+FFFD."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def one_line(text: str, limit: int = 120) -> str:
    """*text* cleaned, on one line, cut to *limit* characters with the cut marked."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def cut(text: str, lines: int = 8, characters: int = 600) -> str:
    """The beginning of *text*, cleaned; a last line tells how much there was when something is left out."""
    whole = clean(text)
    part = "\n".join(whole[: characters + 1].split("\n")[:lines])[:characters]
    return whole if part == whole else f"{part.rstrip()} … ({len(whole):,} characters)"


def arguments_text(arguments: str) -> str:
    """A call's arguments as ``key=value``, cleaned."""
    from k2core.agent.concluding import in_words

    return clean(in_words(arguments))


def fault_of(error: BaseException) -> str:
    """A stranger's exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def counted(number: int, what: str) -> str:
    """``1 call``, ``2 calls``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def joined(parts: Sequence[str], width: int | None) -> str:
    """Parts with dots between them, on lines of *width* that begin with a whole part; on one line for None."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if width is None or len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return "\n".join(lines)


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON text that is safe on a terminal: every control character is escaped."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, default=str)
    return _RAW_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
