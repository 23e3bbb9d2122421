"""A loaded model: sequences of cached latents, and the forward over a ragged batch of new tokens."""

from collections.abc import Mapping, Sequence

import onnxruntime

from k2core.errors import CapacityError, K2Error
from k2core.interfaces import CacheMemory, Numerics, Progress, RoutedExperts, SequenceInput, Step, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.free_memory import free_bytes
from k2core.model.rotations import Rotations
from k2core.model.sequences import Held, Sequences
from k2core_onnx import halves
from k2core_onnx.cache import LEAST
from k2core_onnx.graph import Weights
from k2core_onnx.moe import OnnxExperts, OnnxMoE
from k2core_onnx.on_device import OnDevice
from k2core_onnx.on_host import OnHost
from k2core_onnx.parts import Flow, Parts
from k2core_onnx.session import SESSIONS_PER_LAYER, Sessions


class OnnxModel:
    """A checkpoint on ONNX Runtime; implements `k2core.interfaces.LoadedModel`."""

    batch_invariant = False  # products depend on the number of rows
    fork_is_shared = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        numerics: Numerics,
        moe: RoutedExperts | None = None,
        fused: bool = False,
        progress: Progress | None = None,
        bound: bool = False,
    ) -> None:
        g = checkpoint.geometry
        self.geometry, self.numerics, self._device = g, numerics, device
        weights, layers = Weights(checkpoint), range(g.num_hidden_layers)
        # first, because of all parts they need the most beyond what stays: the mapped codes of a layer
        routed = moe or OnnxExperts(checkpoint, device=device, numerics=numerics, fused=fused, progress=progress)
        embedding = weights.plain("model.embed_tokens.weight")
        checkpoint.give_back("model.embed_tokens.weight")  # its pages: rows are read as they are needed
        sessions, attention = Sessions(device, SESSIONS_PER_LAYER * len(layers)), []
        for layer in layers:
            attention.append(sessions.make(halves.attention(weights, layer, joins=bound)))
            if progress is not None:
                progress("building graphs", layer + 1, len(layers))
        parts = Parts(
            geometry=g,
            embedding=embedding,
            attention=attention,
            dense={layer: sessions.make(halves.dense(weights, layer)) for layer in layers if layer not in g.moe_layers},
            head=sessions.make(halves.head(weights)),
            moe=OnnxMoE(weights, routed, sessions),
            rotations=Rotations(g),
        )
        self.moe, self._threads, self._bound = parts.moe, sessions.threads, bound
        self._flow: Flow | None = OnDevice(parts, sessions) if bound else OnHost(parts)
        self._sequences: Sequences[Held] = Sequences(g)

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        return self._live().add(self._open().empty())

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008  # frozen record
        """Append tokens to sequences; see `k2core.interfaces.LoadedModel.forward`.

        Raises:
            K2Error: the batch cannot be run; nothing has changed then.
            CapacityError: a sequence would outgrow the model's positions, or there is no memory; nothing has changed then.
        """
        new = self._live().check(batch, want)
        try:
            self._open().reserve(zip(new.sequences, new.counts, strict=True))
            step = self._open().run(new, want)
        except MemoryError as error:
            raise CapacityError(f"no memory for {len(new.ids)} tokens of {len(batch)} sequences") from error
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
            CapacityError: there is no memory for it.
        """
        parent = self._live().cut(handle, length, "fork")
        try:
            return self._live().add(self._open().copy(parent, length))
        except MemoryError as error:
            raise CapacityError(f"no memory for a fork of {length} tokens") from error

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens.

        Raises:
            K2Error: as of `fork`.
        """
        self._open().cut(self._live().cut(handle, length, "truncate"), length)

    def free(self, handle: int) -> None:
        """Give the sequence's memory back; the handle is invalid afterwards.

        Raises:
            K2Error: an unknown handle.
        """
        self._live().get(handle)
        del self._sequences.live[handle]

    def bytes_of(self, handle: int) -> int:
        """The sequence's memory, with what it may share with forks."""
        return self._open().bytes_of(self._live().get(handle))

    def used_blocks(self) -> int:
        """Blocks of 64 positions in use."""
        return sum(-(-one.length // LEAST) for one in self._sequences.live.values())

    def memory(self) -> CacheMemory:
        """Cache memory, as it is now: what grows holds up to twice what it uses. What a GPU has free is not known."""
        self._live()
        return CacheMemory(
            bytes_per_token=2 * 4 * self.geometry.cache_values_per_token,
            block_tokens=LEAST,
            free_bytes=free_bytes() if self._device == "cpu" else None,
        )

    def info(self) -> Mapping[str, str]:
        """What a report should name."""
        return {
            **self.moe.info(),
            "backend": "onnx",
            "device": self._device,
            "numerics": self.numerics,
            "kernel_path": "graphs, bound" if self._bound else "graphs",
            "threads": str(self._threads),
            "onnxruntime": str(onnxruntime.__version__),
        }

    def close(self) -> None:
        """Give everything back; the model is unusable afterwards. Closing twice is fine."""
        self._sequences.live.clear()
        if self._flow is not None:
            self._flow = None
            self.moe.close()

    def _live(self) -> Sequences[Held]:
        self._open()
        return self._sequences

    def _open(self) -> Flow:
        if self._flow is None:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        return self._flow
