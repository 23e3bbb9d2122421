"""The training model, its hand-written gradients, its packing, its optimiser and its rounding."""

import random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nano.small import SMALL, Doc, Documents  # noqa: E402

from k2core_nano.train.attention import Block, block_attention  # noqa: E402
from k2core_nano.train.experts import routed_experts  # noqa: E402
from k2core_nano.train.geometry import Geometry  # noqa: E402
from k2core_nano.train.model import NanoModel, RmsNorm, _Rotate, token_losses  # noqa: E402
from k2core_nano.train.muon import clip_queries_and_keys, orthogonalise  # noqa: E402
from k2core_nano.train.packing import pack, rectangles  # noqa: E402
from k2core_nano.train.quantise import fake_quantise, quantise, unpack  # noqa: E402
from k2core_nano.train.quantise import pack as pack_words  # noqa: E402


def random_group(seed: int, prefix: int, lengths: list[int]) -> Documents:
    """A group of random tokens in which every token of every document is a target."""
    rng = random.Random(seed)
    draw = lambda n: [rng.randrange(48) for _ in range(n)]  # noqa: E731
    documents = [
        Doc(ids=draw(n), weights=[rng.randint(0, 3) for _ in range(n)], family=f"f{i % 2}") for i, n in enumerate(lengths)
    ]
    return Documents(prefix=draw(prefix), documents=documents)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 9999),
    prefix=st.integers(0, 9),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    overhead=st.sampled_from((2, 1024)),
    score_limit=st.sampled_from((0, 150)),
)
def test_a_shared_prefix_trains_like_whole_sequences(
    seed: int, prefix: int, lengths: list[int], overhead: int, score_limit: int
) -> None:
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

    packed_loss, packed = gradients([pack([group], overhead=overhead, score_limit=score_limit)])
    plain_loss, plain = gradients([pack([one]) for one in whole])
    assert packed_loss == pytest.approx(plain_loss, rel=1e-9, abs=1e-9)
    for (name, _), left, right in zip(model.named_parameters(), packed, plain, strict=True):
        assert torch.allclose(left, right, rtol=1e-7, atol=1e-9), name


@given(seed=st.integers(0, 9999), rows=st.integers(1, 5), groups=st.integers(1, 4), scale=st.floats(1e-6, 1e4))
def test_rounding_is_idempotent_close_and_packs_losslessly(seed: int, rows: int, groups: int, scale: float) -> None:
    """Rounded weights are fixed points within half a step (plus scale rounding), and packing returns their codes."""
    torch.manual_seed(seed)
    weight = torch.randn(rows, 32 * groups) * scale
    codes, _ = quantise(weight)
    assert torch.equal(unpack(pack_words(codes)), codes)
    assert int(codes.abs().max()) <= 7
    rounded = fake_quantise(weight)
    assert torch.equal(fake_quantise(rounded), rounded)
    step = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 7
    assert bool(((rounded - weight).unflatten(-1, (-1, 32)).abs() <= 0.53 * step).all())


def test_packing_puts_the_first_column_in_the_lowest_nibble() -> None:
    """Codes -7, 0, 7 land as 1, 8, 15 from the lowest nibble up, and the top nibble makes the word negative."""
    words = pack_words(torch.tensor([[-7, 0, 7, -7, -7, -7, -7, 7]], dtype=torch.int8))
    assert words.tolist() == [[0xF1111F81 - 2**32]]


@settings(max_examples=20)
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


def test_probing_covers_every_family() -> None:
    """A model that knows nothing gets no call right, and every family of the specification is asked."""
    from k2core_nano.train.probe import FAMILIES, probe

    model = NanoModel(evolve(SMALL, vocab_size=3072, max_position_embeddings=2048))
    scores = probe(model, questions=1, level=2, seed=1)
    assert set(scores) == set(FAMILIES)
    assert all(score.questions == 1 and score.first == 0 for score in scores.values())
    assert sum(score.calls for score in scores.values()) > len(FAMILIES) // 2
