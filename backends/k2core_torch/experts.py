"""The routed experts of every MoE layer, and their weighted sum.

Where they lie: on the CPU as views of the mapped file; on another device moved there when the model is loaded; or, with a limit
of bytes, in the file and of those used last a prepared copy: unpacked on the CPU, as they are stored on another device.

Ways to the same sum: the eager one unpacks an expert word by word and adds expert after expert, as the equations are written;
the fast one looks codes up in a table, sorts tokens by expert, and takes all experts of a few tokens at once where a layer's
words lie together; the kernels' one gives such a layer to `k2core_kernels`: few tokens to CUDA C++ where that can be compiled,
all others to Triton.
"""

from collections.abc import Iterable, Mapping

import torch

from k2core.interfaces import Numerics, Progress
from k2core.model.layout import PROJECTIONS, expert_name, expert_tensors, is_packed
from k2core_torch.device_kernels import Kernel, compiled_decode, load_kernel, nvrtc_missing
from k2core_torch.kept import Kept
from k2core_torch.packed import Expert, Layer, Matrix, Packed, expert_of, half_table, size_of, together
from k2core_torch.products import rounded
from k2core_torch.tensors import Tensors

Tensor = torch.Tensor
FEW = 16  # pairs of token and expert that are taken all at once


class Experts:
    """Routed experts of one checkpoint."""

    def __init__(
        self,
        tensors: Tensors,
        numerics: Numerics,
        *,
        way: str,
        limit: int | None,
        is_small: bool,
        progress: Progress | None = None,
    ) -> None:
        """See `k2core_torch.backend.TorchBackend.load`.

        Args:
            tensors: of the checkpoint, on the device that computes.
            numerics: rounding of what enters a product.
            way: see the module; ``kernels`` and ``graphs`` are those of `k2core_kernels`.
            limit: bytes of prepared experts; None keeps none on the CPU, and all on another device.
            is_small: the words of a layer are laid together.
            progress: told of every layer.

        Raises:
            CapacityError: not even one prepared expert fits the limit, or the device has no memory.
            CheckpointError: a scale or a plain weight is not finite.
        """
        self._checkpoint, self._device, self._numerics = tensors.checkpoint, tensors.device, numerics
        self._geometry, self._eager = tensors.checkpoint.geometry, way == "eager"
        self._table = half_table(tensors.device)
        self._kernel = load_kernel("moe_experts") if way in ("kernels", "graphs") and limit is None else None
        self._kept: Kept[Expert] | None = None
        self._layers: dict[int, list[Expert]] = {}
        self._together: dict[int, Layer] = {}
        is_laid = limit is None and not self._eager and (is_small or self._kernel is not None)
        stored = Tensors(tensors.checkpoint, "cpu") if is_laid or limit is not None else tensors
        layers = self._geometry.moe_layers
        for done, layer in enumerate(layers, start=1):
            self._layers[layer] = self._read(layer, stored)
            if is_laid:
                self._lay(layer)
            if stored is not tensors:
                self._give_back(layer, range(self._geometry.n_routed_experts))
            if progress is not None:
                progress("reading experts", done, len(layers))
        self._decode: tuple[Kernel, int] | None = None
        if self._together and self._kernel is not None and self._device == "cuda" and not nvrtc_missing():
            gate = next(iter(self._together.values()))[0]
            group = self._geometry.hidden_size // gate.scale.shape[-1]
            self._decode = compiled_decode(group, exact=numerics == "exact")
        if limit is not None:
            every = (expert for layer in self._layers.values() for expert in layer)
            largest = max(map(self._prepared_bytes, every), default=0)
            self._kept = Kept(limit, largest, "unpacked" if self._device == "cpu" else "packed")

    def sum(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Σ over slots of weight * E(x): x (tokens, hidden) float32, ids and weights (tokens, top_k); (tokens, hidden)."""
        if not len(x):
            return torch.zeros_like(x)
        if layer in self._together and self._kernel is not None:
            matrices = (part for packed in self._together[layer] for part in (packed.words, packed.scale))
            kernel = self._decode[0] if self._decode is not None and len(x) <= self._decode[1] else self._kernel
            summed: Tensor = kernel(x, *matrices, ids, weights, exact=self._numerics == "exact")
            return summed
        if layer in self._together and ids.numel() <= FEW:
            return self._few(layer, x, ids, weights)
        given, total = rounded(x, self._numerics), torch.zeros_like(x)
        if self._eager:
            for expert in torch.unique(ids).tolist():
                tokens, slots = torch.nonzero(ids == expert, as_tuple=True)
                total[tokens] += weights[tokens, slots, None] * self._one(given[tokens], layer, expert)
            return total
        order = ids.flatten().argsort(stable=True)
        rows, parts = order // ids.shape[1], []
        found, counts = torch.unique_consecutive(ids.flatten()[order], return_counts=True)
        for expert, mine in zip(found.tolist(), torch.split(rows, counts.tolist()), strict=True):
            parts.append(self._one(given[mine], layer, expert))
        return total.index_add_(0, rows, torch.cat(parts) * weights.flatten()[order, None])

    @property
    def is_fixed(self) -> bool:
        """Whether the kernel takes every layer."""
        return self._kernel is not None and len(self._together) == len(self._layers)

    def info(self) -> Mapping[str, str]:
        """How often a prepared expert lay ready; nothing where there is no limit."""
        kept = self._kept
        if kept is None:
            return {}
        asked = max(1, kept.hits + kept.misses)
        return {
            "expert_hits": str(kept.hits), "expert_misses": str(kept.misses), "expert_bytes": str(kept.limit),
            "expert_hit_rate": f"{kept.hits / asked:.2f}",
        }  # fmt: skip

    def close(self) -> None:
        """Let go of everything."""
        self._layers.clear()
        self._together.clear()
        self._decode = None
        if self._kept is not None:
            self._kept.clear()

    def _few(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        chosen = ids.flatten()
        gate, up, down = (
            Packed(packed.words[chosen], packed.scale[chosen]).unpacked(self._table) for packed in self._together[layer]
        )
        given = rounded(x, self._numerics).repeat_interleave(ids.shape[1], 0)[..., None]  # (pairs, hidden, 1)
        inner = torch.nn.functional.silu(torch.bmm(gate, given)) * torch.bmm(up, given)
        y = torch.bmm(down, rounded(inner, self._numerics)).view(*ids.shape, -1)
        return (y * weights[..., None]).sum(1)

    def _one(self, x: Tensor, layer: int, expert: int) -> Tensor:
        """One expert of rounded inputs; a matrix is float32 only as long as its product takes."""
        gate, up, down = self._ready(layer, expert)
        inner = torch.nn.functional.silu(x @ self._float32(gate).t()) * (x @ self._float32(up).t())
        return rounded(inner, self._numerics) @ self._float32(down).t()

    def _ready(self, layer: int, expert: int) -> Expert:
        """As it lies, or prepared."""
        stored = self._layers[layer][expert]
        if self._kept is None:
            return stored

        def prepare() -> Expert:
            made = self._unpacked(stored) if self._device == "cpu" else self._moved(stored)
            self._give_back(layer, [expert])
            return made

        return self._kept.get(layer, expert, prepare)

    def _unpacked(self, expert: Expert) -> Expert:
        gate, up, down = (self._float32(one) for one in expert)
        return gate, up, down

    def _moved(self, expert: Expert) -> Expert:
        gate, up, down = (one.to(self._device) for one in expert)
        return gate, up, down

    def _float32(self, matrix: Matrix) -> Tensor:
        if not isinstance(matrix, Packed):
            return matrix.to(torch.float32)
        return matrix.unpacked_by_words() if self._eager else matrix.unpacked(self._table)

    def _prepared_bytes(self, expert: Expert) -> int:
        """Memory of one as `_ready` keeps it."""
        if self._device == "cpu":
            return 3 * 4 * self._geometry.hidden_size * self._geometry.moe_intermediate_size
        return sum(size_of(one) for one in expert)

    def _read(self, layer: int, source: Tensors) -> list[Expert]:
        def matrix(name: str) -> Matrix:
            if not is_packed(self._geometry, name):
                return source.plain(f"{name}.weight")
            return Packed(source.words(f"{name}.weight_packed"), source.plain(f"{name}.weight_scale"))

        found: list[Expert] = []
        for expert in range(self._geometry.n_routed_experts):
            gate, up, down = (matrix(expert_name(layer, expert, projection)) for projection in PROJECTIONS)
            found.append((gate, up, down))
        return found

    def _lay(self, layer: int) -> None:
        """Put a layer's words together on the device; where some are plain all are moved as they are."""
        laid = together(self._layers[layer], self._device)
        if laid is None:
            self._layers[layer] = [self._moved(one) for one in self._layers[layer]]
            return
        self._together[layer] = laid
        self._layers[layer] = [expert_of(laid, expert) for expert in range(self._geometry.n_routed_experts)]

    def _give_back(self, layer: int, experts: Iterable[int]) -> None:
        """Let the system have the file's pages of some experts: they are read again where they are needed again."""
        for expert in experts:
            for tensor in expert_tensors(self._geometry, layer, expert):
                self._checkpoint.give_back(tensor.name)
