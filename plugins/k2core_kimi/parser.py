"""From generated token ids, or from text, to deltas and one message. The decisions are in `turn`.

By ids every marker is one token, so a text that merely looks like a marker stays text; only bytes of an unfinished character
and a possible ``<|tool_call_section_begin|>`` are held back. By text, markers are found in the text itself, and an end of a
chunk that may begin one is held back.
"""

import codecs
import re
from collections.abc import Mapping, Sequence

from attrs import define, field

from k2core.messages import Delta, FinishReason, Message, joined
from k2core_kimi import markers as mark
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_kimi.turn import Turn

TEXT_MARKERS = {text: text for text in mark.TURN} | {
    mark.SINGULAR_SECTION: mark.SECTION,
    mark.SINGULAR_SECTION_END: mark.SECTION_END,
}
_ANY_MARKER = re.compile("|".join(map(re.escape, TEXT_MARKERS)))
_PREFIXES = frozenset(text[:size] for text in TEXT_MARKERS for size in range(1, len(text)))
_LONGEST = max(map(len, TEXT_MARKERS))


@define(eq=False, kw_only=True)
class KimiTurnParser:
    """`k2core.interfaces.TurnParser` by token ids; ids after the end marker are ignored."""

    _tokenizer: KimiTokenizer = field(repr=False)
    _names: Mapping[int, str] = field(repr=False)  # of control ids
    _turn: Turn = field(repr=False)
    _ids: list[int] = field(factory=list, repr=False)
    _decoder: codecs.IncrementalDecoder = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def done(self) -> bool:
        """The end marker was seen."""
        return self._turn.done

    @property
    def finish_reason(self) -> FinishReason:
        """Why the turn ended, as far as the ids tell."""
        return self._turn.finish_reason

    def feed(self, token_ids: Sequence[int]) -> list[Delta]:
        """Deltas that became certain with these ids.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        turn, names = self._turn, self._names
        for token in token_ids:
            if turn.done:
                break
            name = names.get(token)
            if name is None:
                turn.text(self._decoder.decode(self._tokenizer.decode_bytes((token,))))
            else:
                self._flush_bytes()
                turn.marker(name)
            self._ids.append(token)
        return joined(turn.take())

    def finish(self) -> tuple[list[Delta], Message]:
        """Flush what is held back and return the whole turn; its `token_ids` are all ids fed, up to the end marker."""
        self._flush_bytes()
        self._turn.finish()
        return joined(self._turn.take()), self._turn.message(tuple(self._ids))

    def _flush_bytes(self) -> None:
        self._turn.text(self._decoder.decode(b"", final=True))
        self._decoder.reset()


@define(eq=False, kw_only=True)
class KimiTextParser:
    """The same by text, for sources that give no ids."""

    _turn: Turn = field(repr=False)
    _held: str = field(default="", repr=False)

    @property
    def done(self) -> bool:
        """The end marker was seen."""
        return self._turn.done

    @property
    def finish_reason(self) -> FinishReason:
        """Why the turn ended, as far as the text tells."""
        return self._turn.finish_reason

    def feed(self, text: str) -> list[Delta]:
        """Deltas that became certain with this text."""
        text = self._held + text
        at = 0
        for match in _ANY_MARKER.finditer(text):
            self._turn.text(text[at : match.start()])
            self._turn.marker(TEXT_MARKERS[match[0]])
            at = match.end()
        rest = text[at:]
        keep = next((size for size in range(min(_LONGEST - 1, len(rest)), 0, -1) if rest[-size:] in _PREFIXES), 0)
        self._turn.text(rest[: len(rest) - keep])
        self._held = rest[len(rest) - keep :]
        return joined(self._turn.take())

    def finish(self) -> tuple[list[Delta], Message]:
        """Flush what is held back and return the whole turn, without `token_ids`."""
        self._turn.text(self._held)
        self._held = ""
        self._turn.finish()
        return joined(self._turn.take()), self._turn.message()
