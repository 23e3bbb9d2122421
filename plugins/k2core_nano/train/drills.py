"""Copy drills: the shortest texts from which a model learns to copy and to compare character by character."""

import random

from k2core_nano.train import arithmetic, names
from k2core_nano.train.oracle import compared
from k2core_nano.train.tokenizer import CONTROL
from k2core_nano.train.wire import Builder, Document, encoded
from k2core_nano.train.world import near_miss


def drill(rng: random.Random) -> Document:
    """A copy drill: random pieces, names, numbers or expressions repeated, or a written-out comparison."""
    builder = Builder()
    if rng.random() < 0.25:
        value = _something(rng)
        other = (
            value
            if rng.random() < 0.5
            else near_miss(rng, value)
            if value[-1].isdigit() and value.replace(".", "").isdigit()
            else _something(rng)
        )
        written, same = compared(value, other)
        builder.add(encoded(f"Got {value}, want {other}:"))
        builder.add(encoded(f" {written}." + (" Right." if same else "")), 1)
        return builder.document("copy")
    if rng.random() < 0.45:
        piece = [
            rng.randrange(256, CONTROL["[BOS]"]) if rng.random() < 0.8 else rng.randrange(CONTROL["[BOS]"])
            for _ in range(rng.randint(4, 24))
        ]
        mark = encoded(rng.choice((".", ";", ":", "\n")))
    else:
        piece = encoded(rng.choice((", ", " ", "; ")).join(_something(rng) for _ in range(rng.randint(2, 5))))
        mark = encoded(rng.choice((". ", "; ", ": ", "\n", " = ")))
    builder.add([*piece, *mark])
    for _ in range(rng.choice((1, 1, 2))):
        builder.add(piece, 1)
        builder.add(mark)
    return builder.document("copy")


def _something(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return names.invented(rng, False)
    if draw < 0.45:
        return names.listed(rng, rng.choice((names.COUNTRIES, names.ELEMENTS)), False)
    if draw < 0.8:
        value = str(names.number(rng, 2, 99999))
        return arithmetic.with_decimals(rng, value) if rng.random() < 0.25 else value
    kind = rng.choice(tuple(arithmetic.KINDS.values()))
    return kind.expression.format_map(arithmetic.operands(rng, "times") | {"q": str(rng.randint(2, 999))})
