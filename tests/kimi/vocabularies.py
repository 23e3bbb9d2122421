"""A small vocabulary in the family's form: 256 bytes, a few merges, the family's control tokens."""

import base64
import json
from functools import cache
from pathlib import Path

from k2core_kimi.tokenizer import KimiTokenizer
from k2core_kimi.vocabulary import Vocabulary

MERGES = [
    "th",
    "he",
    "in",
    "functions",
    "func",
    "fu",
    "nc",
    "user",
    "us",
    "er",
    "assistant",
    "é",
    "你",
    "🙂"[:1],
    '{"',
    '":',
    '"}',
    "  ",
]
NAMED = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    22: "<think>",
    23: "</think>",
    255: "[PAD]",
}


def pieces() -> list[bytes]:
    """Every single byte, then the merges."""
    return list(dict.fromkeys([bytes([byte]) for byte in range(256)] + [merge.encode() for merge in MERGES]))


def write_vocabulary(folder: Path, *, pattern: str | None = None) -> Path:
    """The two files of the small vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(pieces())]
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n", encoding="ascii")
    first = len(pieces())
    added = {str(first + offset): {"content": text, "special": True} for offset, text in NAMED.items()}
    config = {"added_tokens_decoder": added} | ({} if pattern is None else {"pat_str": pattern})
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@cache
def small() -> KimiTokenizer:
    """The small vocabulary as a tokenizer."""
    ranks = {piece: rank for rank, piece in enumerate(pieces())}
    first = len(ranks)
    control = {NAMED.get(offset, f"<|reserved_token_{first + offset}|>"): first + offset for offset in range(256)}
    return KimiTokenizer.from_vocabulary(Vocabulary(ranks=ranks, control=control, size=first + 256))
