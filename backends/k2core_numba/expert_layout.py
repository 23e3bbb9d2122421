"""Routed experts in the kernels' layout: arrays for some number of them, and one expert read into its place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core.model.checkpoint import Checkpoint
from k2core.model.int4 import PackedMatrix
from k2core.model.layout import PROJECTIONS, expert_name, expert_shape
from k2core_numba.packing import aligned_zeros, bfloat16_bits, round_up, tile_int4, tile_scales

Slots = tuple[NDArray[Any], ...]  # words and scales of gate, up and down in turn, (slots, …) uint32 and uint16


def sizes_of_expert(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Words and scales of gate, up and down in turn, of one expert."""
    quantisation, sizes = checkpoint.geometry.quantisation, []
    assert quantisation is not None  # the experts are packed
    for projection in PROJECTIONS:
        rows, columns = expert_shape(checkpoint.geometry, projection)
        sizes += [round_up(rows) * columns // 8, round_up(rows) * (columns // quantisation.group_size)]
    return tuple(sizes)


def empty_slots(checkpoint: Checkpoint, slots: int) -> Slots:
    """Arrays for so many experts; they take memory only as they are written.

    Raises:
        MemoryError: the machine cannot promise that much.
    """
    sizes = sizes_of_expert(checkpoint)
    return tuple(aligned_zeros((slots, size), (np.uint32, np.uint16)[place % 2]) for place, size in enumerate(sizes))


def read_expert(checkpoint: Checkpoint, layer: int, expert: int, slots: Slots, slot: int) -> None:
    """Repack one expert; the mapped pages it was read from are given back.

    Raises:
        CheckpointError: a scale is not finite; names the tensor. Part of the slot may be written then.
    """
    names = [expert_name(layer, expert, projection) for projection in PROJECTIONS]
    for name, projection, words, scales in zip(names, PROJECTIONS, slots[::2], slots[1::2], strict=True):
        matrix = checkpoint.expert(layer, expert, projection)
        assert isinstance(matrix, PackedMatrix)  # the checkpoint says that all are
        tile_int4(matrix.packed, out=words[slot])
        scales[slot] = tile_scales(bfloat16_bits(matrix.scale, f"{name}.weight_scale"))
    for name in names:  # only now: the system maps pages around those that are read, so ends of the other matrices too
        for part in ("weight_packed", "weight_scale"):
            checkpoint.give_back(f"{name}.{part}")
