"""A loaded model: sequences of cached latents, and the forward over a ragged batch of new tokens."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from k2core.errors import K2Error
from k2core.interfaces import CacheMemory, Numerics, Progress, RoutedExperts, Routing, SequenceInput, Step, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.sequences import Batch, Held, Sequences
from k2core_torch.attention import AttentionWeights, project, rotations
from k2core_torch.caching import LEAST, Attention, Cache, cache_type
from k2core_torch.computing import bytes_free, computing
from k2core_torch.contiguous import Contiguous
from k2core_torch.decoding import Decoder
from k2core_torch.device_kernels import kernels_told
from k2core_torch.moe import MlpWeights, TorchMoE
from k2core_torch.paged import Paged, Places
from k2core_torch.products import product, rms_norm
from k2core_torch.routed import Elsewhere, TorchExperts
from k2core_torch.seam import CLOSED
from k2core_torch.tensors import SMALL, Tensors

Tensor = torch.Tensor
CHUNK = 1024  # tokens that go through a feed-forward at once


class TorchModel:
    """A checkpoint in PyTorch; implements `k2core.interfaces.LoadedModel`."""

    batch_invariant = False  # products depend on the number of rows
    fork_is_shared = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        numerics: Numerics,
        way: str,
        moe: RoutedExperts | None = None,
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.geometry, self.numerics = checkpoint.geometry, numerics
        self._device, self._way = device, way
        geometry, tensors = self.geometry, Tensors(checkpoint, device)
        is_small = checkpoint.size_bytes <= SMALL and way != "eager"
        self._embedding = tensors.plain("model.embed_tokens.weight")
        self._norm = tensors.float32("model.norm.weight")
        self._head = (tensors.float32 if is_small else tensors.plain)("lm_head.weight")
        layers = [f"model.layers.{layer}" for layer in range(geometry.num_hidden_layers)]
        self._input_norms = [tensors.float32(f"{name}.input_layernorm.weight") for name in layers]
        self._post_norms = [tensors.float32(f"{name}.post_attention_layernorm.weight") for name in layers]
        self._attention = [AttentionWeights.read(tensors, layer, is_small=is_small) for layer in range(len(layers))]
        self._dense = {
            layer: MlpWeights.read(tensors, f"{name}.mlp", is_small=is_small)
            for layer, name in enumerate(layers)
            if layer not in geometry.moe_layers
        }
        routed: TorchExperts | Elsewhere
        if moe is None:
            routed = TorchExperts(
                checkpoint, device=device, numerics=numerics, way=way, expert_bytes=expert_bytes, progress=progress
            )
        else:
            routed = Elsewhere(geometry, device, moe)
        self.moe = TorchMoE(tensors, routed, numerics, is_small=is_small)
        self._frequency = torch.from_numpy(geometry.inv_freq).to(device)
        self._cache: Cache
        self._decoder: Decoder | None = None
        if way in ("kernels", "graphs"):
            self._cache = pages = Paged(geometry, numerics, device=device)
            if routed.is_fixed:
                self._decoder = Decoder(partial(self._decoded, pages), pages, device, records=way == "graphs")
        else:
            self._cache = Contiguous(geometry, numerics, device=device, is_eager=way == "eager")
        self._sequences: Sequences[Held] = Sequences(geometry)
        self._layer_bytes = tensors.layer_bytes
        self._is_closed = False

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        return self._live().add(self._cache.empty())

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008  # frozen record
        """Append tokens to sequences; see `k2core.interfaces.LoadedModel.forward`.

        Raises:
            K2Error: the batch cannot be run; nothing has changed then.
            CapacityError: a sequence would outgrow the model's positions, or there is no memory; nothing has changed then.
        """
        new = self._live().check(batch, want)
        with computing(self._device, f"{len(new.ids)} tokens of {len(batch)} sequences", work=self._layer_bytes * len(new.ids)):
            try:
                self._cache.reserve(zip(new.sequences, new.counts, strict=True))
                step = self._run(new, want)
            except BaseException:
                for sequence in new.sequences:  # what was reserved for nothing
                    self._cache.cut(sequence, sequence.length)
                raise
        for sequence, count in zip(new.sequences, new.counts, strict=True):
            sequence.length += count
        return step

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        return self._live().get(handle).length

    def fork(self, handle: int, length: int) -> int:
        """A copy of the first *length* tokens.

        Raises:
            K2Error: an unknown handle, or *length* is negative or more than the sequence has.
            CapacityError: no memory for it.
        """
        parent = self._live().cut(handle, length, "fork")
        with computing(self._device, f"a fork of {length} tokens", work=0):
            return self._live().add(self._cache.copy(parent, length))

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens.

        Raises:
            K2Error: as of `fork`.
        """
        self._cache.cut(self._live().cut(handle, length, "truncate"), length)

    def free(self, handle: int) -> None:
        """Give the sequence's memory back; the handle is invalid afterwards.

        Raises:
            K2Error: an unknown handle.
        """
        self._cache.drop(self._live().get(handle))
        del self._sequences.live[handle]

    def bytes_of(self, handle: int) -> int:
        """The sequence's memory: nothing is shared."""
        return self._cache.bytes_of(self._live().get(handle))

    def used_blocks(self) -> int:
        """Blocks of 64 positions in use."""
        return sum(map(self._cache.blocks_of, self._sequences.live.values()))

    def memory(self) -> CacheMemory:
        """Cache memory, as it is now. What grows holds up to twice what it uses."""
        self._live()
        free = bytes_free(self._device)
        return CacheMemory(
            bytes_per_token=2 * self.geometry.cache_values_per_token * cache_type(self.numerics).itemsize,
            block_tokens=LEAST,
            free_bytes=None if free is None else free + self._cache.spare_bytes(),
        )

    def info(self) -> Mapping[str, str]:
        """What a report should name."""
        return {
            **self.moe.info(),
            "backend": "torch",
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "numerics": self.numerics,
            "kernel_path": self._told_way(),
            "kernels": kernels_told(self._device, self._way),
            "threads": str(torch.get_num_threads()),
            "torch": str(torch.__version__),
        }

    def close(self) -> None:
        """Give everything back; the model is unusable afterwards. Closing twice is fine."""
        self._sequences.live.clear()
        if not self._is_closed:
            self._is_closed = True
            if self._decoder is not None:
                self._decoder.clear()
                self._decoder = None
            self._cache.clear()
            self.moe.close()
            for weights in (self._attention, self._dense, self._input_norms, self._post_norms):
                weights.clear()
            self._embedding = self._norm = self._head = torch.empty(0)

    def _told_way(self) -> str:
        if self._way not in ("kernels", "graphs") or self._decoder is not None or self._is_closed:
            return self._way
        return f"{self._way}, for attention alone: experts are plain, limited or elsewhere"

    def _live(self) -> Sequences[Held]:
        if self._is_closed:
            raise K2Error(CLOSED)
        return self._sequences

    def _run(self, new: Batch[Any], want: Want) -> Step:
        wanted = torch.tensor(new.rows, dtype=torch.int64, device=self._device)
        if self._decoder is not None and len(new.ids) == len(new.sequences):
            final, logits, routing = self._decoder.run(new)
            count = len(new.ids)
            return _step(logits[wanted], [(ids[:count], shares[:count]) for ids, shares in routing], final[:count], want)
        places = [torch.arange(one.length, one.length + count) for one, count in zip(new.sequences, new.counts, strict=True)]
        ids = torch.tensor(new.ids, device=self._device)
        x, routing = self._through(ids, torch.cat(places).to(self._device), self._cache.attention(new))
        final = rms_norm(x if want.hidden else x[wanted], self._norm, self.geometry.rms_norm_eps)
        logits = product(final[wanted] if want.hidden else final, self._head, self.numerics)
        return _step(logits, routing, final, want)

    def _decoded(
        self, pages: Paged, ids: Tensor, positions: Tensor, places: Places
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """One token of each sequence: final states, logits and routing of all."""
        x, routing = self._through(ids, positions, partial(pages.attend, places))
        final = rms_norm(x, self._norm, self.geometry.rms_norm_eps)
        return final, product(final, self._head, self.numerics), routing

    def _through(self, ids: Tensor, positions: Tensor, attention: Attention) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """States behind the last layer, and what every MoE layer chose."""
        g = self.geometry
        turn = rotations(self._frequency, g.rope_multiplier, positions)
        x = self._embedding[ids].to(torch.float32)
        routing: list[tuple[Tensor, Tensor]] = []
        for layer, weights in enumerate(self._attention):
            normed = rms_norm(x, self._input_norms[layer], g.rms_norm_eps)
            attended = attention(layer, *project(normed, weights, g, turn, self.numerics), weights)
            x = x + product(attended, weights.output, self.numerics)
            normed = rms_norm(x, self._post_norms[layer], g.rms_norm_eps)
            if layer in self._dense:
                x = x + _joined([self._dense[layer](part, self.numerics) for (part,) in _cut(normed)])
                continue
            chosen = self.moe.choose(layer, normed)
            x = x + _joined([self.moe.apply(layer, *part) for part in _cut(normed, *chosen)])
            routing.append(chosen)
        return x, routing


def _cut(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The rows of all in pieces of `CHUNK`."""
    return list(zip(*(torch.split(one, CHUNK) for one in tensors), strict=True))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _step(logits: Tensor, routing: list[tuple[Tensor, Tensor]], final: Tensor, want: Want) -> Step:
    return Step(
        logits=logits.cpu().numpy(),
        routing=tuple(_routing(*one) for one in routing) if want.routing else None,
        hidden=final.cpu().numpy() if want.hidden else None,
    )


def _routing(ids: Tensor, weights: Tensor) -> Routing:
    return Routing(expert_ids=ids.to(torch.int32).cpu().numpy(), weights=np.asarray(weights.cpu().numpy()))
