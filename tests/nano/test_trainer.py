"""The training model, its optimiser, its rounding and its export."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from k2core_nano.train.attention import Block, block_attention  # noqa: E402
from k2core_nano.train.experts import routed_experts  # noqa: E402
from k2core_nano.train.export import export, load_exported  # noqa: E402
from k2core_nano.train.geometry import Geometry  # noqa: E402
from k2core_nano.train.model import NanoModel, RmsNorm, _Rotate, token_losses  # noqa: E402
from k2core_nano.train.muon import clip_queries_and_keys, orthogonalise  # noqa: E402
from k2core_nano.train.packing import pack, rectangles  # noqa: E402
from k2core_nano.train.quantise import dequantise, fake_quantise, quantise, unpack  # noqa: E402
from k2core_nano.train.quantise import pack as pack_words  # noqa: E402
from k2core_nano.train.trainer import Trainer, parser  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def copies(seed: int, tokens: int, phase: str) -> Iterator[Documents]:
    """Endless groups whose documents repeat a random run of tokens once."""
    rng = random.Random(f"{seed} {phase}")
    while True:
        documents = []
        for _ in range(8):
            run = [rng.randrange(4, 20) for _ in range(rng.randint(3, 6))]
            documents.append(Doc(ids=[1, *run, 2, *run, 3], weights=[0] * (len(run) + 2) + [1] * (len(run) + 1), family=phase))
        yield Documents(prefix=[rng.randrange(4, 40) for _ in range(5)], documents=documents)


def options(*extra: str) -> Any:
    """Command-line options for a tiny single-process run."""
    return parser().parse_args(
        [
            "--out",
            "unused",
            "--processes",
            "1",
            "--step-tokens",
            "600",
            "--copy-step-tokens",
            "600",
            "--pass-tokens",
            "300",
            "--warmup-steps",
            "5",
            *extra,
        ]
    )


def random_group(seed: int, prefix: int, lengths: list[int]) -> Documents:
    """A group of random tokens in which every token of every document is a target."""
    rng = random.Random(seed)
    draw = lambda n: [rng.randrange(48) for _ in range(n)]  # noqa: E731
    documents = [
        Doc(ids=draw(n), weights=[rng.randint(0, 3) for _ in range(n)], family=f"f{i % 2}") for i, n in enumerate(lengths)
    ]
    return Documents(prefix=draw(prefix), documents=documents)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 9999), prefix=st.integers(0, 9), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_a_shared_prefix_trains_like_whole_sequences(seed: int, prefix: int, lengths: list[int]) -> None:
    """Loss and every gradient of a packed group equal those of each prefix + document as a sequence of its own."""
    torch.manual_seed(seed)
    model = NanoModel(SMALL).double()
    model.rotations = SMALL.rotations().to(torch.complex128)
    group = random_group(seed, prefix, lengths)
    whole = [
        Documents(prefix=[], documents=[Doc(ids=group.prefix + d.ids, weights=[0] * prefix + d.weights, family=d.family)])
        for d in group.documents
    ]

    def gradients(batches: list[Any]) -> tuple[float, list[Any]]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            if len(batch.target_rows):
                loss = (token_losses(model, batch) * batch.target_weights.double()).sum()
                loss.backward()
                total += float(loss.detach())
        return total, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    packed_loss, packed = gradients([pack([group], overhead=2)])
    plain_loss, plain = gradients([pack([one]) for one in whole])
    assert packed_loss == pytest.approx(plain_loss, rel=1e-9, abs=1e-9)
    for (name, _), left, right in zip(model.named_parameters(), packed, plain, strict=True):
        assert torch.allclose(left, right, rtol=1e-7, atol=1e-9), name


def reference_logits(tensors: dict[str, Any], config: dict[str, Any], ids: list[int]) -> Any:
    """Logits (tokens, vocab) in float64 from an exported folder's tensors, straight from the published formulas."""
    import math

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


def trained(tmp_path: Path, *extra: str) -> Trainer:
    """A trainer of the small model after a handful of steps, ending in the rounding phase."""
    trainer = Trainer(options("--tokens", "9000", "--copy-tokens", "3000", "--seconds", "0", *extra), SMALL, copies)
    trainer.run(tmp_path)
    return trainer


