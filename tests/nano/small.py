"""A small geometry with documents to train it on, and the published formulas written out for it."""

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from attrs import frozen

from k2core_nano.train.geometry import Geometry
from k2core_nano.train.options import parse

SMALL = Geometry(
    vocab_size=48, hidden_size=32, num_hidden_layers=3, intermediate_size=64, n_routed_experts=4, moe_intermediate_size=32,
    num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16,
    max_position_embeddings=512, rope_original_max=128,
)  # fmt: skip


@frozen(kw_only=True)
class Doc:
    """A training document."""

    ids: list[int]
    weights: list[int]
    family: str


@frozen(kw_only=True)
class Documents:
    """Documents behind one prefix."""

    prefix: list[int]
    documents: list[Doc]


def copies(seed: int, *, tokens: int, phase: str) -> Iterator[Documents]:
    """Endless groups whose documents repeat a random run of tokens once."""
    rng = random.Random(f"{seed} {phase}")
    while True:
        documents = []
        for _ in range(8):
            run = [rng.randrange(4, 20) for _ in range(rng.randint(3, 6))]
            documents.append(Doc(ids=[1, *run, 2, *run, 3], weights=[0] * (len(run) + 2) + [1] * (len(run) + 1), family=phase))
        yield Documents(prefix=[rng.randrange(4, 40) for _ in range(5)], documents=documents)


def broken(seed: int, *, tokens: int, phase: str) -> Iterator[Documents]:
    """A generator with a mistake in its third step."""
    if seed // 128 % 1_000_003 == 2:
        raise ValueError("a mistake")
    return copies(seed, tokens=tokens, phase=phase)


def options(*extra: str) -> Any:
    """Command-line options for a tiny single-process run."""
    sizes = "--processes 1 --step-tokens 600 --copy-step-tokens 600 --pass-tokens 300 --warmup-steps 5"
    return parse(["--out", "unused", *sizes.split(), *extra])


def reference_logits(tensors: dict[str, Any], config: dict[str, Any], ids: list[int]) -> Any:
    """Logits (tokens, vocab) in float64 from an exported folder's tensors, straight from the published formulas."""
    eps, heads = config["rms_norm_eps"], config["num_attention_heads"]
    nope, rope, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    scaling = config["rope_scaling"]

    def weight(name: str) -> Any:
        if f"{name}.weight" in tensors:
            return tensors[f"{name}.weight"].double()
        packed, scale = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"].double()
        rows, cols = tensors[f"{name}.weight_shape"].tolist()
        out = torch.empty(rows, cols, dtype=torch.float64)
        for column in range(cols):
            code = (packed[:, column // 8].long() >> (4 * (column % 8))) & 15
            out[:, column] = (code - 8) * scale[:, column // 32]
        return out

    def norm(x: Any, name: str) -> Any:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight(name)

    def swiglu(x: Any, name: str) -> Any:
        gate = x @ weight(f"{name}.gate_proj").T
        return (gate * gate.sigmoid() * (x @ weight(f"{name}.up_proj").T)) @ weight(f"{name}.down_proj").T

    corrected = [
        rope
        * math.log(scaling["original_max_position_embeddings"] / (2 * math.pi * turns))
        / (2 * math.log(config["rope_theta"]))
        for turns in (scaling["beta_fast"], scaling["beta_slow"])
    ]
    low, high = max(0, math.floor(corrected[0])), min(rope - 1, math.ceil(corrected[1]))
    frequencies = []
    for i in range(rope // 2):
        ramp = min(1.0, max(0.0, (i - low) / (high - low)))
        frequencies.append(config["rope_theta"] ** (-2 * i / rope) * (1 - ramp + ramp / scaling["factor"]))
    angle = torch.outer(torch.arange(len(ids), dtype=torch.float64), torch.tensor(frequencies, dtype=torch.float64))

    def rotate(x: Any) -> Any:  # (tokens, heads, rope)
        even, odd, cos, sin = x[..., 0::2], x[..., 1::2], angle.cos()[:, None], angle.sin()[:, None]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    scale = (nope + rope) ** -0.5 * (0.1 * math.log(scaling["factor"]) + 1) ** 2
    x = weight("model.embed_tokens")[torch.tensor(ids)]
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        h = norm(x, f"{base}.input_layernorm")
        q = norm(h @ weight(f"{base}.self_attn.q_a_proj").T, f"{base}.self_attn.q_a_layernorm")
        q = (q @ weight(f"{base}.self_attn.q_b_proj").T).view(len(ids), heads, -1)
        a = h @ weight(f"{base}.self_attn.kv_a_proj_with_mqa").T
        kv = norm(a[:, :rank], f"{base}.self_attn.kv_a_layernorm") @ weight(f"{base}.self_attn.kv_b_proj").T
        kv = kv.view(len(ids), heads, -1)
        s = torch.einsum("ihd,jhd->hij", q[..., :nope], kv[..., :nope])
        s = s + torch.einsum("ihd,jd->hij", rotate(q[..., nope:]), rotate(a[:, None, rank:])[:, 0])
        s = (s * scale).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), float("-inf"))
        o = torch.einsum("hij,jhd->ihd", s.softmax(-1), kv[..., nope:]).flatten(1)
        x = x + o @ weight(f"{base}.self_attn.o_proj").T
        h = norm(x, f"{base}.post_attention_layernorm")
        if layer < config["first_k_dense_replace"]:
            x = x + swiglu(h, f"{base}.mlp")
            continue
        scores = (h @ weight(f"{base}.mlp.gate").T).sigmoid()
        bias = tensors[f"{base}.mlp.gate.e_score_correction_bias"].double()
        chosen = (scores + bias).topk(config["num_experts_per_tok"], -1).indices
        y = swiglu(h, f"{base}.mlp.shared_experts")
        for token in range(len(ids)):
            total = scores[token, chosen[token]].sum()
            for expert in chosen[token].tolist():
                share = scores[token, expert] / total * config["routed_scaling_factor"]
                y[token] += share * swiglu(h[token], f"{base}.mlp.experts.{expert}")
        x = x + y
    return norm(x, "model.norm") @ weight("lm_head").T
