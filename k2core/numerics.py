"""What runs a checkpoint: backends, loaded models, the seam of the experts, and the arrays that cross it.

Token ids go in, logits come out; the backend owns the cache memory. Arrays are NumPy on the CPU, their axes have the names
tokens, hidden, inner, experts, top_k, heads and vocab. Everything here is sync, on the engine's one thread.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from attrs import field, frozen

Array = Any  # numpy.ndarray; not imported here so that listing things costs no numpy
Numerics = Literal["exact", "w4a16", "w4a8"]
Progress = Callable[[str, int, int], None]  # called with (what, done, total) while something slow happens


@frozen(kw_only=True)
class Available:
    """A backend can work here.

    Attributes:
        device: the one it takes unasked.
        detail: versions and the like.
        devices: all that it can load to here, `device` too where none is stated.
        missing: devices it knows but cannot use here, each with the reason.
    """

    device: str
    detail: str = ""
    devices: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(factory=dict, eq=False)


@frozen(kw_only=True)
class NotAvailable:
    """A backend cannot work here; `reason` names what is missing and what to do."""

    reason: str


@frozen(kw_only=True)
class Routing:
    """Which experts each token visits.

    Attributes:
        expert_ids: (tokens, top_k) int32, no duplicates within a row.
        weights: (tokens, top_k) float32, >= 0, normalised and scaled as the checkpoint's geometry says.
    """

    expert_ids: Array = field(eq=False)
    weights: Array = field(eq=False)


@frozen(kw_only=True)
class Want:
    """What a forward should return.

    Attributes:
        logits: ``"last"``: one row per sequence; ``"all"``: one row per new token; ``"none"``: no rows.
        routing: also each MoE layer's `Routing`.
        hidden: also the hidden state after the last norm, one row per new token.
    """

    logits: Literal["last", "all", "none"] = "last"
    routing: bool = False
    hidden: bool = False


@frozen(kw_only=True)
class SequenceInput:
    """New tokens of one sequence of a ragged batch.

    Attributes:
        handle: a live sequence of the model.
        token_ids: the ids to append, at least one.
        rows: how many of the last new tokens get a row of logits, 0 to all; None leaves it to `Want.logits`.
    """

    handle: int
    token_ids: Sequence[int] = field(eq=False)
    rows: int | None = None


@frozen(kw_only=True)
class Step:
    """What a forward returned; rows follow the batch's order.

    Attributes:
        logits: (rows, vocab) float32; rows as `Want.logits` says.
        routing: one `Routing` per MoE layer over all new tokens, or None.
        hidden: (tokens, hidden) float32, or None.
    """

    logits: Array = field(eq=False)
    routing: tuple[Routing, ...] | None = field(default=None, eq=False)
    hidden: Array | None = field(default=None, eq=False)


@frozen(kw_only=True)
class CacheMemory:
    """The cache memory of a loaded model.

    Attributes:
        bytes_per_token: of one position of a sequence.
        block_tokens: positions that are given and taken back together.
        free_bytes: what the device could still give to it; None where that is not known.
    """

    bytes_per_token: int
    block_tokens: int
    free_bytes: int | None = None


class RoutedExperts(Protocol):
    """The routed experts of every MoE layer, which may lie on another backend than the rest of the model."""

    def experts(self, layer: int, x: Array, routing: Routing) -> Array:
        """Weighted sum of the chosen experts, without the shared expert: (tokens, hidden) float32.

        Args:
            layer: index of the decoder layer (0-based; must be an MoE layer).
            x: (tokens, hidden) float32, normalised hidden states; unchanged.
            routing: of the same tokens.
        """
        ...

    def info(self) -> Mapping[str, str]:
        """What a report should name: backend, memory, the hit rate of a cache of experts."""
        ...

    def close(self) -> None:
        """Give everything back. Closing twice is fine."""
        ...


class MoEForward(RoutedExperts, Protocol):
    """The whole feed-forward of every MoE layer. Routing and experts are split on purpose.

    Routing is discrete: near-ties may flip between backends legitimately, so routing is compared tie-aware and experts are
    compared on the same routing.
    """

    def route(self, layer: int, x: Array) -> Routing:
        """Choose experts for normalised hidden states.

        Args:
            layer: index of the decoder layer (0-based; must be an MoE layer).
            x: (tokens, hidden) float32; unchanged.
        """
        ...

    def forward(self, layer: int, x: Array) -> Array:
        """`experts` on `route`'s choice plus the shared expert: (tokens, hidden) float32."""
        ...


