"""The tokenizer: the family's vectors on the real vocabulary, round trips, and malformed files."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kimi.vocabularies import pieces, small, write_vocabulary

from k2core.errors import TokenizerError
from k2core_kimi.tokenizer import LONGEST_PIECE, LONGEST_RUN, KimiTokenizer, split_long

VECTORS = {
    "Hello world": [19180, 2695],
    "你好，世界": [33845, 378, 2243],
    "1234567": [6694, 12972, 22],
    "I'm don't": [17172, 4536],
    "  two  spaces\n\n\tx": [220, 2069, 220, 14803, 382, 18241],
    "functions.get_weather:0": [41937, 1150, 21055, 2800, 25, 15],
    "🙂 café": [5885, 46813, 70591],
    "<|im_end|>": [27, 91, 348, 11129, 91, 29],
    "<think>a</think>": [27, 39964, 64593, 993, 39964, 29],
    "user": [2482],
    "assistant": [69702],
    "system": [14062],
    "tool": [20960],
    "tool_declare": [20960, 35556, 677],
    "You are Kimi, an AI assistant created by Moonshot AI.": [
        *[3900, 554, 24980, 72, 11, 519, 22572],
        *[26626, 5232, 673, 30218, 10065, 22572, 13],
    ],
}
CONTROL_VECTORS = {"<|im_end|>": [163586], "<think>a</think>": [163606, 64, 163607]}
texts = st.text() | st.lists(
    st.sampled_from(
        ["<|im_end|>", "<think>", "[EOS]", "<|reserved_token_300|>", " ", "\n", "the", "你好", "🙂", "'s", "12345", "É"]
    )
).map("".join)


@pytest.fixture(scope="module")
def real(assets: Path) -> KimiTokenizer:
    """The family's own vocabulary."""
    return KimiTokenizer.open(assets / "kimi")


class TestRealVocabulary:
    """Against the published file."""

    @pytest.mark.parametrize("text", list(VECTORS))
    def test_vectors(self, real: KimiTokenizer, text: str) -> None:
        """Known ids of known texts, control tokens off."""
        assert real.encode(text) == VECTORS[text]
        assert real.decode(VECTORS[text]) == text

    @pytest.mark.parametrize("text", list(CONTROL_VECTORS))
    def test_control_vectors(self, real: KimiTokenizer, text: str) -> None:
        """Known ids with control tokens on."""
        assert real.encode(text, control=True) == CONTROL_VECTORS[text]

    def test_size_and_control(self, real: KimiTokenizer) -> None:
        """163,840 ids, the last 256 of them control tokens, unnamed ones reserved by their id."""
        assert real.vocab_size == 163_840 and len(real.control) == 256
        assert real.control["<|im_end|>"] == 163_586 and real.control["[PAD]"] == 163_839
        assert real.control["<|reserved_token_163700|>"] == 163_700

    @given(text=texts)
    def test_round_trip(self, real: KimiTokenizer, text: str) -> None:
        """Any text survives, and no control id ever comes of it."""
        ids = real.encode(text)

        assert real.decode(ids) == text
        assert all(token < 163_584 for token in ids)

    def test_long_runs(self, real: KimiTokenizer) -> None:
        """A million characters without a break, or of blanks only, encode within seconds and survive."""
        start = time.monotonic()
        for text in ("x" * 1_000_000, " " * 1_000_000, "ab \n" * 250_000):
            assert real.decode(real.encode(text)) == text
        assert time.monotonic() - start < 60


class TestRoundTrips:
    """Properties on a small vocabulary."""

    @given(texts)
    def test_plain(self, text: str) -> None:
        """Any text survives with control tokens off, and gives no control id."""
        ids = small().encode(text)

        assert small().decode(ids) == text and small().decode(ids, control=False) == text
        assert not set(ids) & set(small().control.values())

    @given(texts)
    def test_with_control(self, text: str) -> None:
        """Any text survives with control tokens on, too."""
        assert small().decode(small().encode(text, control=True)) == text

    @given(st.lists(st.integers(0, small().vocab_size - 1)), st.data())
    def test_stream_equals_decode(self, ids: list[int], data: st.DataObject) -> None:
        """Arbitrary ids, split UTF-8 included, stream to the text that they decode to at once."""
        stream, parts, rest = small().stream(), [], ids
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            parts.append(stream.feed(rest[:size]))
            rest = rest[size:]

        assert "".join(parts) + stream.finish() == small().decode(ids)
        assert small().decode_bytes(ids).decode("utf-8", "replace") == small().decode(ids)

    def test_stream_holds_back_half_a_character(self) -> None:
        """Nothing is shown of a character until its last byte is there."""
        stream, ids = small().stream(), list("🙂".encode()[:4])

        assert [stream.feed([token]) for token in ids] == ["", "", "", "🙂"]
        assert stream.feed(ids[:2]) + stream.finish() == "\ufffd"

    def test_control_left_out(self) -> None:
        """Decoding without control tokens drops them and keeps their look-alikes."""
        ids = [*small().encode("a<think>"), small().control["<think>"], *small().encode("b")]

        assert small().decode(ids) == "a<think><think>b" and small().decode(ids, control=False) == "a<think>b"

    def test_lone_surrogates_become_replacement_characters(self) -> None:
        """Text that is not valid Unicode is encoded without a crash."""
        assert small().decode(small().encode("a\ud800b")) == "a\ufffdb"

    @pytest.mark.parametrize("token", [-1, 10**6, 10**30])
    def test_ids_outside(self, token: int) -> None:
        """An id outside the vocabulary is one typed line."""
        with pytest.raises(TokenizerError, match=f"token id {token} is outside"):
            small().decode([5, token])


