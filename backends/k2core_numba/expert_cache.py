"""Repacked experts in a bounded cache, filled when one is first needed.

A slot holds one expert of any layer. Whoever was used least recently makes room.
"""

from collections import OrderedDict
from collections.abc import Sequence

from k2core.errors import CapacityError, CheckpointError
from k2core.model.checkpoint import Checkpoint
from k2core.model.footprint import footprint
from k2core.model.free_memory import free_bytes
from k2core_numba.expert_layout import empty_slots, read_expert, sizes_of_expert

SHARE = 0.9  # of the memory that the rest of a model leaves; what is over is for sequences and for work


class ExpertCache:
    """Repacked experts.

    Attributes:
        slots: how many experts fit.
        hits, misses: of experts that were asked for.
    """

    def __init__(self, checkpoint: Checkpoint, limit: int | None) -> None:
        """An empty cache.

        Args:
            checkpoint: with packed experts.
            limit: bytes; None is all experts, or as many as `room` holds.

        Raises:
            CheckpointError: there are no experts, or they are not packed.
            CapacityError: not even one expert fits, or the machine has no memory for the limit.
        """
        geometry = checkpoint.geometry
        if not geometry.moe_layers:
            raise CheckpointError(f"cannot load experts of {checkpoint.folder}: all its layers are dense")
        require_packed(checkpoint)
        self._checkpoint = checkpoint
        self.expert_bytes = sum((4, 2)[place % 2] * size for place, size in enumerate(sizes_of_expert(checkpoint)))
        every = len(geometry.moe_layers) * geometry.n_routed_experts
        allowed = room(checkpoint) if limit is None else limit
        self.slots = min(every, allowed // self.expert_bytes)
        if self.slots < 1:
            raise CapacityError(
                f"cannot keep experts within {allowed:,} bytes: one takes {self.expert_bytes:,}. Allow more memory."
            )
        try:
            self.arrays = empty_slots(checkpoint, self.slots)
        except MemoryError as error:
            size = self.slots * self.expert_bytes
            raise CapacityError(f"cannot keep {self.slots:,} experts: no memory for {size:,} bytes. Allow fewer.") from error
        self._free = list(reversed(range(self.slots)))
        self._places: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.hits = self.misses = 0

    def places(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The slots of some experts of a layer, at most as many as there are slots; they stay until the next call.

        Raises:
            CheckpointError: a scale is not finite; names the tensor. What was there before stays, but for one that made room.
        """
        wanted = [(layer, expert) for expert in experts]
        for key in wanted:
            if key in self._places:
                self._places.move_to_end(key)
        for key in wanted:
            if key in self._places:
                self.hits += 1
                continue
            self.misses += 1
            if not self._free:
                self._free.append(self._places.popitem(last=False)[1])
            # may fail: the slot is free until it has all of the expert
            read_expert(self._checkpoint, layer, key[1], self.arrays, self._free[-1])
            self._places[key] = self._free.pop()
        return [self._places[key] for key in wanted]


def require_packed(checkpoint: Checkpoint) -> None:
    """See that the experts are INT4.

    Raises:
        CheckpointError: they are not.
    """
    if checkpoint.geometry.moe_layers and not checkpoint.experts_are_packed:
        raise CheckpointError(
            f"cannot load {checkpoint.folder}: its experts are not INT4. The numba backend needs pack-quantized experts: "
            "make them with k2 quantize."
        )


def room(checkpoint: Checkpoint) -> int:
    """Bytes that experts may take where nobody says how many: most of the free memory that the rest of the model leaves."""
    free = free_bytes()
    return max(0, int(SHARE * (free - footprint(checkpoint.geometry).plain))) if free is not None else 1 << 62
