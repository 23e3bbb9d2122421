# ruff: noqa: E501  (word lists and frames read best undivided)
"""The tokenizer of the embedded model: 3008 byte strings with ranks, 64 control tokens, one pattern.

Frames of the wire format and words of the question grammar are literals of the pattern and stand whole in the rank file (tiktoken looks a whole
pre-token up before it merges); everything else is merged from learned pairs, and every byte string is covered. A space is its own piece unless
one of the known words follows, so a name has the same pieces in prose and in JSON.

    python -m k2core_nano.train.tokenizer --out FOLDER
"""

import argparse
import base64
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import tiktoken

FILES = Path(__file__).parent / "vocabulary"  # what the generator encodes with; weights that ship carry the same
RANKS = 3008
_NAMED = {
    "[BOS]": 0, "[EOS]": 1, "<|im_end|>": 2, "<|im_user|>": 3, "<|im_assistant|>": 4, "<|im_system|>": 10, "<|tool_calls_section_begin|>": 11,
    "<|tool_calls_section_end|>": 12, "<|tool_call_begin|>": 13, "<|tool_call_argument_begin|>": 14, "<|tool_call_end|>": 15, "<|im_middle|>": 17,
    "<think>": 22, "</think>": 23, "[UNK]": 62, "[PAD]": 63,
}  # fmt: skip  # the offsets of K2's own control block
CONTROL = {name: RANKS + offset for name, offset in _NAMED.items()}
CONTROL |= {
    f"<|reserved_token_{identifier}|>": identifier
    for identifier in range(RANKS, RANKS + 64)
    if identifier not in CONTROL.values()
}
FRAMES = (
    '{"function":{"description":"', '","name":"', '","parameters":{"additionalProperties":false,"properties":{"', '":{"type":"string"}', '":{"type":"integer"}', '},"required":["',
    '"],"type":"object"}},"type":"function"}', ',{"function":{"description":"', '":{"items":{"additionalProperties":false,"properties":{"', '":{"items":{"type":"integer"},"type":"array"}',
    '"],"type":"object"},"type":"array"}', '","', ',"', '[{"function":{"description":"', '"],"type":"object"}},"type":"function"}]',
    '{"claims":[{"evidence":[', '],"text":"', '"},{"evidence":[', '"}],"text":"', '{"claims":[],"text":"', '"}', '{"expression":"', '{"attribute":"', '","entity":"',
    '{"text":"', '{"query":"', '{"file":"', '","line":', '{"to":"', '","unit":"', '","value":"',
    "## Return of functions.", "functions.", "tool_declare", "# differ", " same.", "error: ", "error: timed out after 10 s", "error: busy", "error: no entity '", "'. Nearest: ",
    "error: no attribute '", "' of ", ". Known: ", "rejected: ", " is in no result", " (about ", "g/cm3", "km2", "m2", "km/h",
)  # fmt: skip
MERGES = 600
_REST = r"\p{Lu}?[\p{Ll}\p{Lo}\p{M}]+|\p{L}|\p{N}|(?s:.)"


def pattern(words: list[str]) -> str:
    """The pre-tokenizer: frames, a space with a known word, a word with at most one capital, any other single character."""
    frames = "|".join(_escaped(frame) for frame in sorted(FRAMES, key=lambda frame: (-len(frame), frame)))
    return f"{frames}| (?:{_tree(words)})(?![A-Za-z])|{_REST}"


def _tree(words: Iterable[str]) -> str:
    """A pattern of exactly these words of letters, whose common beginnings stand once: three times as fast as a list."""
    begins: dict[str, list[str]] = {}
    for word in sorted(words):
        begins.setdefault(word[:1], []).append(word[1:])
    ends = begins.pop("", None) is not None
    branches = [letter + _tree(rest) for letter, rest in begins.items()]
    if not branches:
        return ""
    tree = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{tree})?" if ends else tree


def _escaped(text: str) -> str:
    return re.sub(r"([\\.^$|?*+()\[\]{}#&~\-])", r"\\\1", text)


