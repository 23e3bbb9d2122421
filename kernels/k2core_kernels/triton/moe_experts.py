"""The routed experts: y = sum over slots of weight * down(silu(gate x) * up x), from packed INT4 weights, on a GPU.

Two ways to the same sum: `moe_experts_decode` for few tokens, `moe_experts_grouped` for many. Which, and the tile sizes, is a
table by tokens and expected rows per expert; it was chosen by reasoning about the hardware and has not been tuned on any.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from k2core_kernels.triton.moe_experts_decode import down_decode, gate_up_decode
from k2core_kernels.triton.moe_experts_grouped import down_grouped, gate_up_grouped, sum_slots
from k2core_kernels.triton.numbers import INTERPRETED

Tensor = torch.Tensor
FEW = 8  # tokens: with 384 experts and 8 slots, a weight is then read 1.08 times on average where pairs are not grouped
FUSION = {"enable_fp_fusion": True}  # said aloud: the default is about to change, and exact results do not depend on it
ROWS, WORDS = 64 if INTERPRETED else 16, 128  # of a program of the decode way: 8 KiB of words at a time, 4 words to a lane
SUM_BLOCK = 1024
DEPTH = 32  # of a tile: K2's group, so that one scale follows each product


class Tiles(NamedTuple):
    """Sizes of one product of the grouped way."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Blocks(NamedTuple):
    """Pairs sorted by expert and cut into blocks; see `gate_up_grouped`."""

    order: Tensor
    expert: Tensor
    first: Tensor
    end: Tensor


def moe_experts(
    x: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    up: Tensor,
    up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    *,
    exact: bool,
    way: str = "",
) -> Tensor:
    """Σ over slots of weight * E(x), the shared expert not included.

    Args:
        x: (tokens, hidden) float32 or bfloat16.
        gate, up: (experts, inner, hidden / 8) int32 words of eight codes, as the checkpoint lies.
        gate_scale, up_scale: (experts, inner, hidden / group) bfloat16; the group is a multiple of 8.
        down: (experts, hidden, inner / 8) int32.
        down_scale: (experts, hidden, inner / group) bfloat16.
        expert_ids: (tokens, top_k) int32 or int64, no expert twice in a row, all of them below *experts* (not checked).
        weights: (tokens, top_k) float32.
        exact: float32 throughout; else x and the inner activations are rounded to bfloat16 before they enter a product. Sums
            are float32 and weights exactly code * scale in both.
        way: ``"decode"`` or ``"grouped"``; empty chooses by the number of tokens.

    Returns:
        (tokens, hidden) float32. A token's row does not depend on the tokens beside it within one way and tile size.

    Raises:
        ValueError: shapes disagree, weights are not contiguous (they are too large to copy unasked), or *way* is neither.
    """
    tokens, hidden = x.shape
    experts, inner, _ = gate.shape
    group = _group(x, gate, gate_scale, up, up_scale, down, down_scale, expert_ids, weights)
    if way not in ("", "decode", "grouped"):
        raise ValueError(f"moe_experts: way is {way!r}, expected 'decode', 'grouped' or ''")
    y = torch.empty((tokens, hidden), dtype=torch.float32, device=x.device)
    if not tokens or not hidden:
        return y
    given = x.to(torch.float32 if exact else torch.bfloat16)
    packed = [gate, gate_scale, up, up_scale, down, down_scale]
    ids, shares = expert_ids.contiguous(), weights.to(torch.float32).contiguous()
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        if way == "decode" or (not way and tokens <= FEW):
            _decode(given, packed, ids, shares, group, y)
        else:
            _grouped(given.contiguous(), packed, ids, shares, group, experts, inner, exact, y)
    return y


