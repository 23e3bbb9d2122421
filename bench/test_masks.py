"""What masks cost: a token asked for, a whole mask, going on; compiling a turn's grammar; making the vocabulary's trie.

Run with ``pytest bench/test_masks.py -s``. Over the embedded model's vocabulary and one of K2's size, 163,840 tokens: the
family's own file where it lies (``K2CORE_TEST_ASSETS`` or ``../shared/assets``), else a synthetic one. The turns that are timed
are first followed to their end: every token must be allowed by the mask and when asked for alone.
"""

import json
import os
import random
import time
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from k2core.engine.bytewise import is_empty
from k2core.engine.grammar import Masks
from k2core.language import GenerateOptions
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_kimi.vocabulary import Vocabulary
from k2core_nano import WEIGHTS

rules_module = import_module("k2core.engine.schemas.rules")
ASSETS = Path(os.environ.get("K2CORE_TEST_ASSETS") or Path(__file__).parents[2] / "shared" / "assets") / "kimi"
K2_SIZE, PLAIN = 163_840, 163_584
CODE = 'def f(x):\n    return [y for y in x if y > 0]  # "positive" ones: über, 你好\n' * 3
TURNS = {
    "thinking and content": (1, "<think>{words}</think>{words}<|im_end|>"),
    "a short call": (7, '<think></think>{begin}calculator:0{arguments}{{"expression":"23 * 47 + 1"}}{end}'),
    "a long text": (7, "<think></think>{begin}write_file:0{arguments}{code}{end}"),
    "a nested call": (95, "<think></think>{begin}answer:0{arguments}{answer}{end}"),
    "formats and bounds": (95, "<think></think>{begin}fetch:0{arguments}{fetch}{end}"),
}


@cache
def tokenizer_of(vocabulary):
    """The embedded model's tokenizer, or one of K2's size."""
    if vocabulary == "embedded":
        return KimiTokenizer.open(WEIGHTS)
    if ASSETS.is_dir():
        return KimiTokenizer.open(ASSETS)
    drawn, pieces = random.Random(0), {bytes([byte]): None for byte in range(256)}
    while len(pieces) < PLAIN:
        pieces["".join(drawn.choices('etaoinshrdlu ET,.{}":[]0123456789', k=drawn.randint(2, 9))).encode()] = None
    names = [text for text in KimiTokenizer.open(WEIGHTS).control if "reserved" not in text]
    names += [f"<|reserved_token_{PLAIN + place}|>" for place in range(len(names), K2_SIZE - PLAIN)]
    control = {text: PLAIN + place for place, text in enumerate(names)}
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    return KimiTokenizer.from_vocabulary(Vocabulary(ranks=ranks, control=control, size=K2_SIZE))


def tools_of(count):
    """The first tools of the corpus; the seven of k2core's own are in front."""
    text = files("k2core_specs").joinpath("cases/tool_schemas.jsonl").read_text(encoding="utf-8")
    lines = text.strip("\n").split("\n")[:count]
    return [{"type": "function", "function": json.loads(line)} for line in lines]


def ids_of(tokenizer, turn):
    """A turn's ids."""
    compact = {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": True}
    text = turn.format(
        words="Let me see what the tides do at Brest, and what they do at Vigo. " * 4,
        begin="<|tool_calls_section_begin|><|tool_call_begin|>functions.",
        arguments="<|tool_call_argument_begin|>",
        end="<|tool_call_end|><|tool_calls_section_end|><|im_end|>",
        code=json.dumps({"path": "a.py", "text": CODE}, **compact),
        answer=json.dumps({"claims": [{"evidence": [3], "text": "It is so."}] * 4, "text": "So it is."}, **compact),
        fetch=json.dumps({"max_length": 5000, "raw": True, "url": "https://example.com/a/b?c=d"}, **compact),
    )
    return tokenizer.encode(text, control=True)


def spread(seconds):
    """Median, mean and 99th percentile in microseconds."""
    values = np.array(seconds) * 1e6
    return f"{np.median(values):6.1f} {values.mean():6.1f} {np.percentile(values, 99):7.1f}"


@pytest.mark.parametrize("vocabulary", ["embedded", "K2's size"])
def test_masks(vocabulary):
    """A table of what each position of five turns costs, asked in three ways."""
    tokenizer = tokenizer_of(vocabulary)
    chat_format, clock = KimiChatFormat(tokenizer), time.perf_counter
    masks = Masks(tokenizer, chat_format.stop_ids)
    begun = clock()
    masks.start('start: "x"\n')
    print(f"\n{vocabulary}: {tokenizer.vocab_size:,} tokens; vocabulary made in {clock() - begun:.2f} s")
    print(f"{'us per token: median, mean, p99':24} {'allows':>22} {'mask':>23} {'accept':>23} {'forced':>23}")
    for name, (count, turn) in TURNS.items():
        grammar = chat_format.grammar(tools_of(count), GenerateOptions())
        ids = ids_of(tokenizer, turn)
        check(masks.start(grammar), ids)
        allows, mask, accept, forced = [], [], [], []
        for _ in range(5):
            asked, whole = masks.start(grammar), masks.start(grammar)
            for token in ids:
                allows.append(timed(asked.allows, token))
                accept.append(timed(asked.accept, token))
                forced.append(timed(whole.forced))
                mask.append(timed(whole.mask))
                whole.accept(token)
        print(f"{name:24} {spread(allows):>22} {spread(mask):>23} {spread(accept):>23} {spread(forced):>23}")
    if vocabulary == "embedded":
        assert np.median(mask) < 1e-3


@pytest.mark.parametrize("vocabulary", ["embedded", "K2's size"])
@pytest.mark.parametrize("count", [1, 7, 95])
def test_grammars(vocabulary, count):
    """Seconds from declarations to a turn that can begin: first time, next turn of the same tools, and from the cache."""
    tokenizer = tokenizer_of(vocabulary)
    chat_format = KimiChatFormat(tokenizer)
    masks = Masks(tokenizer, chat_format.stop_ids)
    masks.start('start: "x"\n')
    tools = tools_of(count)
    for remembered in (rules_module._rules, rules_module._shapes, is_empty):
        remembered.cache_clear()
    first = timed(chat_format.grammar, tools, GenerateOptions())
    written = [timed(chat_format.grammar, tools, GenerateOptions(), next_call_index=index) for index in range(1, 6)]
    compiled = [
        timed(masks.start, chat_format.grammar(tools, GenerateOptions(), next_call_index=index)) for index in range(1, 6)
    ]
    cached = [timed(masks.start, chat_format.grammar(tools, GenerateOptions(), next_call_index=5)) for _ in range(5)]

    print(
        f"\n{vocabulary}, {count} tools: {first * 1e3:.1f} ms to read the schemas, then "
        f"{np.median(written) * 1e3:.2f} ms to write a turn's grammar, {np.median(compiled) * 1e3:.2f} ms to compile it, "
        f"{np.median(cached) * 1e6:.0f} us from the cache"
    )
    check(masks.start(chat_format.grammar(tools, GenerateOptions())), ids_of(tokenizer, TURNS["a short call"][1]))


def check(constraint, ids):
    """Follow a turn to its end: allowed by mask and alone, no other end, forced tokens allowed."""
    for token in ids:
        forced = constraint.forced()
        assert not forced or constraint.allows(forced[0])
        assert constraint.allows(token)
        assert constraint.mask()[token]
        assert not constraint.done
        constraint.accept(token)
    assert constraint.done


def timed(function, *arguments, **options):
    """Seconds of one call."""
    begun = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - begun
