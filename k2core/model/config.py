"""What a K2 ``config.json`` fixes: every size and constant that a forward needs, checked once.

Field names are those of the public config of Kimi K2 (DeepSeek-V3 architecture), so that a reader can hold the two side by
side. `Geometry` also derives what no file states: the softmax scale, the rotation frequencies, the size of the cache.

Source of the formulas: transformers modeling_deepseek_v3.py @00b676f and modeling_rope_utils.py; vLLM deepseek_scaling_rope.py.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from k2core.errors import CheckpointError
from k2core.model.fields import Fields
from k2core.model.quantisation import Quantisation, read_quantisation

LatentNorm = Literal["config", "class_default"]
LARGEST_CONFIG = 16 * 2**20  # bytes; real ones have 5 kB
CLASS_DEFAULT_EPS = 1e-6


@frozen(kw_only=True)
class Yarn:
    """Constants of YaRN position scaling, static at all lengths."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float

    def magnitude(self, coefficient: float) -> float:
        """``0.1 * coefficient * ln(factor) + 1``, or 1 where nothing is stretched."""
        return 1.0 if self.factor <= 1 else 0.1 * coefficient * math.log(self.factor) + 1.0


@frozen(kw_only=True)
class Geometry:
    """Sizes and constants of one checkpoint.

    Attributes:
        latent_norm_eps: eps of q_a_layernorm and kv_a_layernorm. vLLM and SGLang give them `rms_norm_eps`, the Hugging Face
            code its class default 1e-6; see `Geometry.read`.
        rope_scaling: None for plain rotary positions.
        quantisation: None where every matrix is plain.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float
    rope_scaling: Yarn | None
    max_position_embeddings: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    latent_norm_eps: float
    quantisation: Quantisation | None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def qk_head_dim(self) -> int:
        """Length of one head's query: the part without position, then the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def shared_intermediate_size(self) -> int:
        """Inner width of the shared expert."""
        return self.n_shared_experts * self.moe_intermediate_size

    @property
    def softmax_scale(self) -> float:
        """Factor of attention scores: ``qk_head_dim ** -0.5`` times the squared YaRN magnitude, in both forms of MLA."""
        magnitude = 1.0 if self.rope_scaling is None else self.rope_scaling.magnitude(self.rope_scaling.mscale_all_dim)
        return float(self.qk_head_dim**-0.5 * magnitude**2)

    @property
    def rope_multiplier(self) -> float:
        """Factor of cos and sin: the ratio of the two YaRN magnitudes, 1 for the whole family."""
        yarn = self.rope_scaling
        return 1.0 if yarn is None else yarn.magnitude(yarn.mscale) / yarn.magnitude(yarn.mscale_all_dim)

    @property
    def inv_freq(self) -> NDArray[np.float64]:
        """(qk_rope_head_dim / 2,) float64: radians per position of the pair (2i, 2i + 1)."""
        dim, base, yarn = self.qk_rope_head_dim, self.rope_theta, self.rope_scaling
        index = np.arange(dim // 2, dtype=np.float64)
        plain = base ** (-2 * index / dim)
        if yarn is None:
            return plain

        def pair_turning(turns: float) -> float:
            original = yarn.original_max_position_embeddings
            return dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

        low = float(max(math.floor(pair_turning(yarn.beta_fast)), 0))
        high = float(min(math.ceil(pair_turning(yarn.beta_slow)), dim - 1))
        high += 0.001 if high == low else 0.0
        ramp = np.clip((index - low) / (high - low), 0, 1)
        return plain * ((1 - ramp) + ramp / yarn.factor)

    @property
    def cache_values_per_layer(self) -> int:
        """Values that one token leaves in one layer's cache: the latent and the shared rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def cache_values_per_token(self) -> int:
        """`cache_values_per_layer` over all layers."""
        return self.cache_values_per_layer * self.num_hidden_layers

    @property
    def moe_layers(self) -> range:
        """Indices of the layers with routed experts; those before are dense."""
        return range(self.first_k_dense_replace, self.num_hidden_layers)

    @classmethod
    def read(cls, path: Path, *, latent_norm: LatentNorm = "config") -> "Geometry":
        """Read a ``config.json``, or the one in a folder.

        Args:
            path: the file or its folder.
            latent_norm: eps of the two latent norms where the file has no ``latent_norm_eps``: ``config`` takes
                `rms_norm_eps` (vLLM, SGLang), ``class_default`` takes 1e-6 (the Hugging Face code).

        Raises:
            CheckpointError: the file is missing, too large, no JSON object, of another architecture, or a key is missing
                or wrong; names the file and the key.
        """
        file = path / "config.json" if path.is_dir() else path
        return cls.from_config(read_json_object(file), where=str(file), latent_norm=latent_norm)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, where: str = "config.json", latent_norm: LatentNorm = "config"
    ) -> "Geometry":
        """The geometry that a parsed config describes; the backbone may lie under ``text_config``.

        Args:
            config: the JSON object.
            where: the file's name for errors.
            latent_norm: see `read`.

        Raises:
            CheckpointError: as `read`.
        """
        fields = Fields(where=where, data=config)
        if isinstance(config.get("text_config"), Mapping):
            fields = fields.inside("text_config")
        return _geometry(fields, latent_norm)


def _geometry(fields: Fields, latent_norm: LatentNorm) -> Geometry:
    fields.one_of("model_type", ("kimi_k2", "deepseek_v3"), "only the Kimi K2 / DeepSeek-V3 architecture is supported")
    architectures = fields.get("architectures")
    if architectures is not None and architectures != ["DeepseekV3ForCausalLM"]:
        raise fields.wrong("architectures", '["DeepseekV3ForCausalLM"]')
    for key, only, why in _FIXED:
        fields.fixed(key, only, why)
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    fields.fixed("num_key_value_heads", heads, "multi-head latent attention has one key per head")
    layers, experts = fields.integer("num_hidden_layers"), fields.integer("n_routed_experts")
    inner = fields.integer("moe_intermediate_size")
    eps = fields.number("rms_norm_eps", above=0.0)
    stated_eps = None if fields.get("latent_norm_eps") is None else fields.number("latent_norm_eps", above=0.0)
    quantisation = read_quantisation(fields)
    if quantisation is not None:
        for key, size in (("hidden_size", hidden), ("moe_intermediate_size", inner)):
            if size % quantisation.group_size:
                raise fields.wrong(key, f"a multiple of the quantisation group {quantisation.group_size}")
    theta, yarn = _rope(fields)
    rope = fields.integer("qk_rope_head_dim")
    if rope % 2:
        raise fields.wrong("qk_rope_head_dim", "an even number")
    return Geometry(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=layers,
        first_k_dense_replace=fields.integer("first_k_dense_replace", least=0, most=layers),
        intermediate_size=fields.integer("intermediate_size"),
        n_routed_experts=experts,
        num_experts_per_tok=fields.integer("num_experts_per_tok", most=experts),
        n_shared_experts=fields.integer("n_shared_experts"),
        moe_intermediate_size=inner,
        num_attention_heads=heads,
        q_lora_rank=fields.integer("q_lora_rank"),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim"),
        qk_rope_head_dim=rope,
        v_head_dim=fields.integer("v_head_dim"),
        rope_theta=theta,
        rope_scaling=yarn,
        max_position_embeddings=fields.integer("max_position_embeddings"),
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        routed_scaling_factor=fields.number("routed_scaling_factor", above=0.0),
        rms_norm_eps=eps,
        latent_norm_eps=stated_eps or (eps if latent_norm == "config" else CLASS_DEFAULT_EPS),
        quantisation=quantisation,
        bos_token_id=fields.optional_id("bos_token_id"),
        eos_token_ids=fields.ids("eos_token_id"),
        pad_token_id=fields.optional_id("pad_token_id"),
    )


_FIXED: tuple[tuple[str, Any, str], ...] = (
    ("n_group", 1, "expert groups are not supported"),
    ("topk_group", 1, "expert groups are not supported"),
    ("moe_layer_freq", 1, "every layer after the dense ones must have experts"),
    ("scoring_func", "sigmoid", "the family's router"),
    ("topk_method", "noaux_tc", "the family's router"),
    ("hidden_act", "silu", "the family's activation"),
    ("attention_bias", False, "projections have no bias"),
    ("tie_word_embeddings", False, "lm_head must be a tensor of its own"),
)


def _rope(fields: Fields) -> tuple[float, Yarn | None]:
    """(theta, scaling), from ``rope_theta`` with ``rope_scaling`` or from the newer ``rope_parameters``."""
    newer = "rope_parameters" if isinstance(fields.get("rope_parameters"), Mapping) else None
    scaling = fields.inside(newer or "rope_scaling") if newer or fields.get("rope_scaling") is not None else None
    theta = (scaling if newer and scaling is not None else fields).number("rope_theta", above=1.0)
    if scaling is None:
        return theta, None
    kind = "rope_type" if scaling.get("rope_type") is not None else "type"
    if scaling.get(kind) in ("default", "none"):
        return theta, None
    scaling.one_of(kind, ("yarn",), "only YaRN scaling is supported")
    if scaling.get("attention_factor") is not None:
        raise scaling.wrong("attention_factor", "no such key (the magnitudes follow from mscale and mscale_all_dim)")
    if scaling.get("truncate") is False:
        raise scaling.wrong("truncate", "true")
    original = scaling.integer("original_max_position_embeddings")
    slow = scaling.number("beta_slow", above=0.0)
    return theta, Yarn(
        factor=scaling.number("factor", above=0.0),
        original_max_position_embeddings=original,
        beta_fast=scaling.number("beta_fast", above=0.0, least=slow),
        beta_slow=slow,
        mscale=scaling.number("mscale", least=0.0),
        mscale_all_dim=scaling.number("mscale_all_dim", least=0.0),
    )


def read_json_object(path: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        CheckpointError: missing, not a regular file, larger than *largest* bytes, not UTF-8, no JSON, or no object.
    """
    try:
        if not path.is_file():
            raise CheckpointError(
                f"cannot read {path}: there is no such file. Give a checkpoint folder in the Hugging Face layout."
            )
        if (size := path.stat().st_size) > largest:
            raise CheckpointError(f"cannot read {path}: it has {size} bytes, more than the {largest} such a file may have")
        data = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: it is not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"cannot read {path}: it holds {type(data).__name__}, expected a JSON object")
    return data
