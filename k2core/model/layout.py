"""The tensors of a K2 checkpoint: name, dtype and shape of each, in the order of the forward.

Shapes are (out, in), as ``nn.Linear`` keeps them. Source: transformers modeling_deepseek_v3.py @00b676f; compressed-tensors
pack_quantized.py @52792be for the packed experts.
"""

from collections.abc import Iterator
from typing import Literal

from attrs import frozen

from k2core.model.config import Geometry

Projection = Literal["gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
PLAIN = ("BF16", "F32")  # what an unquantised tensor may be; released weights are BF16


@frozen(kw_only=True)
class Expected:
    """One tensor that a checkpoint must have."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


def expert_name(layer: int, expert: int, projection: Projection) -> str:
    """Module name of one routed expert's matrix."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{projection}"


def expert_shape(geometry: Geometry, projection: Projection) -> tuple[int, int]:
    """(out, in) of a routed expert's matrix."""
    inner, hidden = geometry.moe_intermediate_size, geometry.hidden_size
    return (hidden, inner) if projection == "down_proj" else (inner, hidden)


def plain_tensors(geometry: Geometry) -> Iterator[Expected]:
    """Every tensor except the routed experts' matrices."""
    g, hidden = geometry, geometry.hidden_size
    yield Expected(name="model.embed_tokens.weight", dtypes=PLAIN, shape=(g.vocab_size, hidden))
    for layer in range(g.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        attention: dict[str, tuple[int, ...]] = {
            "q_a_proj": (g.q_lora_rank, hidden),
            "q_a_layernorm": (g.q_lora_rank,),
            "q_b_proj": (g.num_attention_heads * g.qk_head_dim, g.q_lora_rank),
            "kv_a_proj_with_mqa": (g.cache_values_per_layer, hidden),
            "kv_a_layernorm": (g.kv_lora_rank,),
            "kv_b_proj": (g.num_attention_heads * (g.qk_nope_head_dim + g.v_head_dim), g.kv_lora_rank),
            "o_proj": (hidden, g.num_attention_heads * g.v_head_dim),
        }
        yield Expected(name=f"{prefix}.input_layernorm.weight", dtypes=PLAIN, shape=(hidden,))
        for name, shape in attention.items():
            yield Expected(name=f"{prefix}.self_attn.{name}.weight", dtypes=PLAIN, shape=shape)
        yield Expected(name=f"{prefix}.post_attention_layernorm.weight", dtypes=PLAIN, shape=(hidden,))
        if layer in g.moe_layers:
            yield Expected(name=f"{prefix}.mlp.gate.weight", dtypes=PLAIN, shape=(g.n_routed_experts, hidden))
            bias = f"{prefix}.mlp.gate.e_score_correction_bias"
            yield Expected(name=bias, dtypes=("F32", "BF16"), shape=(g.n_routed_experts,))
            yield from _feed_forward(f"{prefix}.mlp.shared_experts", g.shared_intermediate_size, hidden)
        else:
            yield from _feed_forward(f"{prefix}.mlp", g.intermediate_size, hidden)
    yield Expected(name="model.norm.weight", dtypes=PLAIN, shape=(hidden,))
    yield Expected(name="lm_head.weight", dtypes=PLAIN, shape=(g.vocab_size, hidden))


def packed_tensors(name: str, shape: tuple[int, int], group: int) -> tuple[Expected, Expected, Expected]:
    """The three tensors of one packed matrix."""
    rows, cols = shape
    return (
        Expected(name=f"{name}.weight_packed", dtypes=("I32",), shape=(rows, cols // 8)),
        Expected(name=f"{name}.weight_scale", dtypes=("BF16",), shape=(rows, cols // group)),
        Expected(name=f"{name}.weight_shape", dtypes=("I32", "I64"), shape=(2,)),
    )


def expert_tensors(geometry: Geometry, layer: int, expert: int) -> Iterator[Expected]:
    """The tensors of one routed expert, packed where the geometry says so."""
    for projection in PROJECTIONS:
        name, shape = expert_name(layer, expert, projection), expert_shape(geometry, projection)
        if is_packed(geometry, name):
            assert geometry.quantisation is not None
            yield from packed_tensors(name, shape, geometry.quantisation.group_size)
        else:
            yield Expected(name=f"{name}.weight", dtypes=PLAIN, shape=shape)


def is_packed(geometry: Geometry, module: str) -> bool:
    """Whether a routed expert's matrix is stored as INT4."""
    return geometry.quantisation is not None and geometry.quantisation.covers(module)


def _feed_forward(prefix: str, inner: int, hidden: int) -> Iterator[Expected]:
    for projection in PROJECTIONS:
        shape = (hidden, inner) if projection == "down_proj" else (inner, hidden)
        yield Expected(name=f"{prefix}.{projection}.weight", dtypes=PLAIN, shape=shape)
