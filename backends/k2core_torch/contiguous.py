"""The latent cache of the eager and the fast way: each sequence has one tensor of all layers, which doubles as it grows."""

from collections.abc import Iterable
from functools import partial

import torch
from attrs import define

from k2core.interfaces import Numerics
from k2core.model.config import Geometry
from k2core.model.sequences import Batch
from k2core_torch.attention import AttentionWeights, attend
from k2core_torch.attention_fast import PADDED, attend_fast, attend_together
from k2core_torch.caching import LEAST, Attention, cache_type

Tensor = torch.Tensor


@define(eq=False)
class Latents:
    """Cached latents and rotated keys.

    Attributes:
        values: (layers, capacity, rank + rope) float32, or bfloat16 in ``w4a16``.
        length: positions in use.
    """

    values: Tensor
    length: int = 0


class Contiguous:
    """Makes, copies and grows sequences; implements `k2core_torch.caching.Cache`."""

    def __init__(self, geometry: Geometry, numerics: Numerics, *, device: str, is_eager: bool) -> None:
        self._geometry, self._numerics, self._device, self._is_eager = geometry, numerics, device, is_eager

    def empty(self) -> Latents:
        """No position."""
        shape = (self._geometry.num_hidden_layers, 0, self._geometry.cache_values_per_layer)
        return Latents(torch.empty(shape, dtype=cache_type(self._numerics), device=self._device))

    def reserve(self, growth: Iterable[tuple[Latents, int]]) -> None:
        """Have room for so many more positions in each."""
        for sequence, count in growth:
            layers, capacity, width = sequence.values.shape
            if sequence.length + count > capacity:
                room = -(-max(sequence.length + count, 2 * capacity) // LEAST) * LEAST
                grown = sequence.values.new_empty((layers, room, width))
                grown[:, : sequence.length] = sequence.values[:, : sequence.length]
                sequence.values = grown

    def copy(self, sequence: Latents, length: int) -> Latents:
        """The first *length* positions, with some room to grow."""
        layers, _, width = sequence.values.shape
        copied = sequence.values.new_empty((layers, -(-length // LEAST) * LEAST, width))
        copied[:, :length] = sequence.values[:, :length]
        return Latents(copied, length)

    def cut(self, sequence: Latents, length: int) -> None:
        """Forget the positions from *length* on."""
        sequence.length = length

    def drop(self, sequence: Latents) -> None:
        """The tensor goes with its sequence."""

    def bytes_of(self, sequence: Latents) -> int:
        """Memory of the tensor."""
        return sequence.values.nbytes

    def blocks_of(self, sequence: Latents) -> int:
        """Blocks of `LEAST` positions in use."""
        return -(-sequence.length // LEAST)

    def spare_bytes(self) -> int:
        """Nothing is kept."""
        return 0

    def clear(self) -> None:
        """Every tensor goes with its sequence."""

    def attention(self, new: Batch[Latents]) -> Attention:
        """Of one forward."""
        return partial(self._attend, new)

    def _attend(
        self, new: Batch[Latents], layer: int, query: Tensor, turned: Tensor, rows: Tensor, weights: AttentionWeights
    ) -> Tensor:
        cuts, caches = list(new.cuts()), []
        for sequence, cut in cuts:
            end = sequence.length + cut.stop - cut.start
            sequence.values[layer, sequence.length : end] = rows[cut]
            caches.append(sequence.values[layer, :end])
        given = (weights, self._geometry, self._numerics)
        if not self._is_eager and 1 < len(cuts) == len(rows) and max(map(len, caches)) * rows.shape[1] <= PADDED:
            return attend_together(query, turned, caches, *given)
        form = attend if self._is_eager else attend_fast
        return torch.cat([form(query[cut], turned[cut], cache, *given) for (_, cut), cache in zip(cuts, caches, strict=True)])
