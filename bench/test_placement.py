"""What missing experts cost: a miss against a hit at Kimi K2's sizes, and a forward that stops at each layer.

Run with ``pytest bench/test_placement.py -s``. Sums and logits are compared bit for bit before anything is timed.

    hit        an expert's products for one token, its weights being in the cache
    miss       the same, after it was read from the file's pages (which the system holds) and repacked
    copy       a plain copy of as many bytes, the least that a miss could take beyond a hit
    in one     the compiled forward of all layers, all experts there
    layered    a forward that comes back to Python at each MoE layer, all experts there; and with half of them there
"""

import statistics
import time

import numpy as np
import pytest

from k2core.interfaces import Routing, SequenceInput, Want
from k2core.testing.checkpoints import write_tiny_checkpoint
from k2core_nano import WEIGHTS
from k2core_numba.backend import NumbaBackend

HAS_NANO = (WEIGHTS / "model.safetensors").exists()
HIDDEN, INNER, EXPERTS, TOP_K, ROUNDS = 7168, 2048, 6, 2, 9
ONE = 24_772_608  # bytes of an expert
SIZES = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 96,
    "kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 512,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "vocab_size": 1536,
    "max_position_embeddings": 4096,
}  # fmt: skip
FAR = 10**12  # bytes, more than any of these takes


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """One layer of experts at Kimi K2's sizes."""
    sizes = {"hidden_size": HIDDEN, "moe_intermediate_size": INNER, "n_routed_experts": EXPERTS, "num_experts_per_tok": TOP_K}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("layer"), num_hidden_layers=2, **sizes)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """The embedded model's checkpoint, or a random one of its sizes."""
    return WEIGHTS if HAS_NANO else write_tiny_checkpoint(tmp_path_factory.mktemp("nano"), seed=1, **SIZES)


def seconds_of(call):
    """Median of some rounds, after one that does not count."""
    found = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def test_miss(layer):
    """One token that walks over all experts: all of them there, and never one of them."""
    roomy, scarce = (NumbaBackend().load_experts(layer, expert_bytes=slots * ONE) for slots in (EXPERTS, TOP_K))
    x = np.random.default_rng(0).standard_normal((1, HIDDEN)).astype(np.float32)
    weights = np.ones((1, TOP_K), np.float32)
    pairs = [Routing(expert_ids=np.array([[at, at + 1]], np.int32), weights=weights) for at in range(0, EXPERTS, TOP_K)]
    for routing in pairs:
        np.testing.assert_array_equal(roomy.experts(1, x, routing), scarce.experts(1, x, routing))

    def walk(experts):
        for routing in pairs:
            experts.experts(1, x, routing)

    source, target = np.ones((2, ONE), np.uint8)
    hit, miss = (seconds_of(lambda experts=experts: walk(experts)) / EXPERTS for experts in (roomy, scarce))
    copy = seconds_of(lambda: np.copyto(target, source))
    told = scarce.info()
    assert (told["expert_hits"], int(told["expert_misses"])) == ("0", EXPERTS * (ROUNDS + 2))
    print(
        f"\nan expert of {ONE / 1e6:.1f} MB: hit {hit * 1e3:.1f} ms ({ONE / hit / 1e9:.1f} GB/s of weights), "
        f"miss {miss * 1e3:.1f} ms ({miss / hit:.1f} hits); "
        f"repacking alone {ONE / (miss - hit) / 1e6:.0f} MB/s, a copy {ONE / copy / 1e6:.0f} MB/s"
    )


@pytest.mark.parametrize("context", [64, 512])
def test_layered(nano, context):
    """Greedy decoding of 100 tokens, the ways taking turns so that all see the same machine."""
    whole, layered = NumbaBackend().load(nano), NumbaBackend().load(nano, expert_bytes=FAR)
    half = NumbaBackend().load(nano, expert_bytes=int(layered.info()["expert_bytes"]) // 2)
    models, count = {"in one": whole, "layered": layered, "half there": half}, 100
    handles = {name: model.new_sequence() for name, model in models.items()}
    prompt, spent, logits = [7] * context, {name: [] for name in models}, {}
    for name, model in models.items():
        model.forward([SequenceInput(handle=handles[name], token_ids=prompt)], Want(logits="none"))
    for _ in range(ROUNDS):
        for name, model in models.items():
            model.truncate(handles[name], context)
            token, start = 7, time.thread_time()
            for _ in range(count):
                logits[name] = model.forward([SequenceInput(handle=handles[name], token_ids=[token])]).logits[0]
                token = int(logits[name].argmax())
            spent[name].append((time.thread_time() - start) / count)
        for name in models:
            np.testing.assert_array_equal(logits[name], logits["in one"])
    told = half.info()
    hits, misses = int(told["expert_hits"]), int(told["expert_misses"])
    figures = ", ".join(f"{name} {statistics.median(one) * 1e6:.0f} us" for name, one in spent.items())
    print(f"\na token behind {context}, of processor time: {figures} ({hits / (hits + misses):.0%} hits)")
    for model in models.values():
        model.close()
