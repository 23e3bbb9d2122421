"""Rectangles of any size limit, and batches joined to larger passes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nano.small import SMALL, Doc, Documents, copies  # noqa: E402

from k2core_nano.train.feeding import passes  # noqa: E402
from k2core_nano.train.model import NanoModel, token_losses  # noqa: E402
from k2core_nano.train.packing import joined, pack  # noqa: E402


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    prefix=st.integers(0, 20),
    overhead=st.integers(0, 2000),
    rectangle_tokens=st.integers(1, 2000),
    score_limit=st.integers(0, 9000),
)
def test_rectangles_keep_their_limits(
    lengths: list[int], prefix: int, overhead: int, rectangle_tokens: int, score_limit: int
) -> None:
    """A rectangle of several documents keeps both limits, and every token of every document is in one."""
    documents = [Doc(ids=[1] * length, weights=[0] * length, family="x") for length in lengths]
    group = Documents(prefix=[2] * prefix, documents=documents)
    batch = pack([group], overhead=overhead, rectangle_tokens=rectangle_tokens, score_limit=score_limit)
    for block in batch.blocks:
        if block.rows > 1:
            assert block.rows * block.length <= rectangle_tokens
            assert not score_limit or block.rows * block.length * (block.prefix_length + block.length) <= score_limit
    assert int(batch.valid.sum()) == prefix + sum(lengths)


def test_large_limits_make_few_rectangles() -> None:
    """With the limits for a GPU, 40 documents of similar length are one rectangle instead of thirteen."""
    group = Documents(prefix=[2] * 9, documents=[Doc(ids=[1] * n, weights=[1] * n, family="x") for n in range(41, 61)] * 2)
    assert len(pack([group]).blocks) == 1 + 13
    assert len(pack([group], overhead=1024, rectangle_tokens=8192, score_limit=2**24).blocks) == 1 + 1


@settings(max_examples=10)
@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=4))
def test_joined_batches_train_like_their_parts(seeds: list[int]) -> None:
    """The losses of a joined batch are those of its parts, one after another, each under its family's name."""
    torch.manual_seed(0)
    model = NanoModel(SMALL).double()
    model.rotations = SMALL.rotations().to(torch.complex128)
    parts = [pack([next(copies(seed, tokens=1, phase="copy" if seed % 2 else "main"))]) for seed in seeds]
    whole = joined(parts)
    with torch.no_grad():
        expected = torch.cat([token_losses(model, part) for part in parts])
        assert torch.allclose(token_losses(model, whole), expected, rtol=1e-9)
    assert [part.families[i] for part in parts for i in part.target_families] == [
        whole.families[i] for i in whole.target_families
    ]
    assert whole.document_tokens == sum(part.document_tokens for part in parts)


def test_passes_hold_about_as_many_tokens_as_asked() -> None:
    """Batches are joined until a pass has the tokens it should have; one that has them already stays as it is."""
    parts = [pack([next(copies(seed, tokens=1, phase="main"))]) for seed in range(6)]
    sizes = [part.document_tokens for part in parts]
    assert list(passes(parts, min(sizes))) == parts
    found = [one.document_tokens for one in passes(parts, sizes[0] + 1)]
    assert sum(found) == sum(sizes)
    assert all(size > sizes[0] for size in found[:-1])
