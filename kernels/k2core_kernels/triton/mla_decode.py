"""Attention of single queries over paged latents, in the absorbed form: one key for all heads, values its first columns.

    s[h, j] = scale * q[h] · page row j          j < length
    o[h]    = Σ_j softmax(s[h])_j * (page row j)[: rank]

A context is cut into splits that run beside each other (flash-decoding): each keeps its greatest score, the sum of its
exponentials and the weighted rows, float32, and a second kernel brings them to the greatest score of all and adds them in
order. Numbers depend on the row, its length and the number of splits, not on the rows beside it.

Several queries of one sequence (a draft that is verified) are rows that share a page table, each with its own causal length.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from k2core_kernels.triton.numbers import INTERPRETED, rounded

Tensor = torch.Tensor
LEAST_SPAN = 256  # positions of a split: fewer do not pay for the second kernel
MOST_SPLITS = 64
LEAST = tl.constexpr(-3e38)  # below every score, and finite: a split without positions must not give infinity - infinity


@triton.jit
def attend_split(
    query, pages, table, lengths, scale, sums, tops, totals, most_pages, splits,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, RANK_TILE: tl.constexpr,
    ROPE_TILE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of one row, BLOCK_H heads.

    Args:
        query: (rows, HEADS, RANK + ROPE).
        pages: (pages, PAGE, RANK + ROPE) of the type that enters products.
        table: (rows, most_pages) int32; lengths: (rows,) int32.
        sums: (rows, splits, HEADS, RANK) float32, written: rows weighted by e**(score - top).
        tops, totals: (rows, splits, HEADS) float32, written: greatest score and sum of e**(score - top).

    Grid: (rows, HEADS / BLOCK_H, splits).
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    real = head < HEADS
    inner, turned, step = tl.arange(0, RANK_TILE), tl.arange(0, ROPE_TILE), tl.arange(0, BLOCK_S)
    length = tl.load(lengths + row)
    span = tl.cdiv(tl.cdiv(length, splits), BLOCK_S) * BLOCK_S
    start = split * span
    end = tl.minimum(start + span, length)
    queries = query + (row * HEADS + head)[:, None] * (RANK + ROPE)
    inner_query = tl.load(queries + inner[None, :], mask=real[:, None] & (inner < RANK)[None, :], other=0.0)
    turned_query = tl.load(queries + RANK + turned[None, :], mask=real[:, None] & (turned < ROPE)[None, :], other=0.0)
    top = tl.full((BLOCK_H,), LEAST, tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    summed = tl.zeros((BLOCK_H, RANK_TILE), tl.float32)
    for first in range(start, end, BLOCK_S):
        position = first + step
        seen = position < end
        page = tl.load(table + row * most_pages + position // PAGE, mask=seen, other=0).to(tl.int64)
        at = pages + (page * PAGE + position % PAGE) * (RANK + ROPE)
        latent = tl.load(at[:, None] + inner[None, :], mask=seen[:, None] & (inner < RANK)[None, :], other=0.0).to(DOT)
        key = tl.load(at[:, None] + RANK + turned[None, :], mask=seen[:, None] & (turned < ROPE)[None, :], other=0.0).to(DOT)
        score = tl.dot(inner_query.to(DOT), tl.trans(latent), input_precision=PRECISION)
        score = tl.dot(turned_query.to(DOT), tl.trans(key), score, input_precision=PRECISION) * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.exp(score - higher[:, None])
        fading = tl.exp(top - higher)
        total = total * fading + tl.sum(share, 1)
        # Shares are rounded as the query was: the type of the cache is the type that enters products.
        entering = rounded(share, pages.dtype.element_ty).to(DOT)
        summed = tl.dot(entering, latent, summed * fading[:, None], input_precision=PRECISION)
        top = higher
    place = (row * splits + split) * HEADS + head
    tl.store(tops + place, top, mask=real)
    tl.store(totals + place, total, mask=real)
    tl.store(sums + place[:, None] * RANK + inner[None, :], summed, mask=real[:, None] & (inner < RANK)[None, :])


@triton.jit
def join_splits(sums, tops, totals, y, splits, HEADS: tl.constexpr, RANK: tl.constexpr, RANK_TILE: tl.constexpr):
    """y (rows, HEADS, RANK) from what `attend_split` wrote; 0 where a row has no position.

    Grid: (rows, HEADS).
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    inner = tl.arange(0, RANK_TILE)
    top = tl.load(tops + row * splits * HEADS + head)
    for split in range(1, splits):
        top = tl.maximum(top, tl.load(tops + (row * splits + split) * HEADS + head))
    total = 0.0
    summed = tl.zeros((RANK_TILE,), tl.float32)
    for split in range(splits):
        place = (row * splits + split) * HEADS + head
        share = tl.exp(tl.load(tops + place) - top)
        total += share * tl.load(totals + place)
        summed += share * tl.load(sums + place * RANK + inner, mask=inner < RANK, other=0.0)
    summed = summed / tl.where(total > 0, total, 1.0)
    tl.store(y + (row * HEADS + head) * RANK + inner, summed, mask=inner < RANK)


