# ruff: noqa: E501  (word lists and frames read best undivided)
"""The tokenizer of the embedded model: 1472 byte strings with ranks, 64 control tokens, one pattern.

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
from functools import cache
from pathlib import Path

import tiktoken

WEIGHTS = Path(__file__).parent.parent / "weights"
RANKS = 1472
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
MERGES = 330
_REST = r"\p{Lu}?[\p{Ll}\p{Lo}\p{M}]+|\p{L}|\p{N}|(?s:.)"


def pattern(words: list[str]) -> str:
    """The pre-tokenizer: frames, a space with a known word, a word with at most one capital, any other single character."""
    frames = "|".join(_escaped(frame) for frame in sorted(FRAMES, key=lambda frame: (-len(frame), frame)))
    known = "|".join(sorted(words, key=lambda word: (-len(word), word)))
    return f"{frames}| (?:{known})(?![A-Za-z])|{_REST}"


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
    from k2core_nano.train.tool_sets import foreign_tools
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
    families = [*SPEC["families"]["arithmetic"], *SPEC["families"]["facts"] * 3, *["decline"] * 8, "missing", "chat", "chat"]
    for _ in range(documents):
        asked = question(rng, rng.choice(families))
        texts.append(asked.text)
        if rng.random() < 0.1:
            texts += [f"{turn.step.think} {compact(turn.step.arguments)}\n{turn.result}" for turn in solved(asked, rng)]
        if rng.random() < 0.01:
            texts += foreign_tools(rng).values()
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

    from k2core_nano.train.declines import WORDS
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
    """The tokenizer of the shipped files.

    Raises:
        FileNotFoundError: the files were not built.
    """
    config = json.loads((WEIGHTS / "tokenizer_config.json").read_text(encoding="utf-8"))
    lines = (WEIGHTS / "tiktoken.model").read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in (line.split() for line in lines)}
    return tiktoken.Encoding(
        "k2core_nano", pat_str=config["pat_str"], mergeable_ranks=ranks, special_tokens=CONTROL, explicit_n_vocab=RANKS + 64
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line: choose the vocabulary and write both files (the shipped ones unless told otherwise)."""
    parser = argparse.ArgumentParser(prog="python -m k2core_nano.train.tokenizer", description="Write the tokenizer's files.")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="folder (default: the shipped weights, which then need training)"
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--documents", type=int, default=60000, help="questions whose words are counted")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for file_name, content in build(options.seed, options.documents).items():
        (options.out / file_name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
