"""Two tokenizers of one vocabulary: the same token under every id, the same ids of every text, the same text of all ids."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from k2core.conformance.drawing import Comparison, Disagreement, compare, texts
from k2core.engine.vocabulary import vocabulary_difference
from k2core.errors import TokenizerError
from k2core.interfaces import Tokenizer

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Given = str | tuple[int, ...] | None  # a text, ids, or the vocabularies themselves
HARD = (
    "don't", "DON'T", "I'll", " ", "  ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u2028", "1", "12", "123", "1234", "1,081",
    "naïve", "ﬁ", "e\u0301", "中文", "日本語", "한국어", "العربية", "हिन्दी", "🙂", "👩\u200d💻", "🇩🇪", "\ufeff", "\u202e", "\0",
    "camelCase", "HTTPServer", "_", "<|", "|>", "==", "://", "\\n", "{}", '"', "3.5",
)  # fmt: skip


def check_tokenizers(first: Tokenizer, second: Tokenizer, *, count: int = 200, seed: int = 0) -> Comparison[Given]:
    """Compare the vocabularies, then encode and decode what is drawn with both, again and again.

    Most of what is drawn are texts: any Unicode, and what tokenizers find hard (contractions, runs of white space, digits,
    scripts, joined emoji, texts that look like control tokens). The others are ids.

    Args:
        first, second: over the same or over two folders.
        count: how much is drawn.
        seed: of what is drawn.

    Raises:
        InputError: Hypothesis is missing.
    """
    difference = vocabulary_difference(first, second)
    if difference:
        return Comparison(calls=0, disagreement=Disagreement(given=None, first="", second=difference))

    def call(given: Given) -> tuple[Disagreement[Given] | None, bool]:
        before, after = _done(first, given), _done(second, given)
        failed = all(isinstance(one, TokenizerError) for one in (*before.values(), *after.values()))
        for what, value in before.items():
            if _shown(value) != _shown(after.get(what)):
                told = [f"{what}: {_shown(one)}" for one in (value, after.get(what))]
                return Disagreement(given=given, first=told[0], second=told[1]), failed
        return None, failed

    def strategy() -> "SearchStrategy[Given]":
        from hypothesis import strategies as st

        control = sorted(first.control)
        looks = (
            st.builds(lambda one, cut: one[:cut], st.sampled_from(control), st.integers(1, 30)) if control else st.just("<|")
        )
        pieces = st.sampled_from(HARD) | looks | texts(8)
        mixed = st.lists(pieces, max_size=8).map("".join)
        ids = st.lists(st.integers(0, first.vocab_size - 1), max_size=12).map(tuple)
        return mixed | texts(60) | ids

    return compare(strategy, call, count=count, seed=seed)


def _done(tokenizer: Tokenizer, given: Given) -> dict[str, object]:
    """What a tokenizer makes of a text or of ids, or how it fails, by what was asked."""
    if isinstance(given, str):
        done = {
            "encode": _tried(lambda: list(tokenizer.encode(given))),
            "encode, with control tokens": _tried(lambda: list(tokenizer.encode(given, control=True))),
        }
        encoded = done["encode"]
        if isinstance(encoded, list):
            done["decode of it"] = _tried(lambda: tokenizer.decode(encoded))
        return done
    ids = list(given or ())
    return {
        "decode to bytes": _tried(lambda: tokenizer.decode_bytes(ids)),
        "decode": _tried(lambda: tokenizer.decode(ids)),
        "decode, without control tokens": _tried(lambda: tokenizer.decode(ids, control=False)),
    }


def _tried(action: Callable[[], object]) -> object:
    try:
        return action()
    except TokenizerError as error:
        return error


def _shown(value: object) -> str:
    return f"error: {value}" if isinstance(value, TokenizerError) else repr(value)
