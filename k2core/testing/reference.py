"""A backend in plain NumPy: float32, slow, every equation in a line or two. What a stranger's backend may look like.

It also makes the mistakes that people make: each of `MISTAKES` can be planted, to see the conformance kit refuse it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, evolve
from numpy.typing import NDArray

from k2core.errors import K2Error, ShapeError, Unavailable
from k2core.interfaces import Available, CacheMemory, Numerics, Progress, RoutedExperts, Routing, SequenceInput, Step, Want
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.finite import require_finite
from k2core.model.int4 import PackedMatrix, unpack
from k2core.model.layout import PROJECTIONS, expert_name, plain_tensors
from k2core.model.sequences import Sequences

Float32 = NDArray[np.float32]
MISTAKES: Mapping[str, str] = {
    "no_offset": "codes are taken as they are stored, without the -8",
    "ignored_bias": "the router's bias takes no part in the choice",
    "gate_up_swapped": "gate and up projections of the experts change places",
    "no_routed_scaling": "routing weights are not scaled",
    "no_normalisation": "routing weights are not made to sum to 1",
    "no_yarn": "frequencies are those of plain rotary positions",
    "half_split": "value i is rotated with value i + dim / 2, not with its neighbour",
    "no_mscale": "the softmax scale lacks YaRN's squared magnitude",
    "wrong_theta": "the base of the frequencies is another",
    "top_k_short": "one expert too few takes part",
}


class ReferenceBackend:
    """NumPy on the CPU; implements `k2core.interfaces.Backend`."""

    name = "reference"
    numerics: tuple[Numerics, ...] = ("exact",)

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = frozenset(mistakes)
        assert self.mistakes <= set(MISTAKES)

    def probe(self) -> Available:
        """NumPy is always there."""
        return Available(device="cpu", detail=f"numpy {np.__version__}", devices=("cpu",))

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        moe: RoutedExperts | None = None,
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> "ReferenceModel":
        """Load a checkpoint; see `k2core.interfaces.Backend.load`.

        Raises:
            Unavailable: another device or numerics, or a limit for experts, which are never prepared here.
        """
        if device != "cpu" or numerics != "exact":
            raise Unavailable(f"the reference backend has the device cpu, not '{device}', and exact, not '{numerics}'")
        if expert_bytes is not None:
            raise Unavailable("the reference backend prepares no experts whose memory could be limited")
        return ReferenceModel(Checkpoint.open(checkpoint), self.mistakes, moe)

    def load_experts(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> "ReferenceMoE":
        """The experts alone; see `k2core.interfaces.Backend.load_experts`."""
        return self.load(checkpoint, device=device, numerics=numerics, expert_bytes=expert_bytes).moe


@define(eq=False)
class _Cached:
    """One sequence: per layer its latents with rotated keys, (positions, rank + rope)."""

    layers: list[Float32]
    length: int = 0


class ReferenceMoE:
    """The feed-forward of every MoE layer; implements `k2core.interfaces.MoEForward`."""

    def __init__(self, checkpoint: Checkpoint, mistakes: frozenset[str], other: RoutedExperts | None) -> None:
        self._checkpoint, self._mistakes, self._other = checkpoint, mistakes, other
        self._geometry, self._closed = checkpoint.geometry, False

    def route(self, layer: int, x: Any) -> Routing:
        """See `k2core.interfaces.MoEForward.route`."""
        g, x = self._geometry, self._states(layer, x)
        prefix = f"model.layers.{layer}.mlp.gate"
        scores = _sigmoid(x @ self._weight(f"{prefix}.weight").T)
        bias = self._weight(f"{prefix}.e_score_correction_bias") if "ignored_bias" not in self._mistakes else np.float32(0)
        ids = np.argsort(-(scores + bias), axis=-1, kind="stable")[:, : g.num_experts_per_tok].astype(np.int32)
        weights = np.take_along_axis(scores, ids, -1)
        if "top_k_short" in self._mistakes:
            weights[:, -1] = 0
        if g.norm_topk_prob and "no_normalisation" not in self._mistakes:
            weights = weights / (weights.sum(-1, keepdims=True) + np.float32(1e-20))
        if "no_routed_scaling" not in self._mistakes:
            weights = weights * np.float32(g.routed_scaling_factor)
        return Routing(expert_ids=ids, weights=weights)

    def experts(self, layer: int, x: Any, routing: Routing) -> Float32:
        """See `k2core.interfaces.RoutedExperts.experts`."""
        x = self._states(layer, x)
        ids, weights = np.asarray(routing.expert_ids), np.asarray(routing.weights, np.float32)
        if ids.shape != (len(x), self._geometry.num_experts_per_tok) or weights.shape != ids.shape:
            raise ShapeError(f"moe_experts: routing has {ids.shape} ids and {weights.shape} weights for {len(x)} tokens")
        if self._other is not None:
            return np.asarray(self._other.experts(layer, x, routing), np.float32)
        y = np.zeros_like(x)
        for expert in np.unique(ids):
            tokens, slots = np.nonzero(ids == expert)
            y[tokens] += weights[tokens, slots, None] * _swiglu(x[tokens], *self._expert(layer, int(expert)))
        return np.asarray(y, np.float32)

    def forward(self, layer: int, x: Any) -> Float32:
        """See `k2core.interfaces.MoEForward.forward`."""
        prefix = f"model.layers.{layer}.mlp.shared_experts"
        shared = (self._weight(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down"))
        return self.experts(layer, x, self.route(layer, x)) + _swiglu(self._states(layer, x), *shared)

    def info(self) -> Mapping[str, str]:
        """Names the backend."""
        return {"backend": "reference"}

    def close(self) -> None:
        """There is nothing to give back but another's experts."""
        self._closed = True
        if self._other is not None:
            self._other.close()

    def _states(self, layer: int, x: Any) -> Float32:
        if self._closed:
            raise K2Error("cannot run a model that was closed. Load the checkpoint again.")
        if layer not in self._geometry.moe_layers:
            raise K2Error(f"layer {layer} has no experts")
        states = np.asarray(x, np.float32)
        if states.ndim != 2 or states.shape[1] != self._geometry.hidden_size:
            raise ShapeError(f"moe: x is {states.shape}, expected (tokens, {self._geometry.hidden_size})")
        return states

    def _weight(self, name: str) -> Float32:
        return weight(self._checkpoint, name)

    def _expert(self, layer: int, expert: int) -> tuple[Float32, Float32, Float32]:
        gate, up, down = (
            self._plain(expert_name(layer, expert, name), self._checkpoint.expert(layer, expert, name)) for name in PROJECTIONS
        )
        return (up, gate, down) if "gate_up_swapped" in self._mistakes else (gate, up, down)

    def _plain(self, name: str, matrix: Any) -> Float32:
        if not isinstance(matrix, PackedMatrix):
            require_finite(matrix, f"{name}.weight")
            return np.asarray(matrix, np.float32)
        require_finite(matrix.scale, f"{name}.weight_scale")
        codes = unpack(matrix.packed).astype(np.float32) + (8 if "no_offset" in self._mistakes else 0)
        return np.asarray(codes * np.repeat(matrix.scale.astype(np.float32), matrix.group, axis=1), np.float32)


