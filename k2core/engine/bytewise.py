"""Grammars over single bytes: what a text may be, whatever the vocabulary that will write it."""

from functools import cache
from typing import Any

import numpy as np

from k2core.errors import K2Error

# Ten times llguidance's own fuel for one step and for the beginning: at worst some 30 ms a mask and 200 ms a grammar, where a
# pattern that looks ahead would otherwise stop the turn.
STEP_FUEL, FIRST_FUEL = 2_000_000, 10_000_000
END = 256  # llguidance's end of text: what comes next when a text may end


def matcher(grammar: str) -> Any:
    """A fresh llguidance matcher over the 256 bytes, `END` behind them.

    Raises:
        K2Error: llguidance cannot compile the grammar.
    """
    made = compiled(_vocabulary(), grammar)
    if made.is_error():
        raise K2Error(f"cannot compile the grammar: {one_line(made.get_error())}")
    return made


def compiled(vocabulary: Any, grammar: str) -> Any:
    """llguidance's matcher of a grammar over a vocabulary, within our limits; it may be in its error state."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(step_lexer_fuel=STEP_FUEL, initial_lexer_fuel=FIRST_FUEL, verbose_errors=False)
    return LLMatcher(vocabulary, grammar, log_level=0, limits=limits)


def following(state: Any) -> list[int]:
    """The bytes that a matcher lets follow, in order; `END` where the text may end.

    Raises:
        K2Error: llguidance gave up; says why.
    """
    bits = np.frombuffer(state.compute_bitmask(), np.uint8)
    if state.is_error():
        raise K2Error(f"cannot follow the grammar: {one_line(state.get_error())}")
    found: list[int] = np.flatnonzero(np.unpackbits(bits, count=END + 1, bitorder="little")).tolist()
    return found


@cache
def is_empty(terminal: str) -> bool:
    """Whether no text matches a terminal.

    Raises:
        K2Error: llguidance cannot tell.
    """
    state = matcher(f"start: T\nT: {terminal}\n")
    state.compute_bitmask()
    if state.is_error() and state.get_error().startswith("NoExtension"):  # its words for a state that nothing leaves
        return True
    return not following(state)


def one_line(text: str) -> str:
    """The beginning of llguidance's message, without its line breaks."""
    return " ".join(text.split())[:300]


@cache
def _vocabulary() -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    class Bytes:
        eos_token_id = END
        bos_token_id = None
        tokens = (*(bytes([byte]) for byte in range(256)), b"[end]")
        special_token_ids = (END,)

        def __call__(self, text: bytes) -> list[int]:
            return list(text)

    return LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=END, slices=[])
