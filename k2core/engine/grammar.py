"""Which tokens may come next: a turn's grammar, followed token by token.

`Masks` is made once for a vocabulary, `Masks.start` once for each turn. A `Constraint` then goes along with the turn: at every
position the engine asks `allows` of a token it would like, or `mask` for all of them, and says with `accept` what was chosen.
The grammar is a chat format's own (`ChatFormat.grammar`); llguidance compiles it and computes the masks.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import define, field

from k2core.engine.bytewise import compiled, one_line
from k2core.engine.forbidden import Forbidden, dead_ends
from k2core.engine.sorted_vocabulary import SortedVocabulary
from k2core.errors import K2Error
from k2core.interfaces import Array
from k2core.language import Tokenizer
from k2core.messages import CallStarted, Delta

CACHED_GRAMMARS = 64  # compiled grammars kept

# By default llguidance writes what must follow by the tokens that it thinks canonical and masks all others. The model is the
# better judge of its tokens: a vocabulary may have one for a whole beginning of a call.
OPTIONS = '%llguidance {"no_forcing": true}\n'


class Masks:
    """The masks of one vocabulary. Not for several threads at once.

    llguidance is imported, and the vocabulary handed to it, by the first `start` (about a second for 163,840 tokens).
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int] = ()) -> None:
        """The masks of *tokenizer*'s vocabulary; *stop_ids* are never text, whether they are control tokens or not."""
        self._tokenizer = tokenizer
        self._stop_ids = tuple(stop_ids)
        self._vocabulary: Any = None  # llguidance's own form
        self._sorted = SortedVocabulary(tokenizer)
        self._compiled: dict[str, Any] = {}  # grammar to a matcher that has consumed nothing

    def start(
        self,
        grammar: str,
        *,
        forbidden: Sequence[tuple[str, str]] = (),
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "Constraint":
        """One turn's constraint.

        Args:
            grammar: in Lark; see `ChatFormat.grammar`.
            forbidden: (tool's name, arguments' JSON text) of calls that must not be made; see `GenerateOptions`.
            schemas: parameters of the tools that *forbidden* names, as in their declarations.

        Raises:
            K2Error: llguidance cannot compile the grammar.
        """
        started = time.perf_counter()
        matcher = self._compiled.pop(grammar, None) or self._compile(grammar)
        self._compiled[grammar] = matcher  # last used, last in order
        if len(self._compiled) > CACHED_GRAMMARS:
            del self._compiled[next(iter(self._compiled))]
        constraint = Constraint(
            tokenizer=self._tokenizer,
            matcher=matcher.deep_copy(),
            vocabulary=self._sorted,
            forbidden=self._forbidden(forbidden, schemas or {}),
        )
        constraint.seconds = time.perf_counter() - started
        return constraint

    def _forbidden(self, calls: Sequence[tuple[str, str]], schemas: Mapping[str, Mapping[str, Any]]) -> Forbidden | None:
        texts = {name: [text for other, text in calls if other == name] for name, _ in calls if name in schemas}
        of_tools = {name: dead_ends(schemas[name], own) for name, own in texts.items()}
        if not any(of_tools.values()):
            return None
        return Forbidden(of_tools=of_tools, tokenizer=self._tokenizer, vocabulary=self._sorted)

    def _compile(self, grammar: str) -> Any:
        if self._vocabulary is None:
            self._vocabulary = vocabulary_of(self._tokenizer, self._sorted.pieces, self._stop_ids)
            self._sorted.sort()
        matcher = compiled(self._vocabulary, OPTIONS + grammar)
        if matcher.is_error():
            raise K2Error(f"cannot compile the turn's grammar: {one_line(matcher.get_error())}")
        return matcher


def vocabulary_of(tokenizer: Tokenizer, pieces: Sequence[bytes], stop_ids: Sequence[int] = ()) -> Any:
    """The vocabulary as llguidance's `LLTokenizer`.

    Behind the last id it has one more, which no model can draw: llguidance treats the end-of-text token unlike others, so the
    tokens that end a turn stand in the grammar as ordinary ones, and that extra id is its end of text.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    size = tokenizer.vocab_size

    class Wrapped:
        eos_token_id = size
        bos_token_id = None
        tokens: Sequence[bytes] = [*pieces, b"[end of grammar]"]
        special_token_ids: Sequence[int] = sorted({*tokenizer.control.values(), *stop_ids, size})

        def __call__(self, text: bytes) -> list[int]:
            return tokenizer.encode(text.decode("utf-8", "replace"))

    return LLTokenizer(TokenizerWrapper(Wrapped()), n_vocab=size + 1, eos_token=size)


_CONTROL = re.compile(rb"([^\xff]+)|\xff\[([0-9]+)\]")  # texts, and control tokens as llguidance writes them among bytes


@define(eq=False, kw_only=True)
class Constraint:
    """Where one turn stands in its grammar.

    Attributes:
        seconds: spent on masks so far, compiling included.
    """

    _tokenizer: Tokenizer = field(repr=False)
    _matcher: Any = field(repr=False)
    _vocabulary: SortedVocabulary = field(repr=False)
    _forbidden: Forbidden | None = None
    seconds: float = field(default=0.0, init=False)
    _mask: Array | None = field(default=None, init=False, repr=False)  # of this position, once asked for
    # A matcher that was asked for what is certain computes no right mask at that position any more, and a copy for each
    # question takes the longer the longer the turn is: so a second matcher goes along, with the tokens that it is behind by.
    _ahead: Any = field(default=None, init=False, repr=False)
    _behind: list[int] = field(factory=list, init=False, repr=False)

    def mask(self, width: int | None = None) -> Array:
        """Which tokens may come next: bool, (*width*,), read-only; of the vocabulary's size without *width*.

        Ids behind the vocabulary's end are never allowed. Valid until the next `accept`.

        Raises:
            K2Error: llguidance gave up; says why.
        """
        started = time.perf_counter()
        size = self._tokenizer.vocab_size
        if self._mask is None:
            bits = bytes(size // 8 + 1) if self.done else self._matcher.compute_bitmask()
            self._check()
            self._mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=size, bitorder="little").view(np.bool_)
            if self._forbidden is not None:
                self._forbidden.clear(self._mask)
            self._mask.flags.writeable = False
        mask = self._mask
        if width is not None and width != size:
            mask = np.zeros(width, np.bool_)
            mask[: min(width, size)] = self._mask[:width]
        self.seconds += time.perf_counter() - started
        return mask

    def allows(self, token: int) -> bool:
        """Whether *token* may come next; far cheaper than a mask.

        Raises:
            K2Error: llguidance gave up; says why.
        """
        if not 0 <= token < self._tokenizer.vocab_size:
            return False
        if self._mask is not None:
            return bool(self._mask[token])
        started = time.perf_counter()
        allowed = bool(self._matcher.validate_tokens([token]) == 1)
        if not allowed:
            self._check()
        elif self._forbidden is not None:
            allowed = not self._forbidden.refuses(token)
        self.seconds += time.perf_counter() - started
        return allowed

    def accept(self, token: int, deltas: Sequence[Delta] = ()) -> None:
        """Go on by one token.

        Args:
            token: an allowed one.
            deltas: what the turn's parser made of it.

        Raises:
            K2Error: the token is not allowed here, or llguidance gave up.
        """
        started = time.perf_counter()
        self._mask = None
        if self._ahead is not None:
            self._behind.append(token)
        if not self._matcher.consume_token(token):
            self._check()
        if self._forbidden is not None:
            self._forbidden.accept(token, [delta.name for delta in deltas if isinstance(delta, CallStarted)])
        self.seconds += time.perf_counter() - started

    def forced(self) -> list[int]:
        """The tokens that follow in any case, as the tokenizer would write them; empty where there is a choice.

        Where a token of the vocabulary reaches beyond what is certain, the model may well write that one: there they end.
        """
        started = time.perf_counter()
        if self._ahead is None:
            self._ahead = self._matcher.deep_copy()
        elif self._behind:
            self._ahead.consume_tokens(self._behind)
        self._behind = []
        certain = self._ahead.compute_ff_bytes()
        tokens: list[int] = []
        for text, control in _CONTROL.findall(certain):
            if control:
                tokens.append(int(control))
            else:
                tokens += self._certain_tokens(text, is_last=certain.endswith(text))
        self.seconds += time.perf_counter() - started
        return tokens if all(token < self._tokenizer.vocab_size for token in tokens) else []

    def _certain_tokens(self, text: bytes, *, is_last: bool) -> list[int]:
        try:
            tokens = self._tokenizer.encode(text.decode())
        except UnicodeDecodeError:  # it begins or ends inside a character
            return []
        left = text
        for place, token in enumerate(tokens):
            if is_last and len(self._vocabulary.beginning_with(left)) > (left in self._vocabulary):
                return tokens[:place]
            left = left[len(self._tokenizer.decode_bytes((token,))) :]
        return tokens

    @property
    def done(self) -> bool:
        """The turn is complete: nothing may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise K2Error(f"cannot hold the turn to its grammar: {one_line(self._matcher.get_error())}")