class LoadedModel(Protocol):
    """A checkpoint on a backend. Single-threaded: one engine thread calls it.

    Sequences are handles; the model owns their cache memory (the MLA latent: kv_lora_rank + rope values per token and layer,
    never expanded keys and values). A handle is valid from `new_sequence` or `fork` until `free`.

    Attributes:
        geometry: the checkpoint's geometry (`k2core.model.config.Geometry`).
        numerics: the rounding in force.
        batch_invariant: the same row gives the same bits whatever the threads, chunking, batch mates or prefix hits.
        fork_is_shared: a fork shares memory with its parent (else it copies).
    """

    geometry: Any
    numerics: Numerics
    batch_invariant: bool
    fork_is_shared: bool

    @property
    def moe(self) -> MoEForward:
        """The feed-forward of every MoE layer."""
        ...

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        ...

    def forward(self, batch: Sequence[SequenceInput], want: Want = ...) -> Step:
        """Append tokens to sequences and compute what *want* asks for.

        Raises:
            K2Error: an unknown handle, an id outside the vocabulary, an empty input, more rows than tokens, the same handle
                twice, or a sequence that would grow beyond the model's positions; nothing has changed then.
        """
        ...

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        ...

    def fork(self, handle: int, length: int) -> int:
        """A new sequence that holds the first *length* tokens; the parent is undisturbed."""
        ...

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens, as if never seen."""
        ...

    def free(self, handle: int) -> None:
        """Give the sequence's memory back; the handle is invalid afterwards."""
        ...

    def bytes_of(self, handle: int) -> int:
        """Cache bytes that freeing this handle would give back."""
        ...

    def memory(self) -> CacheMemory:
        """Cache memory, as it is now; what is free may take a while to find out."""
        ...

    def used_blocks(self) -> int:
        """Blocks of live sequences; one that several share counts once. Cheap."""
        ...

    def info(self) -> Mapping[str, str]:
        """What a report should name: kernel path, threads, versions."""
        ...

    def close(self) -> None:
        """Give everything back; the model is unusable afterwards."""
        ...


class Backend(Protocol):
    """A way to run checkpoints on some hardware.

    What a checkpoint would take in memory may be told by a method ``needs``, see `Needs`. What takes long before the first load
    may be prepared ahead by a `Warmup`: a method ``warmup`` of the backend, or else a function of that name in the top-level
    package that the backend's class comes from. None of them need exist.

    Attributes:
        name: what users write.
        numerics: what it can load with; ``exact`` is among them.
    """

    name: str
    numerics: tuple[Numerics, ...]

    def probe(self) -> Available | NotAvailable:
        """Whether it can work here. Must be cheap and must not import the heavy library."""
        ...

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        moe: RoutedExperts | None = None,
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> LoadedModel:
        """Load a checkpoint folder in the Hugging Face layout.

        Args:
            checkpoint: the folder with config.json and safetensors files.
            device: as `probe` names it.
            numerics: see `Numerics`.
            moe: routed experts of another backend, taken instead of its own, which it does not read then. Router and shared
                experts stay its own. The loaded model closes them.
            expert_bytes: the most memory that its own routed experts may take; those used least recently make room. None is
                as much as they need, where that fits.
            progress: told while something slow happens, e.g. compiling kernels.

        Raises:
            Unavailable: the backend cannot work here, or not with this device, numerics or limit of memory.
            CheckpointError: the folder is malformed, or a weight is not finite; names the tensor.
        """
        ...

    def load_experts(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> RoutedExperts:
        """Load nothing but a checkpoint's routed experts, for a model of another backend; arguments and errors as of `load`."""
        ...


class Needs(Protocol):
    """``needs`` of a backend, which it may have: ``k2 models inspect`` shows what it says before anything is loaded."""

    def __call__(self, footprint: Any, *, context: int, numerics: Numerics) -> int:
        """Bytes that loading and one sequence of *context* tokens would take.

        Args:
            footprint: a `k2core.model.footprint.Footprint`.
            context: tokens.
            numerics: to load with.

        Raises:
            Unavailable: the backend would refuse such a checkpoint; says why.
        """
        ...


class Warmup(Protocol):
    """``warmup`` of a backend or of its package; ``k2 warmup`` calls it once the backend's `probe` says `Available`."""

    def __call__(self, progress: Progress | None = None) -> None:
        """Prepare what the first load would else have to, e.g. compile kernels into a cache. Doing it again costs little.

        Args:
            progress: told per step, total unchanged; not at all where everything is prepared.

        Raises:
            Unavailable: the backend cannot work here.
        """
        ...
