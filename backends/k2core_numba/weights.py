"""A checkpoint's tensors as arrays in the kernels' layouts, and the table of their addresses."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.errors import CheckpointError
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.finite import require_finite
from k2core_numba.expert_layout import empty_slots, read_expert
from k2core_numba.packing import LINE, TILE, aligned_zeros, bfloat16_bits, round_up, tile_plain
from k2core_numba.runtime import kernels

PIECE = 8 << 20  # bytes of a matrix that are copied in one go


@frozen(kw_only=True)
class Weights:
    """Everything a forward reads.

    Attributes:
        geometry: of the checkpoint.
        sizes, constants: `k2core_kernels.numba.layers.Sizes` and `Constants`.
        addresses: int64 (layers + 1, columns) for the kernels.
        arrays: what the addresses point to; they must live as long as the table.
        size_bytes: of all arrays.
    """

    geometry: Geometry
    sizes: Any
    constants: Any
    addresses: NDArray[np.int64] = field(eq=False)
    arrays: tuple[NDArray[Any], ...] = field(eq=False, repr=False)

    @property
    def size_bytes(self) -> int:
        """Memory of all weights."""
        return sum(array.nbytes for array in self.arrays)


def read_weights(checkpoint: Checkpoint, *, experts: bool = True) -> Weights:
    """Read and lay out all weights; mapped pages are given back as soon as they are copied.

    Args:
        checkpoint: with INT4 experts.
        experts: whether routed experts are read, too.

    Raises:
        CheckpointError: a tensor is missing, has another shape, is not finite, or cannot be kept exactly; names it.
    """
    return _Reader(checkpoint, experts=experts).read()


class _Reader:
    def __init__(self, checkpoint: Checkpoint, *, experts: bool) -> None:
        self.checkpoint, self.geometry, self.columns = checkpoint, checkpoint.geometry, kernels("layers")
        self.with_experts = experts
        geometry = self.geometry
        self.addresses = np.zeros((geometry.num_hidden_layers + 1, self.columns.COLUMNS), np.int64)
        self.arrays: list[NDArray[Any]] = []

    def read(self) -> Weights:
        geometry, columns = self.geometry, self.columns
        outer = geometry.num_hidden_layers
        padded = aligned_zeros((geometry.vocab_size, round_up(geometry.hidden_size)), np.uint16)
        for rows, bits in self.pieces("model.embed_tokens.weight", (geometry.vocab_size, geometry.hidden_size)):
            padded[rows, : geometry.hidden_size] = bits
        self.keep(outer, columns.EMBEDDING, padded)
        self.vector(outer, columns.FINAL_NORM, "model.norm.weight", geometry.hidden_size)
        self.matrix(outer, columns.HEAD, "lm_head.weight", (geometry.vocab_size, geometry.hidden_size))
        for layer in range(geometry.num_hidden_layers):
            self.attention(layer, f"model.layers.{layer}")
            if layer in geometry.moe_layers:
                self.experts(layer, f"model.layers.{layer}.mlp")
            else:
                self.mlp(layer, f"model.layers.{layer}.mlp", geometry.intermediate_size)
        return Weights(
            geometry=geometry,
            sizes=sizes_of(geometry),
            constants=_constants(geometry, columns),
            addresses=self.addresses,
            arrays=tuple(self.arrays),
        )

    def attention(self, layer: int, prefix: str) -> None:
        geometry, columns = self.geometry, self.columns
        hidden, heads, rank = geometry.hidden_size, geometry.num_attention_heads, geometry.kv_lora_rank
        nope, value = geometry.qk_nope_head_dim, geometry.v_head_dim
        self.vector(layer, columns.INPUT_NORM, f"{prefix}.input_layernorm.weight", hidden)
        self.vector(layer, columns.POST_NORM, f"{prefix}.post_attention_layernorm.weight", hidden)
        prefix += ".self_attn"
        self.vector(layer, columns.QUERY_NORM, f"{prefix}.q_a_layernorm.weight", geometry.q_lora_rank)
        self.vector(layer, columns.LATENT_NORM, f"{prefix}.kv_a_layernorm.weight", rank)
        self.matrix(layer, columns.QUERY_A, f"{prefix}.q_a_proj.weight", (geometry.q_lora_rank, hidden))
        self.matrix(layer, columns.QUERY_B, f"{prefix}.q_b_proj.weight", (heads * geometry.qk_head_dim, geometry.q_lora_rank))
        self.matrix(layer, columns.LATENT_A, f"{prefix}.kv_a_proj_with_mqa.weight", (geometry.cache_values_per_layer, hidden))
        self.matrix(layer, columns.OUTPUT, f"{prefix}.o_proj.weight", (hidden, heads * value))
        expand = self.bits(f"{prefix}.kv_b_proj.weight", (heads * (nope + value), rank)).reshape(heads, nope + value, rank)
        self.keep(layer, columns.ABSORB, np.concatenate([tile_plain(head[:nope].T) for head in expand]))
        self.keep(layer, columns.VALUE, np.concatenate([tile_plain(head[nope:]) for head in expand]))
        self.checkpoint.give_back(f"{prefix}.kv_b_proj.weight")

    def mlp(self, layer: int, prefix: str, inner: int) -> None:
        hidden, columns = self.geometry.hidden_size, self.columns
        self.matrix(layer, columns.GATE, f"{prefix}.gate_proj.weight", (inner, hidden))
        self.matrix(layer, columns.UP, f"{prefix}.up_proj.weight", (inner, hidden))
        self.matrix(layer, columns.DOWN, f"{prefix}.down_proj.weight", (hidden, inner))

    def experts(self, layer: int, prefix: str) -> None:
        geometry, columns = self.geometry, self.columns
        hidden, count = geometry.hidden_size, geometry.n_routed_experts
        self.matrix(layer, columns.ROUTER, f"{prefix}.gate.weight", (count, hidden))
        self.vector(layer, columns.ROUTER_BIAS, f"{prefix}.gate.e_score_correction_bias", count)
        self.mlp(layer, f"{prefix}.shared_experts", geometry.shared_intermediate_size)
        if not self.with_experts:
            return
        slots = empty_slots(self.checkpoint, count)  # one array for all experts; experts are never held twice
        for expert in range(count):
            read_expert(self.checkpoint, layer, expert, slots, expert)
        for column, array in zip(expert_columns(columns), slots, strict=True):
            self.keep(layer, column, array)

    def keep(self, row: int, column: int, array: NDArray[Any]) -> None:
        if array.ctypes.data % LINE:
            aligned = aligned_zeros(array.shape, array.dtype)
            aligned[:] = array
            array = aligned
        self.addresses[row, column] = array.ctypes.data
        self.arrays.append(array)

    def bits(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        return bfloat16_bits(self.tensor(name, shape), name)

    def pieces(self, name: str, shape: tuple[int, int]) -> Iterator[tuple[slice, NDArray[np.uint16]]]:
        """Rows of a matrix in pieces of whole tiles, so that neither copies nor mapped pages of it all are held at once."""
        tensor = self.tensor(name, shape)
        step = max(TILE, PIECE // (2 * shape[1]) // TILE * TILE)
        for start in range(0, shape[0], step):
            rows = slice(start, min(start + step, shape[0]))
            yield rows, bfloat16_bits(tensor[rows], name)
            self.checkpoint.give_back(name)

    def matrix(self, row: int, column: int, name: str, shape: tuple[int, int]) -> None:
        words = round_up(shape[1], 2) // 2
        tiled = aligned_zeros((round_up(shape[0]) * words,), np.uint32)
        for rows, bits in self.pieces(name, shape):
            tiled[rows.start * words : round_up(rows.stop) * words] = tile_plain(bits)
        self.keep(row, column, tiled)

    def vector(self, row: int, column: int, name: str, size: int) -> None:
        values = np.ascontiguousarray(self.tensor(name, (size,)).astype(np.float32))
        require_finite(values, name)
        self.keep(row, column, values)
        self.checkpoint.give_back(name)

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        tensor = self.checkpoint.tensor(name)
        if tensor.shape != shape:
            raise CheckpointError(f"cannot load {name}: its shape is {tensor.shape}, config.json says {shape}")
        return tensor


def expert_columns(columns: Any) -> tuple[int, ...]:
    """Where a layer's row has the addresses of its experts' words and scales, in the order of `Slots`."""
    return (
        columns.EXPERT_GATE, columns.EXPERT_GATE_SCALE, columns.EXPERT_UP, columns.EXPERT_UP_SCALE, columns.EXPERT_DOWN,
        columns.EXPERT_DOWN_SCALE,
    )  # fmt: skip


def sizes_of(geometry: Geometry) -> Any:
    """`k2core_kernels.numba.layers.Sizes` of a geometry."""
    quantisation = geometry.quantisation
    return kernels("layers").Sizes(
        layers=geometry.num_hidden_layers,
        dense_layers=geometry.first_k_dense_replace,
        hidden=geometry.hidden_size,
        dense_inner=geometry.intermediate_size,
        shared_inner=geometry.shared_intermediate_size,
        experts=geometry.n_routed_experts,
        top_k=geometry.num_experts_per_tok,
        inner=geometry.moe_intermediate_size,
        group=quantisation.group_size if quantisation is not None else 8,
        heads=geometry.num_attention_heads,
        query_rank=geometry.q_lora_rank,
        latent_rank=geometry.kv_lora_rank,
        nope=geometry.qk_nope_head_dim,
        rope=geometry.qk_rope_head_dim,
        value=geometry.v_head_dim,
        vocab=geometry.vocab_size,
    )


def _constants(geometry: Geometry, columns: Any) -> Any:
    return columns.Constants(
        eps=np.float32(geometry.rms_norm_eps),
        latent_eps=np.float32(geometry.latent_norm_eps),
        softmax_scale=np.float32(geometry.softmax_scale),
        routed_factor=np.float32(geometry.routed_scaling_factor),
        normalise=geometry.norm_topk_prob,
    )