def mla_decode(
    query: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, *, rank: int, scale: float, splits: int | None = None
) -> Tensor:
    """Attend from each row to the first positions of its pages.

    Args:
        query: (rows, heads, rank + rope) float32 or bfloat16, in the space of the latents.
        pages: (pages, page_size, rank + rope): normalised latents, then rotated keys. Their type says the numerics: float32 is
            exact; with bfloat16, queries and shares are rounded to bfloat16 before they enter a product. Sums are float32.
        table: (rows, most_pages) int32: page i of a row holds its positions i * page_size and on.
        lengths: (rows,) int32, at most most_pages * page_size; a row of length 0 gets zeros.
        rank: of the latents.
        scale: factor of scores.
        splits: pieces of a context that run beside each other; None chooses by rows and the table's width.

    Returns:
        (rows, heads, rank) float32.

    Raises:
        ValueError: shapes disagree, pages are not contiguous (they are too large to copy unasked), or there is no split.
    """
    rows, heads, width = query.shape
    if pages.shape[2] != width or not 0 < rank <= width or table.shape[0] != rows or lengths.shape != (rows,):
        raise ValueError(
            f"mla_decode: query {tuple(query.shape)}, pages {tuple(pages.shape)}, table {tuple(table.shape)} and lengths "
            f"{tuple(lengths.shape)} with rank {rank} do not fit: rows and the last axis must agree"
        )
    if not pages.is_contiguous():
        raise ValueError("mla_decode: pages are not contiguous, expected one layer's pages as they are cached")
    page_size, most_pages, device = pages.shape[1], table.shape[1], query.device
    exact = pages.dtype == torch.float32
    capability = torch.cuda.get_device_capability(device)[0] if query.is_cuda else 0
    options = tiles(heads, rank, width - rank, exact, capability)
    if splits is None:
        splits = _splits(rows * triton.cdiv(heads, options["BLOCK_H"]), most_pages * page_size, device)
    if splits < 1:
        raise ValueError(f"mla_decode: splits is {splits}, expected at least 1")
    y = torch.empty((rows, heads, rank), dtype=torch.float32, device=device)
    if not rows:
        return y
    sums = torch.empty((rows, splits, heads, rank), dtype=torch.float32, device=device)
    tops = torch.empty((rows, splits, heads), dtype=torch.float32, device=device)
    totals = torch.empty_like(tops)
    given = query.to(pages.dtype).contiguous()
    with torch.cuda.device(device) if query.is_cuda else nullcontext():
        attend_split[rows, triton.cdiv(heads, options["BLOCK_H"]), splits](
            given, pages, table.to(torch.int32).contiguous(), lengths.to(torch.int32).contiguous(), scale, sums, tops, totals,
            most_pages, splits,
            HEADS=heads, RANK=rank, ROPE=width - rank, PAGE=page_size, **options, enable_fp_fusion=True,
        )  # fmt: skip
        join_splits[rows, heads](
            sums, tops, totals, y, splits,
            HEADS=heads, RANK=rank, RANK_TILE=options["RANK_TILE"], num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def tiles(heads: int, rank: int, rope: int, exact: bool, capability: int) -> dict[str, object]:
    """Tile sizes and types; they fit registers and shared memory of sm_80 and sm_90 at rank 512, and are not tuned on hardware.

    The more heads share a tile, the fewer times a page comes from the cache of the device: all 64 of K2 where registers allow.
    The interpreter multiplies bfloat16 wrongly and silently, so it is given the same values as float32.

    Args:
        heads, rank, rope: of the model.
        exact: float32 pages.
        capability: major number of the device's compute capability.
    """
    block = 16 if exact or heads <= 16 else 32 if heads <= 32 or capability < 9 else 64
    return {
        "RANK_TILE": max(16, triton.next_power_of_2(rank)),
        "ROPE_TILE": max(16, triton.next_power_of_2(rope)),
        "BLOCK_H": block,
        "BLOCK_S": 16 if exact else 32,
        "DOT": tl.float32 if exact or INTERPRETED else tl.bfloat16,
        "PRECISION": "ieee",
        "num_warps": 4 if block == 16 else 8,
        "num_stages": 1 if exact else 2,
    }


def _splits(programs: int, positions: int, device: torch.device) -> int:
    """As many as fill the device twice, none shorter than is worth it; known without reading a length back."""
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(-(-wanted // programs), positions // LEAST_SPAN, MOST_SPLITS))
