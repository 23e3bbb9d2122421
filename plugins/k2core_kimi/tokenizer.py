"""Text to token ids and back, as the Kimi K2 family does it.

Byte-pair encoding by tiktoken over the family's pre-tokenizer. Control tokens are off by default: text that looks like
``<|im_end|>`` is then plain text, so nothing that a user or a tool writes can become a control token.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from k2core.errors import TokenizerError
from k2core_kimi.vocabulary import Vocabulary, read_vocabulary

_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_NOT_HAN = r"&&[^\p{Han}]"
_LEAD, _CONTRACTION = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

# The ordered alternation of MoonshotAI/Kimi-Vendor-Verifier beam/tokenizer/tokenization_kimi.py @3dad65a, put together again
# from its parts.
FAMILY_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_LEAD}[{_UPPER}{_NOT_HAN}]*[{_LOWER}{_NOT_HAN}]+{_CONTRACTION}",
        f"{_LEAD}[{_UPPER}{_NOT_HAN}]+[{_LOWER}{_NOT_HAN}]*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
LONGEST_PIECE = 400_000  # characters encoded at once
LONGEST_RUN = 25_000  # consecutive characters that are all whitespace, or all not


@define(eq=False)
class KimiTokenizer:
    """A vocabulary of the family.

    Attributes:
        vocab_size: number of ids, control tokens included.
        control: text of a control token to its id.
    """

    vocab_size: int
    control: Mapping[str, int] = field(repr=False)
    _ranks: int
    _pieces: list[bytes] = field(repr=False)
    _encoding: Any = field(repr=False)
    _verify: bool = field(repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> "KimiTokenizer":
        """Read ``tiktoken.model`` and ``tokenizer_config.json`` of a folder.

        Raises:
            TokenizerError: a file is missing or malformed; names the file and the line or key.
        """
        return cls.from_vocabulary(read_vocabulary(Path(folder)), where=str(folder))

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary, *, where: str = "vocabulary") -> "KimiTokenizer":
        """Build from a checked vocabulary.

        Raises:
            TokenizerError: its pattern is no regular expression; the line starts with *where*.
        """
        import tiktoken

        try:
            encoding = tiktoken.Encoding(
                "kimi",
                pat_str=vocabulary.pattern or FAMILY_PATTERN,
                mergeable_ranks=dict(vocabulary.ranks),
                special_tokens=dict(vocabulary.control),
            )
        except ValueError as error:
            raise TokenizerError(f"{where}: the pattern 'pat_str' is no regular expression ({str(error)[:200]})") from error
        pieces = sorted(vocabulary.ranks, key=vocabulary.ranks.__getitem__)
        pieces += [text.encode() for text in sorted(vocabulary.control, key=vocabulary.control.__getitem__)]
        return cls(
            vocab_size=vocabulary.size,
            control=vocabulary.control,
            ranks=len(vocabulary.ranks),
            pieces=pieces,
            encoding=encoding,
            verify=vocabulary.pattern is not None,
        )

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of *text*.

        Long inputs are cut as the family's own tokenizer cuts them: every 400,000 characters, and inside runs of more than
        25,000 characters that are all whitespace or all not; the parts are encoded on their own.

        Args:
            text: any text; lone surrogates become U+FFFD.
            control: whether the text of a control token, e.g. ``<|im_end|>``, becomes that token.

        Raises:
            TokenizerError: the folder's own pattern does not cover the text, or fails on it.
        """
        ids: list[int] = []
        for part in split_long(text):
            try:
                if control:
                    ids += self._encoding.encode(part, allowed_special="all")
                else:
                    ids += self._encoding.encode_ordinary(part)
            except BaseException as error:
                if type(error).__name__ != "PanicException":  # how tiktoken's regex engine says that it gave up
                    raise
                raise TokenizerError(f"the vocabulary's pattern fails on a text of {len(part)} characters") from error
        if self._verify and self.decode_bytes(ids) != text.encode("utf-8", "replace") and not _has_surrogate(text):
            raise TokenizerError("the vocabulary's own pattern 'pat_str' does not cover the text: some of it would be lost")
        return ids

    def decode(self, token_ids: Sequence[int], *, control: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            token_ids: ids of the vocabulary.
            control: with False, control tokens are left out.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        kept = token_ids if control else [token for token in token_ids if not self._ranks <= token < self.vocab_size]
        return self.decode_bytes(kept).decode("utf-8", "replace")

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The exact bytes of ids, control tokens as their text.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        pieces, size = self._pieces, self.vocab_size
        for token in token_ids:
            if not 0 <= token < size:
                raise TokenizerError(f"token id {token} is outside the vocabulary of {size} ids")
        return b"".join([pieces[token] for token in token_ids])

    def piece(self, token: int) -> bytes:
        """The exact bytes of one id, a control token as its text.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(f"token id {token} is outside the vocabulary of {self.vocab_size} ids")
        return self._pieces[token]

    def stream(self) -> "TextStream":
        """A decoder for ids that arrive piece by piece."""
        return TextStream(self)


@define(eq=False)
class TextStream:
    """Decodes ids as they come; bytes of a character that is not complete yet are held back."""

    _tokenizer: KimiTokenizer = field(repr=False)
    _decoder: codecs.IncrementalDecoder = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that became certain with these ids."""
        return self._decoder.decode(self._tokenizer.decode_bytes(token_ids))

    def finish(self) -> str:
        """What is held back, as U+FFFD; the stream then starts anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def split_long(text: str) -> Iterator[str]:
    """The parts of *text* that are encoded on their own, in order; their sum is *text*."""
    for start in range(0, len(text), LONGEST_PIECE):
        part = text[start : start + LONGEST_PIECE]
        if len(part) <= LONGEST_RUN:
            yield part
        else:
            yield from _split_runs(part)


def _split_runs(text: str) -> Iterator[str]:
    begin, run, was_space = 0, 0, text[0].isspace()
    for at, character in enumerate(text):
        is_space = character.isspace()
        if is_space != was_space:
            run, was_space = 1, is_space
            continue
        run += 1
        if run > LONGEST_RUN:
            yield text[begin:at]
            begin, run = at, 1
    yield text[begin:]


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