def build(seed: int, documents: int = 60000) -> dict[str, str]:
    """Choose the vocabulary from generated conversations.

    Args:
        seed: of the conversations and names that are counted.
        documents: how many questions are counted.

    Returns:
        File name to content: tiktoken.model and tokenizer_config.json.
    """
    from k2core_nano.train.mix import question  # imported here because the generator encodes with this module
    from k2core_nano.train.questions import solved
    from k2core_nano.train.unseen import offers
    from k2core_nano.train.wire import SPEC, compact

    rng = random.Random(seed)
    own = [
        SPEC["system"],
        *SPEC["tools"].values(),
        *SPEC["think"].values(),
        *SPEC["answers"].values(),
        *SPEC["verdicts"].values(),
        *SPEC["errors"].values(),
        "user\nassistant\nsystem\ntool",
    ]
    texts: list[str] = []
    families = [
        *SPEC["families"]["arithmetic"] * 2, *SPEC["families"]["facts"] * 4, *SPEC["families"]["tasks"] * 2, *["decline"] * 10,
        *["unseen"] * 16, *["search"] * 6, "missing", "chat", "chat",
    ]  # fmt: skip
    for _ in range(documents):
        asked = question(rng, rng.choice(families))
        texts.append(asked.text)
        if rng.random() < 0.1:
            texts += [f"{turn.step.think} {compact(turn.step.arguments)}\n{turn.result}" for turn in solved(asked, rng)]
        if rng.random() < 0.05:
            texts += [offer.declaration for offer in offers(rng, held_out=False)]
    frames = re.compile("|".join(_escaped(frame) for frame in sorted(FRAMES, key=len, reverse=True)))
    counted: Counter[str] = Counter()
    words = re.compile(r" [a-z]+(?![A-Za-z])|[A-Z]?[a-z]+|[A-Z]")
    for text in texts:
        counted.update(words.findall(frames.sub("\n", text)))
    for text in own:  # the words that every conversation has come first
        counted.update(dict.fromkeys(words.findall(frames.sub("\n", re.sub(r"{\w+}", "", text))), 1_000_000))
    merges = _merges(rng)
    pieces = [bytes([byte]) for byte in range(256)] + merges
    pieces += [frame.encode() for frame in FRAMES if frame.encode() not in pieces]
    elements = {name.lower() for name in _names()}
    known: list[str] = []
    for word, _ in counted.most_common():
        bare = word.strip()
        if len(pieces) == RANKS or (len(bare) == 1 and not word.startswith(" ")):
            continue
        if bare.lower() in elements or word.encode() in pieces:
            continue
        pieces.append(word.encode())
        if word.startswith(" "):
            known.append(bare)
    ranks = "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
    config = {
        "added_tokens_decoder": {
            str(identifier): {"content": name, "special": not name.startswith(("<|tool_call", "<think", "</think"))} for name, identifier in sorted(CONTROL.items(), key=lambda item: item[1])
        },
        "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "pat_str": pattern(known),
    }  # fmt: skip
    return {"tiktoken.model": ranks, "tokenizer_config.json": json.dumps(config, indent=1, ensure_ascii=False) + "\n"}


def _names() -> list[str]:
    from k2core_nano.train.names import COUNTRIES, ELEMENTS, PEOPLE

    return [*(part for name in COUNTRIES for part in name.split()), *ELEMENTS, *PEOPLE]


def _merges(rng: random.Random) -> list[bytes]:
    """Byte pairs learned from names, real and invented, and from words the grammar rarely uses."""
    import rustbpe

    from k2core_nano.train.decline_wordings import WORDS
    from k2core_nano.train.names import invented

    real = _names()
    rare = [word for options in WORDS.values() for option in options for word in option.split()]
    corpus = [invented(rng, False) for _ in range(30000)] + (real + rare) * 25
    learner = rustbpe.Tokenizer()
    learner.train_from_iterator(iter(corpus), vocab_size=256 + MERGES, pattern=r"\p{L}+")
    ranked = sorted(learner.get_mergeable_ranks(), key=lambda item: item[1])
    return [bytes(piece) for piece, _ in ranked if len(piece) > 1]


@cache
def load() -> tiktoken.Encoding:
    """The tokenizer of the generator's files.

    Raises:
        FileNotFoundError: the files were not built.
    """
    config = json.loads((FILES / "tokenizer_config.json").read_text(encoding="utf-8"))
    lines = (FILES / "tiktoken.model").read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in (line.split() for line in lines)}
    return tiktoken.Encoding(
        "k2core_nano", pat_str=config["pat_str"], mergeable_ranks=ranks, special_tokens=CONTROL, explicit_n_vocab=RANKS + 64
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line: choose the vocabulary and write both files (the generator's unless told otherwise)."""
    parser = argparse.ArgumentParser(prog="python -m k2core_nano.train.tokenizer", description="Write the tokenizer's files.")
    parser.add_argument(
        "--out", type=Path, default=FILES, help="folder (default: the generator's, and then a new model has to be trained)"
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--documents", type=int, default=60000, help="questions whose words are counted")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for file_name, content in build(options.seed, options.documents).items():
        (options.out / file_name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
