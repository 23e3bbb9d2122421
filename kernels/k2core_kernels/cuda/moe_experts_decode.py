"""The routed experts for few tokens on a GPU, in CUDA C++: `moe_experts_decode.cu`, compiled at first use.

What Triton does not give here: conversion of codes in one instruction each where they stand in the word, vectors in the order
in which lanes meet packed words, and the next words fetched while the present ones are used.
"""

from ctypes import c_int, c_void_p
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from k2core_kernels.cuda import nvrtc

Tensor = torch.Tensor
NAME = "moe_experts_decode.cu"
FEW = 8  # tokens: with more, pairs of one expert should be taken together
THREADS, GATE_UP_TILE, DOWN_TILE = 128, 8, 16  # of a block: WARPS * LANES, WARPS * GATE_UP_ROWS, WARPS * DOWN_ROWS


def moe_experts_decode(
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
    folder: Path | None = None,
) -> Tensor:
    """Σ over slots of weight * E(x), the shared expert not included, on torch's current stream.

    Args:
        x: (tokens, hidden) float32 or bfloat16 on a CUDA device; meant for up to `FEW` tokens, right for any number.
        gate, up: (experts, inner, hidden / 8) int32 words of eight codes, as the checkpoint lies.
        gate_scale, up_scale: (experts, inner, hidden / group) bfloat16; the group is a multiple of 8.
        down: (experts, hidden, inner / 8) int32.
        down_scale: (experts, hidden, inner / group) bfloat16.
        expert_ids: (tokens, top_k), all below *experts* (not checked).
        weights: (tokens, top_k) float32.
        exact: float32 throughout; else x and the inner activations are rounded to bfloat16 before they enter a product.
        folder: where compiled kernels are kept; None keeps none.

    Returns:
        (tokens, hidden) float32. A token's row does not depend on the tokens beside it.

    Raises:
        CompileError: NVRTC does not take the source.
        RuntimeError: the driver refuses; the line names the call.
        ValueError: a tensor is not contiguous, or a size fits no words or groups.
    """
    tokens, hidden = x.shape
    inner, top_k = gate.shape[1], expert_ids.shape[1]
    group = hidden // gate_scale.shape[2]
    if not group or group % 8 or hidden % group or inner % group:
        raise ValueError(f"moe_experts_decode: groups of {group} do not fit hidden {hidden} and inner {inner} in words of 8")
    packed = (gate, gate_scale, up, up_scale, down, down_scale)
    if not all(one.is_contiguous() for one in packed):
        raise ValueError("moe_experts_decode: weights are not contiguous, expected words and scales as the checkpoint lies")
    y = torch.empty((tokens, hidden), dtype=torch.float32, device=x.device)
    if not tokens:
        return y
    with torch.cuda.device(x.device):
        gate_up, sum_down = _kernels(x.device.index, group, exact, folder)
        stream = torch.cuda.current_stream().cuda_stream
        vectors, ids = ordered(x, group, exact), expert_ids.to(torch.int32).contiguous()
        shares = weights.to(torch.float32).contiguous()
        activated = torch.empty((tokens * top_k, inner), dtype=torch.float32, device=x.device)
        sizes = [(hidden, c_int), (inner, c_int), (top_k, c_int)]
        pointers = [(one.data_ptr(), c_void_p) for one in (vectors, gate, gate_scale, up, up_scale, ids, activated)]
        nvrtc.launch(gate_up, (-(-inner // GATE_UP_TILE), tokens * top_k), THREADS, stream, pointers + sizes)
        pointers = [(one.data_ptr(), c_void_p) for one in (activated, down, down_scale, ids, shares, y)]
        nvrtc.launch(sum_down, (-(-hidden // DOWN_TILE), tokens), THREADS, stream, pointers + sizes)
    return y


def prepare(device: int, group: int, exact: bool, folder: Path | None) -> None:
    """Compile both kernels for a device, or take them from *folder*, and load them; errors as of `moe_experts_decode`."""
    with torch.cuda.device(device):
        _kernels(device, group, exact, folder)


def ordered(x: Tensor, group: int, exact: bool) -> Tensor:
    """(tokens, hidden) as the kernels read it: float32, rounded for w4a16, (tokens, quads, chunks, 4)."""
    kept = x if exact else x.to(torch.bfloat16)
    quads = 8 if group % 32 == 0 else 2
    return kept.to(torch.float32).view(len(x), -1, quads, 4).transpose(1, 2).contiguous()


def options(group: int, exact: bool) -> tuple[str, ...]:
    """Of the compiler."""
    return f"-DGROUP={group}", f"-DROUNDED={int(not exact)}"


def source() -> str:
    """The kernels' text."""
    return files(__package__).joinpath(NAME).read_text(encoding="utf-8")


@cache
def _kernels(device: int, group: int, exact: bool, folder: Path | None) -> tuple:
    """Both kernels in the current context; compiled or taken from *folder* once per process and device."""
    binary = nvrtc.compiled(source(), NAME, nvrtc.arch_of(device), options(group, exact), folder)
    return nvrtc.functions(binary, ("gate_up_decode", "down_decode"))