def test_exported_folder_is_what_was_trained(tmp_path: Path) -> None:
    """An exported, reloaded model gives the rounded model's logits bit for bit, and the published formulas' closely."""
    from safetensors.torch import load_file

    trainer = trained(tmp_path)
    assert trainer.counters["rounding"]
    export(tmp_path / "latest.pt", tmp_path / "hf", bos_token_id=0, eos_token_id=1, pad_token_id=2)
    reloaded = load_exported(tmp_path / "hf")
    ids = [5, 9, 7, 30, 12, 5, 9, 7, 41, 0, 3]
    document = Doc(ids=ids, weights=[0] + [1] * (len(ids) - 1), family="x")
    batch = pack([Documents(prefix=[], documents=[document])])
    with torch.no_grad():
        mine, theirs = trainer.model(batch), reloaded(batch)
    assert torch.equal(mine, theirs)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = reference_logits(tensors, config, ids[:-1])
    assert torch.allclose(mine.double(), expected, rtol=1e-4, atol=1e-4)
    assert tensors["model.layers.1.mlp.experts.0.gate_proj.weight_packed"].dtype == torch.int32
    assert tensors["model.layers.1.mlp.experts.0.gate_proj.weight_shape"].tolist() == [32, 32]
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert json.loads((tmp_path / "hf" / "training.json").read_text())["trained_rounded"] is True


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopping at a checkpoint and resuming changes no bit of the final weights."""
    whole = trained(tmp_path, "--warmup-steps", "1", "--copy-until", "0")
    (tmp_path / "part").mkdir()
    first = Trainer(
        options("--tokens", "9000", "--copy-tokens", "3000", "--warmup-steps", "1", "--copy-until", "0"), SMALL, copies
    )
    first.set_weights()
    for _ in range(6):
        first.step(started=0.0, watch_logits=False)
    first.save(tmp_path / "part" / "latest.pt")
    second = Trainer(
        options("--tokens", "9000", "--copy-tokens", "3000", "--warmup-steps", "1", "--copy-until", "0"), SMALL, copies
    )
    second.load(tmp_path / "part" / "latest.pt", restart_schedule=False)
    second.run(tmp_path / "part")
    assert second.counters["step"] == whole.counters["step"]
    for name, left, right in zip(whole.names, whole.masters, second.masters, strict=True):
        assert torch.equal(left, right), name


def test_copying_is_learnt(tmp_path: Path) -> None:
    """A few hundred steps on repeated runs bring the loss well below guessing."""
    trainer = Trainer(
        options("--tokens", "90000", "--copy-tokens", "1", "--rounding-share", "0", "--muon-rate", "0.02"), SMALL, copies
    )
    trainer.run(tmp_path)
    assert trainer.counters["smooth"] < 2.0  # guessing among the 16 letters: 2.77


@settings(deadline=None)
@given(seed=st.integers(0, 9999), rows=st.integers(1, 5), groups=st.integers(1, 4), scale=st.floats(1e-6, 1e4))
def test_rounding_is_idempotent_close_and_packs_losslessly(seed: int, rows: int, groups: int, scale: float) -> None:
    """Rounded weights are fixed points within half a step (plus scale rounding), and packing returns the same codes."""
    torch.manual_seed(seed)
    weight = torch.randn(rows, 32 * groups) * scale
    codes, scales = quantise(weight)
    assert torch.equal(unpack(pack_words(codes)), codes)
    assert int(codes.abs().max()) <= 7
    rounded = fake_quantise(weight)
    assert torch.equal(rounded, dequantise(codes, scales))
    step = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 7
    assert bool(((rounded - weight).unflatten(-1, (-1, 32)).abs() <= 0.53 * step).all())


def test_packing_puts_the_first_column_in_the_lowest_nibble() -> None:
    """Codes -7, 0, 7 land as 1, 8, 15 from the lowest nibble up, and the top nibble makes the word negative."""
    words = pack_words(torch.tensor([[-7, 0, 7, -7, -7, -7, -7, 7]], dtype=torch.int8))
    assert words.tolist() == [[0xF1111F81 - 2**32]]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 9999), rows=st.integers(2, 12), cols=st.integers(2, 12))
def test_orthogonalised_updates_have_flat_singular_values(seed: int, rows: int, cols: int) -> None:
    """Newton-Schulz keeps the singular directions and brings well-conditioned singular values into 0.6..1.3."""
    torch.manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(rows, cols), full_matrices=False)
    s = torch.linspace(1, 3, u.shape[1])
    result = orthogonalise(((u * s) @ vh).unsqueeze(0))[0]
    inner = u.T @ result @ vh.T
    assert bool(((inner.diagonal() > 0.6) & (inner.diagonal() < 1.3)).all())
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-3)


def test_hand_written_gradients_are_right() -> None:
    """Attention with prefixes, experts, norm and rotation pass the numerical gradient check."""
    torch.manual_seed(0)
    blocks = (Block(start=0, rows=1, length=3), Block(start=3, rows=2, length=2, prefix_start=0, prefix_length=3))
    q, k, v = (torch.randn(7, 2, d, dtype=torch.float64, requires_grad=True) for d in (4, 4, 3))
    assert torch.autograd.gradcheck(lambda q, k, v: block_attention(q, k, v, blocks, 0.7), (q, k, v))
    x, gate_up, down, share = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (3, 2, 3, 4), (3, 4, 3), (5, 2))
    )
    chosen = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])  # expert 2 unused
    assert torch.autograd.gradcheck(lambda *t: routed_experts(t[0], t[1], t[2], chosen, t[3])[0], (x, gate_up, down, share))
    assert torch.autograd.gradcheck(RmsNorm(4, 1e-5).double(), (x,))
    rotation = torch.polar(torch.ones(5, 1, 1), torch.randn(5, 1, 1)).to(torch.complex128)
    assert torch.autograd.gradcheck(lambda t: _Rotate.apply(t.unsqueeze(1), rotation), (x,))


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(0, 100))
def test_rectangles_cover_every_document_once(lengths: list[int], overhead: int) -> None:
    """The runs are contiguous, cover all documents, and never cost more than one rectangle for everything."""
    lengths.sort()
    runs = rectangles(lengths, overhead)
    assert [i for first, stop in runs for i in range(first, stop)] == list(range(len(lengths)))
    cost = sum(lengths[stop - 1] * (stop - first) + overhead for first, stop in runs)
    assert not lengths or cost <= lengths[-1] * len(lengths) + overhead


def test_config_round_trips() -> None:
    """A geometry read back from its config.json form is the same geometry."""
    assert Geometry.from_config(SMALL.config(bos_token_id=0, eos_token_id=1, pad_token_id=2)) == SMALL


def test_clipping_brings_the_largest_logit_to_the_limit() -> None:
    """A clipped head's largest logit becomes the limit; values and the other head's weights stay as they were."""
    torch.manual_seed(0)
    attention = NanoModel(SMALL).layers[0].self_attn
    x = torch.randn(6, SMALL.hidden_size)
    rotation = SMALL.rotations()[:6].unsqueeze(1)
    blocks = (Block(start=0, rows=1, length=6),)

    def peaks() -> Any:
        peak = torch.zeros(SMALL.num_attention_heads)
        with torch.no_grad():
            attention(x, rotation, blocks, peak)
        return peak

    before = peaks()
    limit = float(before.max()) / 2
    query, key_value = attention.q_b_proj.weight.detach(), attention.kv_b_proj.weight.detach()
    values = key_value.view(2, -1, SMALL.kv_lora_rank)[:, SMALL.qk_nope_head_dim :].clone()
    clipped = clip_queries_and_keys(query, key_value, before, limit, SMALL.qk_nope_head_dim)
    assert clipped == int((before > limit).sum())
    assert torch.allclose(peaks(), before.clamp_max(limit), rtol=1e-4)
    assert torch.equal(values, key_value.view(2, -1, SMALL.kv_lora_rank)[:, SMALL.qk_nope_head_dim :])


def test_a_stop_request_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    """A trainer asked to stop finishes its step, saves, and says that it was stopped."""
    trainer = Trainer(options("--tokens", "9000"), SMALL, copies)
    trainer.stop_requested = True
    assert trainer.run(tmp_path) == "stopped"
    again = Trainer(options("--tokens", "9000"), SMALL, copies)
    again.load(tmp_path / "latest.pt", restart_schedule=True)
    assert again.counters["step"] == 1
    assert again.progress() == 0.0


def test_ranks_train_one_model(tmp_path: Path) -> None:
    """Two processes on disjoint documents end with a checkpoint that has seen the documents of both."""
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "k2core_nano.train.trainer", "--out", str(tmp_path), "--tokens", "1500"]
    sizes = ["--copy-step-tokens", "600", "--warmup-steps", "1", "--copy-until", "0"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, timeout=500, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "latest.pt", weights_only=True)
    assert state["counters"]["document_tokens"] >= 1500
    assert state["counters"]["step"] <= 3
