"""INT4 matrices in PyTorch: unpacked word by word as the format is written, or half a word at a time out of a table."""

from collections.abc import Sequence

import torch
from attrs import frozen

Tensor = torch.Tensor


@frozen(eq=False)
class Packed:
    """INT4 matrices: words (…, out, in // 8) int32 and scales (…, out, in // group) bfloat16."""

    words: Tensor
    scale: Tensor

    @property
    def size_bytes(self) -> int:
        """Memory of both."""
        return size_of(self.words) + size_of(self.scale)

    def to(self, device: str) -> "Packed":
        """A copy on another device."""
        return Packed(self.words.to(device), self.scale.to(device))

    def unpacked_by_words(self) -> Tensor:
        """(…, out, in) float32: eight shifts of each word, minus the offset, times the scale."""
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=self.words.device)
        codes = ((self.words[..., None] >> shifts) & 15) - 8
        return self._scaled(codes.flatten(-2).to(torch.float32))

    def unpacked(self, table: Tensor) -> Tensor:
        """The same by *table*, see `half_table`."""
        halves = self.words.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
        return self._scaled(table.index_select(0, halves.flatten()).view(*self.words.shape[:-1], 8 * self.words.shape[-1]))

    def _scaled(self, codes: Tensor) -> Tensor:
        *outer, groups = self.scale.shape
        grouped = codes.view(*outer, groups, codes.shape[-1] // groups)
        return (grouped * self.scale.to(torch.float32)[..., None]).view(codes.shape)


Matrix = Packed | Tensor  # (out, in); a plain one is bfloat16 or float32
Expert = tuple[Matrix, Matrix, Matrix]  # gate, up and down
Layer = tuple[Packed, Packed, Packed]  # the same of all experts of a layer, (experts, out, …)


def half_table(device: str) -> Tensor:
    """(65536, 4) float32: the four codes of half a word, the lowest bits first. 1 MB: three times as fast as the shifts."""
    half = torch.arange(1 << 16, device=device)
    return torch.stack([((half >> shift) & 15) - 8 for shift in range(0, 16, 4)], -1).to(torch.float32)


def size_of(matrix: Matrix) -> int:
    """Bytes of a matrix as it lies."""
    return matrix.size_bytes if isinstance(matrix, Packed) else matrix.numel() * matrix.element_size()


def together(experts: Sequence[Expert], device: str) -> Layer | None:
    """A layer's words and scales one behind the other on *device*; None where one is not packed.

    Each is copied straight to its place, so that a device never holds an expert twice.
    """

    def laid(parts: list[Tensor]) -> Tensor:
        whole = torch.empty((len(parts), *parts[0].shape), dtype=parts[0].dtype, device=device)
        for place, part in enumerate(parts):
            whole[place].copy_(part)
        return whole

    packed = [[one for one in projection if isinstance(one, Packed)] for projection in zip(*experts, strict=True)]
    if any(len(projection) < len(experts) for projection in packed):
        return None
    gate, up, down = (Packed(laid([one.words for one in each]), laid([one.scale for one in each])) for each in packed)
    return gate, up, down


def expert_of(layer: Layer, expert: int) -> Expert:
    """One expert as views of its layer."""
    gate, up, down = (Packed(one.words[expert], one.scale[expert]) for one in layer)
    return gate, up, down
