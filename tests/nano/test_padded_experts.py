"""The two forms of the routed experts: a loop over experts, and one padded batch."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from k2core_nano.train.experts import routed_experts  # noqa: E402
from k2core_nano.train.padded import expert_counts, padded_experts  # noqa: E402

HIDDEN, INNER = 6, 5


@st.composite
def choices(draw: Any) -> tuple[int, list[list[int]]]:
    """Number of experts, and the different experts of each of 1 to 12 tokens; some experts may be nobody's."""
    experts = draw(st.integers(1, 6))
    used = draw(st.lists(st.integers(0, experts - 1), min_size=1, unique=True))
    top_k = draw(st.integers(1, len(used)))
    rows = draw(st.lists(st.permutations(used), min_size=1, max_size=12))
    return experts, [list(row[:top_k]) for row in rows]


def drawn(seed: int, experts: int, tokens: int, top_k: int, dtype: Any) -> tuple[Any, ...]:
    """x, gate_up, down and weights of normal numbers that ask for gradients."""
    torch.manual_seed(seed)
    shapes = ((tokens, HIDDEN), (experts, 2, INNER, HIDDEN), (experts, HIDDEN, INNER), (tokens, top_k))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


@given(chosen=choices(), seed=st.integers(0, 9999))
def test_the_padded_batch_equals_the_loop(chosen: tuple[int, list[list[int]]], seed: int) -> None:
    """Result, counts and all four gradients are those of the loop within float32 rounding, whatever the counts."""
    experts, rows = chosen
    ids = torch.tensor(rows)
    found = []
    for mixture in (routed_experts, padded_experts):
        x, gate_up, down, weights = inputs = drawn(seed, experts, *ids.shape, torch.float32)
        result, counts = mixture(x, gate_up, down, ids, weights)
        result.backward(torch.sin(torch.arange(result.numel())).view_as(result))
        found.append([result, *(value.grad for value in inputs)])
        assert counts.tolist() == torch.bincount(ids.flatten(), minlength=experts).tolist()
    for loop, padded in zip(*found, strict=True):
        assert torch.allclose(loop, padded, rtol=1e-5, atol=1e-5)


def test_the_padded_gradients_are_right() -> None:
    """The padded form passes the numerical gradient check, with an expert nobody chose."""
    ids = torch.tensor([[0, 1], [1, 0], [0, 1], [3, 0], [0, 1]])
    inputs = drawn(0, 4, *ids.shape, torch.float64)
    assert torch.autograd.gradcheck(lambda x, up, down, share: padded_experts(x, up, down, ids, share)[0], inputs)


def test_a_bfloat16_sum_is_taken_in_float32() -> None:
    """With float32 weights of bfloat16 experts, a token's result is the float32 sum rounded once."""
    ids = torch.tensor([[0, 1], [1, 2], [2, 0]])
    x, gate_up, down, _ = (value.detach().bfloat16() for value in drawn(0, 3, *ids.shape, torch.float32))
    weights = torch.tensor([[0.3, 0.7], [0.51, 0.49], [0.999, 0.001]])
    result, _ = padded_experts(x, gate_up, down, ids, weights)
    alone = [padded_experts(x, gate_up, down, ids[:, i : i + 1], torch.ones(3, 1))[0].float() for i in (0, 1)]
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, (weights[:, :1] * alone[0] + weights[:, 1:] * alone[1]).bfloat16())


@given(chosen=choices(), seed=st.integers(0, 9999))
def test_only_counted_tokens_are_counted(chosen: tuple[int, list[list[int]]], seed: int) -> None:
    """A mask leaves tokens out of the counts, as leaving out their rows would."""
    experts, rows = chosen
    ids = torch.tensor(rows)
    counted = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = torch.bincount(ids[counted].flatten(), minlength=experts)
    assert torch.equal(expert_counts(ids, experts, counted), expected)
