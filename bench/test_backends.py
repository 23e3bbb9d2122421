"""Every backend on the embedded model: decoding one stream and sixteen, and a prompt; run with ``-s`` on an idle machine.

Answers are compared with the first backend's before anything is timed. Rounds of all backends are interleaved.
"""

import statistics
import time

import numpy as np
import pytest

from k2core.conformance.subjects import Missing, discovered
from k2core.interfaces import SequenceInput, Want
from k2core_nano import WEIGHTS

pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)
PROMPT = [index * 7 % 1400 for index in range(128)]
STEPS, ROUNDS = 40, 5


def decode(model, streams):
    """Tokens per second of so many streams behind the prompt."""
    root = model.new_sequence()
    model.forward([SequenceInput(handle=root, token_ids=PROMPT)], Want(logits="none"))
    handles = [model.fork(root, len(PROMPT)) for _ in range(streams)]
    start = time.perf_counter()
    for step in range(STEPS):
        model.forward([SequenceInput(handle=handle, token_ids=[step + 5]) for handle in handles])
    rate = streams * STEPS / (time.perf_counter() - start)
    for handle in (root, *handles):
        model.free(handle)
    return rate


def prefill(model):
    """Tokens per second of a prompt of 1,024."""
    handle, start = model.new_sequence(), time.perf_counter()
    model.forward([SequenceInput(handle=handle, token_ids=PROMPT * 8)])
    rate = 8 * len(PROMPT) / (time.perf_counter() - start)
    model.free(handle)
    return rate


def test_speed_of_backends():
    """A table; ratios to the first."""
    models = {}
    for one in discovered():
        if not isinstance(one, Missing):
            name = f"{one.name} {one.device} {one.numerics}"
            models[name] = one.backend.load(WEIGHTS, device=one.device, numerics=one.numerics)
    rows = {}
    for name, model in models.items():
        step = model.forward([SequenceInput(handle=model.new_sequence(), token_ids=PROMPT)])
        rows[name] = np.asarray(step.logits)[0]
    first = next(iter(models))
    for name, row in rows.items():
        assert np.argmax(row) == np.argmax(rows[first])
        assert np.abs(row - rows[first]).max() < (1e-3 if name.endswith("exact") else 2.0)
    found = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            found[name].append((decode(model, 1), decode(model, 16), prefill(model)))
    print(f"\n{'':20}{'decode 1':>12}{'decode 16':>12}{'prompt':>12}  tokens/s, medians")
    for name, rounds in found.items():
        print(f"{name:20}" + "".join(f"{statistics.median(column):12,.0f}" for column in zip(*rounds, strict=True)))
