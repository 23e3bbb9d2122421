"""A checkpoint's tensors as arrays in the kernels' layouts, and the table of their addresses."""

from typing import Any

import ml_dtypes
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.errors import CheckpointError
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.int4 import PackedMatrix
from k2core.model.layout import PROJECTIONS
from k2core_numba.packing import LINE, aligned_zeros, round_up, tile_int4, tile_plain, tile_scales
from k2core_numba.runtime import kernels


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


def read_weights(checkpoint: Checkpoint) -> Weights:
    """Read and lay out all weights.

    Raises:
        CheckpointError: a tensor is missing, has another shape, is not finite, or cannot be kept exactly; names it.
    """
    return _Reader(checkpoint).read()


class _Reader:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.geometry, self.columns = checkpoint, checkpoint.geometry, kernels("layers")
        geometry = self.geometry
        if geometry.moe_layers and not checkpoint.experts_are_packed:
            raise CheckpointError(
                f"cannot load {checkpoint.folder}: its experts are not INT4. The numba backend needs pack-quantized experts."
            )
        self.addresses = np.zeros((geometry.num_hidden_layers + 1, self.columns.COLUMNS), np.int64)
        self.arrays: list[NDArray[Any]] = []

    def read(self) -> Weights:
        geometry, columns = self.geometry, self.columns
        outer = geometry.num_hidden_layers
        table = self.bits("model.embed_tokens.weight", (geometry.vocab_size, geometry.hidden_size))
        padded = np.zeros((geometry.vocab_size, round_up(geometry.hidden_size)), np.uint16)
        padded[:, : geometry.hidden_size] = table
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
            sizes=_sizes(geometry, columns),
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

    def mlp(self, layer: int, prefix: str, inner: int) -> None:
        hidden, columns = self.geometry.hidden_size, self.columns
        self.matrix(layer, columns.GATE, f"{prefix}.gate_proj.weight", (inner, hidden))
        self.matrix(layer, columns.UP, f"{prefix}.up_proj.weight", (inner, hidden))
        self.matrix(layer, columns.DOWN, f"{prefix}.down_proj.weight", (hidden, inner))

    def experts(self, layer: int, prefix: str) -> None:
        geometry, columns = self.geometry, self.columns
        hidden, inner, count = geometry.hidden_size, geometry.moe_intermediate_size, geometry.n_routed_experts
        self.matrix(layer, columns.ROUTER, f"{prefix}.gate.weight", (count, hidden))
        self.vector(layer, columns.ROUTER_BIAS, f"{prefix}.gate.e_score_correction_bias", count)
        self.mlp(layer, f"{prefix}.shared_experts", geometry.shared_intermediate_size)
        places = (
            (columns.EXPERT_GATE, columns.EXPERT_GATE_SCALE, (inner, hidden)),
            (columns.EXPERT_UP, columns.EXPERT_UP_SCALE, (inner, hidden)),
            (columns.EXPERT_DOWN, columns.EXPERT_DOWN_SCALE, (hidden, inner)),
        )
        for projection, (words_column, scale_column, shape) in zip(PROJECTIONS, places, strict=True):
            words: NDArray[np.uint32] | None = None
            for expert in range(count):
                matrix = self.checkpoint.expert(layer, expert, projection)
                name = f"{prefix}.experts.{expert}.{projection}"
                assert isinstance(matrix, PackedMatrix)  # the checkpoint says that all are packed
                if matrix.shape != shape:
                    raise CheckpointError(f"cannot load {name}: its shape is {matrix.shape}, config.json says {shape}")
                tiles = tile_int4(matrix.packed)
                scale = tile_scales(_bfloat16_bits(matrix.scale, f"{name}.weight_scale"))
                if words is None:  # one array for all experts; experts are never held twice
                    words, scales = aligned_zeros((count, tiles.size), np.uint32), aligned_zeros((count, scale.size), np.uint16)
                words[expert], scales[expert] = tiles, scale
            assert words is not None  # a geometry has at least one expert
            self.keep(layer, words_column, words)
            self.keep(layer, scale_column, scales)

    def keep(self, row: int, column: int, array: NDArray[Any]) -> None:
        if array.ctypes.data % LINE:
            aligned = aligned_zeros(array.shape, array.dtype)
            aligned[:] = array
            array = aligned
        self.addresses[row, column] = array.ctypes.data
        self.arrays.append(array)

    def bits(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        return _bfloat16_bits(self.tensor(name, shape), name)

    def matrix(self, row: int, column: int, name: str, shape: tuple[int, int]) -> None:
        self.keep(row, column, tile_plain(self.bits(name, shape)))

    def vector(self, row: int, column: int, name: str, size: int) -> None:
        values = np.ascontiguousarray(self.tensor(name, (size,)).astype(np.float32))
        if not np.isfinite(values).all():
            raise _not_finite(name)
        self.keep(row, column, values)

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        tensor = self.checkpoint.tensor(name)
        if tensor.shape != shape:
            raise CheckpointError(f"cannot load {name}: its shape is {tensor.shape}, config.json says {shape}")
        return tensor


def _not_finite(name: str) -> CheckpointError:
    return CheckpointError(f"cannot load {name}: it holds NaN or infinity. The file is damaged; fetch or export it again.")


def _bfloat16_bits(tensor: NDArray[Any], name: str) -> NDArray[np.uint16]:
    if tensor.dtype == ml_dtypes.bfloat16:
        bits: NDArray[np.uint16] = np.ascontiguousarray(tensor).view(np.uint16)
    else:
        rounded = tensor.astype(ml_dtypes.bfloat16)
        if not np.array_equal(rounded.astype(np.float64), tensor.astype(np.float64), equal_nan=True):
            raise CheckpointError(f"cannot load {name}: it is {tensor.dtype} with values that bfloat16 cannot hold exactly")
        bits = rounded.view(np.uint16)
    if ((bits & 0x7F80) == 0x7F80).any():  # all exponent bits set
        raise _not_finite(name)
    return bits


def _sizes(geometry: Geometry, columns: Any) -> Any:
    quantisation = geometry.quantisation
    return columns.Sizes(
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