@given(st.lists(st.tuples(st.sampled_from(["x", " ", "x "]), st.integers(0, 60_000)), max_size=4))
def test_long_inputs_are_split_by_the_rule(parts: list[tuple[str, int]]) -> None:
    """The parts add up, and none is too long or has too long a run."""
    text = "".join(unit * count for unit, count in parts)
    split = list(split_long(text))

    assert "".join(split) == text
    for part in split:
        assert 0 < len(part) <= LONGEST_PIECE
        assert all(len(run) <= LONGEST_RUN for run in part.split())
        assert " " * (LONGEST_RUN + 1) not in part


def test_own_pattern(tmp_path: Path) -> None:
    """A folder's own pattern replaces the family's, and its size follows from its names."""
    own = KimiTokenizer.open(write_vocabulary(tmp_path, pattern=r"(?s:.)"))

    assert own.vocab_size == len(pieces()) + 256
    assert len(own.encode("the")) == 3 and len(small().encode("the")) == 2
    assert own.decode(own.encode("the 🙂\n")) == "the 🙂\n"


def test_size_from_config_json(tmp_path: Path) -> None:
    """config.json's vocab_size decides where there is one, and must hold every name."""
    write_vocabulary(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 700}}))
    tokenizer = KimiTokenizer.open(tmp_path)
    assert tokenizer.vocab_size == 700 and tokenizer.control["<|reserved_token_699|>"] == 699

    (tmp_path / "config.json").write_text('{"vocab_size": 400}')
    with pytest.raises(TokenizerError, match="400 ids by config"):
        KimiTokenizer.open(tmp_path)


def test_pattern_that_loses_text(tmp_path: Path) -> None:
    """A pattern that does not cover a text is an error, not a silent loss."""
    own = KimiTokenizer.open(write_vocabulary(tmp_path, pattern="[a-z]+"))

    assert own.decode(own.encode("abc")) == "abc"
    with pytest.raises(TokenizerError, match="does not cover"):
        own.encode("abc 1")


def replace(path: str, old: str, new: str) -> Callable[[Path], object]:
    """A damage that replaces text of a file."""
    return lambda folder: (folder / path).write_text((folder / path).read_text().replace(old, new, 1))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no ranks": (lambda f: (f / "tiktoken.model").unlink(), r"tiktoken\.model: there is no such file"),
    "no config": (lambda f: (f / "tokenizer_config.json").unlink(), "no such file"),
    "truncated": (lambda f: (f / "tiktoken.model").write_text("AA== 0\nAQ== 1\n"), "254 of the 256 single bytes"),
    "empty": (lambda f: (f / "tiktoken.model").write_bytes(b""), "256 of the 256"),
    "base64": (replace("tiktoken.model", "AQ==", "A!=="), "line 2"),
    "no rank": (replace("tiktoken.model", "AQ== 1\n", "AQ==\n"), "line 2"),
    "rank no number": (replace("tiktoken.model", "AQ== 1\n", "AQ== one\n"), "line 2"),
    "three parts": (replace("tiktoken.model", "AQ== 1\n", "AQ== 1 2\n"), "line 2"),
    "rank skipped": (replace("tiktoken.model", "AQ== 1\n", "AQ== 7\n"), "rank 7 where 1 is expected"),
    "piece twice": (replace("tiktoken.model", "AQ== 1\n", "AA== 1\n"), "already with rank 0"),
    "not JSON": (lambda f: (f / "tokenizer_config.json").write_text("{"), "not valid JSON"),
    "deep": (lambda f: (f / "tokenizer_config.json").write_text("[" * 200_000), "not valid JSON"),
    "no object": (lambda f: (f / "tokenizer_config.json").write_text("[]"), "expected a JSON object"),
    "no names": (lambda f: (f / "tokenizer_config.json").write_text("{}"), "added_tokens_decoder"),
    "name without text": (replace("tokenizer_config.json", '"content": "[BOS]"', '"text": 1'), "expected an id"),
    "same name": (replace("tokenizer_config.json", "[BOS]", "[EOS]"), "both called"),
    "id among the ranks": (replace("tokenizer_config.json", f'"{len(pieces())}"', '"5"'), "names id 5"),
    "id beyond": (replace("tokenizer_config.json", f'"{len(pieces())}"', '"99999"'), "names id 99999"),
    "no id": (replace("tokenizer_config.json", f'"{len(pieces())}"', '"x"'), "expected an id"),
    "bad pattern": (lambda f: write_vocabulary(f, pattern="("), "no regular expression"),
    "pattern no text": (replace("tokenizer_config.json", '{"added', '{"pat_str": 5, "added'), "pat_str"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=list(DAMAGE))
def test_malformed_folder(tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    """Each kind of damage is one typed line that names the file or the pattern."""
    damage(write_vocabulary(tmp_path))

    with pytest.raises(TokenizerError, match=says) as caught:
        KimiTokenizer.open(tmp_path)

    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
