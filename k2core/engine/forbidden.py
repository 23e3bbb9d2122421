"""Calls that must not be made: where a tool's arguments would have to turn away from texts that are forbidden.

Arguments have one spelling (`k2core.engine.schemas`), so a forbidden call is a text, and forbidden texts are a trie of bytes. A
node of it is dead where it is the end of a text, or where every byte that the schema allows leads to a dead node: a model that
came there could only write a forbidden call. Tokens that reach a dead node are left out of the mask, so it is the last byte
that tells the forbidden call from others that is refused, and there is always another way to go on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from attrs import define, field

from k2core.engine.bytewise import following, matcher
from k2core.engine.schemas import BASE, rules, spellings
from k2core.engine.sorted_vocabulary import SortedVocabulary
from k2core.interfaces import Array
from k2core.language import Tokenizer

CACHED = 256  # tools with their forbidden texts


def dead_ends(schema: Mapping[str, Any], texts: Iterable[str]) -> tuple[bytes, ...]:
    """Beginnings that a tool's arguments must not have: the topmost dead nodes, sorted.

    Args:
        schema: the tool's parameters.
        texts: arguments that are forbidden, as JSON in any spelling; what the schema does not admit needs no forbidding.
    """
    return _dead_ends(json.dumps(schema, default=dict), tuple(sorted(set(texts))))


def exhausted(schema: Mapping[str, Any], texts: Iterable[str]) -> bool:
    """Whether every arguments' text that a tool's schema admits is forbidden, so that the tool cannot be called at all."""
    return b"" in dead_ends(schema, texts)


@lru_cache(CACHED)
def _dead_ends(schema_text: str, texts: tuple[str, ...]) -> tuple[bytes, ...]:
    schema = json.loads(schema_text)
    pristine = matcher(f"start: tool\n{rules(schema, 'tool', is_object=True).text}{BASE}")
    dead: set[bytes] = set()
    for spelled in dict.fromkeys(spelled for text in texts for spelled in _spelled(schema, text)):
        state = pristine.deep_copy()
        if not state.consume_tokens(list(spelled)) or not state.is_accepting():
            continue
        dead.add(spelled)
        for size in range(len(spelled) - 1, -1, -1):
            state.rollback(1)
            node = spelled[:size]
            if not all(node + bytes((byte,)) in dead for byte in following(state) if byte < 256):
                break
            dead.add(node)
    return tuple(sorted(node for node in dead if node[:-1] not in dead or not node))


def _spelled(schema: Mapping[str, Any], text: str) -> list[bytes]:
    try:
        value = json.loads(text or "{}")
        return [one.encode() for one in (text, *spellings(schema, value, is_object=True))]
    except (ValueError, RecursionError):  # no JSON, or half a character: no arguments that the mask lets through
        return []


@define(eq=False, kw_only=True)
class Forbidden:
    """The forbidden calls of one turn and how far the arguments being written have come towards them.

    Attributes:
        of_tools: `dead_ends` by tool.
    """

    of_tools: Mapping[str, Sequence[bytes]]
    _tokenizer: Tokenizer = field(repr=False)
    _vocabulary: SortedVocabulary = field(repr=False)
    _control: frozenset[int] = field(init=False, repr=False)
    _left: tuple[bytes, ...] = field(default=(), init=False)  # what is missing to each dead end that is still ahead

    def __attrs_post_init__(self) -> None:
        self._control = frozenset(self._tokenizer.control.values())

    def accept(self, token: int, started: Iterable[str]) -> None:
        """Go on by one token; *started* are the tools whose arguments begin behind it."""
        if token in self._control:
            self._left = ()
        elif self._left:
            piece = self._tokenizer.decode_bytes((token,))
            self._left = tuple(left[len(piece) :] for left in self._left if left.startswith(piece))
        for name in started:
            self._left = tuple(self.of_tools.get(name, ()))

    def refuses(self, token: int) -> bool:
        """Whether *token* would reach a dead end."""
        if not self._left or token in self._control:
            return False
        return self._tokenizer.decode_bytes((token,)).startswith(self._left)

    def clear(self, mask: Array) -> None:
        """Take the tokens that would reach a dead end out of a mask."""
        for left in self._left:
            mask[self._vocabulary.beginning_with(left)] = False