class ReferenceModel:
    """A checkpoint in NumPy; implements `k2core.interfaces.LoadedModel`."""

    numerics: Numerics = "exact"
    batch_invariant = False  # NumPy's products depend on the number of rows
    fork_is_shared = False

    def __init__(self, checkpoint: Checkpoint, mistakes: frozenset[str], moe: RoutedExperts | None) -> None:
        self.geometry = checkpoint.geometry
        for one in plain_tensors(self.geometry):
            weight(checkpoint, one.name)  # what is damaged is told now
        self.moe = ReferenceMoE(checkpoint, mistakes, moe)
        self._checkpoint, self._mistakes = checkpoint, mistakes
        self._sequences: Sequences[_Cached] = Sequences(self.geometry)
        self._frequency = _frequency(self.geometry, mistakes)

    def new_sequence(self) -> int:
        """An empty sequence's handle."""
        width = self.geometry.cache_values_per_layer
        return self._sequences.add(_Cached([np.empty((0, width), np.float32)] * self.geometry.num_hidden_layers))

    def forward(self, batch: Sequence[SequenceInput], want: Want = Want()) -> Step:  # noqa: B008  # frozen record
        """See `k2core.interfaces.LoadedModel.forward`."""
        g = self.geometry
        new = self._sequences.check(batch, want)
        x = self._weight("model.embed_tokens.weight")[new.ids]
        routing: list[Routing] = []
        for layer in range(g.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            normed = self._norm(x, f"{prefix}.input_layernorm")
            x = x + np.concatenate([self._attention(layer, normed[cut], one) for one, cut in new.cuts()])
            normed = self._norm(x, f"{prefix}.post_attention_layernorm")
            if layer in g.moe_layers:
                x = x + self.moe.forward(layer, normed)
                routing.append(self.moe.route(layer, normed))
            else:
                x = x + _swiglu(normed, *(self._weight(f"{prefix}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")))
        for sequence, count in zip(new.sequences, new.counts, strict=True):
            sequence.length += count
        hidden = self._norm(x, "model.norm")
        return Step(
            logits=hidden[new.rows] @ self._weight("lm_head.weight").T,
            routing=tuple(routing) if want.routing else None,
            hidden=hidden if want.hidden else None,
        )

    def length(self, handle: int) -> int:
        """Tokens in the sequence's cache."""
        return self._sequences.get(handle).length

    def fork(self, handle: int, length: int) -> int:
        """A copy of the first *length* tokens."""
        parent = self._sequences.cut(handle, length, "fork")
        return self._sequences.add(_Cached([rows[:length].copy() for rows in parent.layers], length))

    def truncate(self, handle: int, length: int) -> None:
        """Forget everything after the first *length* tokens."""
        sequence = self._sequences.cut(handle, length, "truncate")
        sequence.layers, sequence.length = [rows[:length] for rows in sequence.layers], length

    def free(self, handle: int) -> None:
        """The handle is invalid afterwards."""
        self._sequences.get(handle)
        del self._sequences.live[handle]

    def bytes_of(self, handle: int) -> int:
        """All of the sequence's cache: nothing is shared."""
        return self.length(handle) * self.geometry.cache_values_per_token * 4

    def memory(self) -> CacheMemory:
        """A position is a block; what is free is not looked up."""
        return CacheMemory(bytes_per_token=self.geometry.cache_values_per_token * 4, block_tokens=1)

    def used_blocks(self) -> int:
        """Positions of all sequences."""
        return sum(one.length for one in self._sequences.live.values())

    def info(self) -> Mapping[str, str]:
        """Names the backend."""
        return {"backend": "reference", "numerics": "exact"}

    def close(self) -> None:
        """Free every sequence, and another's experts."""
        self._sequences.live.clear()
        self.moe.close()

    def _attention(self, layer: int, x: Float32, sequence: _Cached) -> Float32:
        g, prefix = self.geometry, f"model.layers.{layer}.self_attn"
        heads, nope, rank = g.num_attention_heads, g.qk_nope_head_dim, g.kv_lora_rank

        def product(given: Float32, name: str) -> Float32:
            return np.asarray(given @ self._weight(f"{prefix}.{name}.weight").T, np.float32)

        positions = np.arange(sequence.length, sequence.length + len(x))
        latent_query = self._norm(product(x, "q_a_proj"), f"{prefix}.q_a_layernorm", g.latent_norm_eps)
        query = product(latent_query, "q_b_proj").reshape(len(x), heads, g.qk_head_dim)
        both = product(x, "kv_a_proj_with_mqa")
        latent = self._norm(both[:, :rank], f"{prefix}.kv_a_layernorm", g.latent_norm_eps)
        rows = np.concatenate([latent, self._rotated(both[:, None, rank:], positions)[:, 0]], axis=1)
        cache = sequence.layers[layer] = np.concatenate([sequence.layers[layer], rows])
        expand = self._weight(f"{prefix}.kv_b_proj.weight").reshape(heads, nope + g.v_head_dim, rank)
        expanded = np.einsum("hdr,jr->hjd", expand, cache[:, :rank], optimize=True)
        scores = np.einsum("thd,hjd->htj", query[..., :nope], expanded[..., :nope], optimize=True)
        scores += np.einsum("thd,jd->htj", self._rotated(query[..., nope:], positions), cache[:, rank:], optimize=True)
        scale = g.qk_head_dim**-0.5 if "no_mscale" in self._mistakes else g.softmax_scale
        scores = np.where(np.arange(len(cache)) <= positions[:, None], scores * np.float32(scale), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = (shares / shares.sum(-1, keepdims=True)).astype(np.float32)
        attended = np.einsum("htj,hjd->thd", shares, expanded[..., nope:], optimize=True)
        return product(attended.reshape(len(x), -1), "o_proj")

    def _rotated(self, x: Float32, positions: NDArray[np.int64]) -> Float32:
        """(tokens, heads, rope), each pair turned by its angle."""
        angle = np.outer(positions, self._frequency)[:, None]
        cosine, sine = (np.float32(f(angle) * self.geometry.rope_multiplier) for f in (np.cos, np.sin))
        turned, half = np.empty_like(x), x.shape[-1] // 2
        split = "half_split" in self._mistakes
        first, second = (slice(half), slice(half, None)) if split else (slice(0, None, 2), slice(1, None, 2))
        turned[..., first] = x[..., first] * cosine - x[..., second] * sine
        turned[..., second] = x[..., first] * sine + x[..., second] * cosine
        return turned

    def _norm(self, x: Float32, name: str, eps: float | None = None) -> Float32:
        mean = np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.geometry.rms_norm_eps if eps is None else eps)
        return np.asarray(self._weight(f"{name}.weight") * (x / np.sqrt(mean)), np.float32)

    def _weight(self, name: str) -> Float32:
        return weight(self._checkpoint, name)


def weight(checkpoint: Checkpoint, name: str) -> Float32:
    """A tensor as float32, read anew each time.

    Raises:
        CheckpointError: there is none, or a value is not finite.
    """
    values: Float32 = checkpoint.tensor(name).astype(np.float32)
    require_finite(values, name)
    return values


def _frequency(geometry: Geometry, mistakes: frozenset[str]) -> NDArray[np.float64]:
    if "no_yarn" in mistakes:
        return evolve(geometry, rope_scaling=None).inv_freq
    if "wrong_theta" in mistakes:
        return evolve(geometry, rope_theta=10_000.0 if geometry.rope_theta != 10_000.0 else 50_000.0).inv_freq
    return geometry.inv_freq


def _sigmoid(x: Float32) -> Float32:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _swiglu(x: Float32, gate: Float32, up: Float32, down: Float32) -> Float32:
    left = x @ gate.T
    return np.asarray((left * _sigmoid(left) * (x @ up.T)) @ down.T, np.float32)
