"""What a model needs of its latent cache, however that lies."""

from typing import Any, Protocol

import torch

from k2core.interfaces import Numerics
from k2core.model.sequences import Batch, Records
from k2core_torch.attention import AttentionWeights

Tensor = torch.Tensor
LEAST = 64  # positions of a block


class Attention(Protocol):
    """One forward's attention."""

    def __call__(self, layer: int, query: Tensor, turned: Tensor, rows: Tensor, weights: AttentionWeights) -> Tensor:
        """Cache the new tokens of a layer and attend from them.

        Args:
            layer: 0-based.
            query, turned, rows: as of `k2core_torch.attention.project`.
            weights: of the layer.

        Returns:
            (tokens, heads * value) float32, before the output projection.
        """
        ...


class Cache(Records, Protocol):
    """Where the latents of sequences lie."""

    def drop(self, sequence: Any) -> None:
        """Take its memory back."""
        ...

    def blocks_of(self, sequence: Any) -> int:
        """Blocks of `LEAST` positions of one."""
        ...

    def spare_bytes(self) -> int:
        """Memory that is kept and that no sequence has."""
        ...

    def clear(self) -> None:
        """Give everything back; nothing is asked of it afterwards."""
        ...

    def attention(self, new: Batch[Any]) -> Attention:
        """For one forward, whose positions are reserved."""
        ...


def cache_type(numerics: Numerics) -> torch.dtype:
    """Of what is cached."""
    return torch.float32 if numerics == "exact" else torch.bfloat16