def sorted_blocks(expert_ids: Tensor, experts: int, block: int) -> Blocks:
    """Sort pairs by expert and cut each expert's into blocks of at most *block*; nothing is read back from the device.

    Returns:
        Pairs in order, and for each block its expert, its first row and its end. There are as many blocks as there can be at
        most; unused ones say expert *experts*.
    """
    flat = expert_ids.flatten()
    pairs = flat.numel()
    in_order, order = torch.sort(flat, stable=True)
    ends = torch.searchsorted(in_order, torch.arange(experts, device=flat.device, dtype=flat.dtype), right=True)
    starts = torch.nn.functional.pad(ends[:-1], (1, 0))
    last = torch.cumsum((ends - starts + block - 1) // block, 0)  # block behind each expert's
    most = min(pairs, experts) + pairs // block
    number = torch.arange(most, device=flat.device)
    expert = torch.searchsorted(last, number, right=True)
    own = expert.clamp_max(experts - 1)
    before = torch.nn.functional.pad(last[:-1], (1, 0))
    first = starts[own] + (number - before[own]) * block
    return Blocks(*(one.to(torch.int32) for one in (order, expert, first, ends[own])))


def tiles(rows_per_expert: float, exact: bool) -> Tiles:
    """Tile sizes by how many rows an expert has on average; not tuned on hardware."""
    if rows_per_expert <= 16:
        return Tiles(16, 32 if exact else 64, DEPTH, 4, 3)
    if rows_per_expert <= 32 or exact:
        return Tiles(32, 32 if exact else 64, DEPTH, 4, 3)
    if rows_per_expert <= 64:
        return Tiles(64, 64, DEPTH, 4, 3)
    return Tiles(128, 64, DEPTH, 8, 3)


def dot_options(group: int, exact: bool) -> dict[str, object]:
    """How a product is computed: type and precision of what enters it, and whether scales follow it.

    The interpreter multiplies bfloat16 wrongly and silently, so it is given the same values as float32.
    """
    after = group % DEPTH == 0
    if exact or INTERPRETED:
        return {"DOT": tl.float32, "PRECISION": "ieee", "AFTER": after}
    return {"DOT": tl.bfloat16 if after else tl.float32, "PRECISION": "tf32", "AFTER": after}


def _decode(x: Tensor, packed: list[Tensor], ids: Tensor, weights: Tensor, group: int, y: Tensor) -> None:
    gate, gate_scale, up, up_scale, down, down_scale = packed
    (tokens, hidden), inner, top_k = x.shape, gate.shape[1], ids.shape[1]
    planes = x.view(tokens, hidden // 8, 8).transpose(1, 2).contiguous()
    activated = torch.empty((tokens * top_k, 8, inner // 8), dtype=x.dtype, device=x.device)
    sizes = {"TOP_K": top_k, "GROUP": group, "ROWS": ROWS, "WORDS": WORDS, "num_warps": 8, **FUSION}
    gate_up_decode[tokens * top_k, triton.cdiv(inner, ROWS)](
        planes, gate, gate_scale, up, up_scale, ids, activated, hidden // 8, inner // 8, **sizes
    )
    down_decode[tokens, triton.cdiv(hidden, ROWS)](
        activated, down, down_scale, ids, weights, y, hidden // 8, inner // 8, **sizes
    )


def _grouped(
    x: Tensor, packed: list[Tensor], ids: Tensor, weights: Tensor, group: int, experts: int, inner: int, exact: bool, y: Tensor
) -> None:
    gate, gate_scale, up, up_scale, down, down_scale = packed
    (tokens, hidden), top_k = x.shape, ids.shape[1]
    pairs = tokens * top_k
    size = tiles(pairs / experts, exact)
    blocks = sorted_blocks(ids, experts, size.m)
    options = {
        "GROUP": group, "BLOCK_M": size.m, "BLOCK_N": size.n, "BLOCK_K": size.k, "num_warps": size.warps,
        "num_stages": size.stages, **dot_options(group, exact), **FUSION,
    }  # fmt: skip
    activated = torch.empty((pairs, inner), dtype=x.dtype, device=x.device)
    parts = torch.empty((pairs, hidden), dtype=torch.float32, device=x.device)
    gate_up_grouped[triton.cdiv(inner, size.n), len(blocks.expert)](
        x, gate, gate_scale, up, up_scale, *blocks, activated, experts, hidden // 8, inner // 8, TOP_K=top_k, **options
    )
    down_grouped[triton.cdiv(hidden, size.n), len(blocks.expert)](
        activated, down, down_scale, weights, *blocks, parts, experts, hidden // 8, inner // 8, **options
    )
    sum_slots[tokens, triton.cdiv(hidden, SUM_BLOCK)](parts, y, hidden, TOP_K=top_k, BLOCK=SUM_BLOCK, num_warps=4, **FUSION)


def _group(
    x: Tensor, gate: Tensor, gate_scale: Tensor, up: Tensor, up_scale: Tensor, down: Tensor, down_scale: Tensor, ids: Tensor,
    weights: Tensor,
) -> int:  # fmt: skip
    """Columns per scale, once all shapes agree."""
    (tokens, hidden), (experts, inner, _), groups = x.shape, gate.shape, max(1, gate_scale.shape[-1])
    group = hidden // groups
    if not group or group % 8 or hidden % group or inner % group:
        raise ValueError(f"moe_experts: groups of {group} columns do not fit hidden {hidden} and inner {inner} in words of 8")
    expected = {
        "gate": (gate, (experts, inner, hidden // 8)),
        "gate_scale": (gate_scale, (experts, inner, hidden // group)),
        "up": (up, (experts, inner, hidden // 8)),
        "up_scale": (up_scale, (experts, inner, hidden // group)),
        "down": (down, (experts, hidden, inner // 8)),
        "down_scale": (down_scale, (experts, hidden, inner // group)),
        "expert_ids": (ids, (tokens, ids.shape[-1])),
        "weights": (weights, tuple(ids.shape)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"moe_experts: {name} is {tuple(tensor.shape)}, expected {shape} beside x {tuple(x.shape)}")
        if not tensor.is_contiguous() and tensor is not ids and tensor is not weights:
            raise ValueError(f"moe_experts: {name} is not contiguous, expected the words and scales as the checkpoint lies")
    return group
