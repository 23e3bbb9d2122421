"""What every probe does: write a checkpoint of one layer, run it, judge what came out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import ml_dtypes
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from k2core.conformance.cases import Case
from k2core.conformance.judged import Judged
from k2core.errors import ShapeError
from k2core.interfaces import LoadedModel, SequenceInput, Step, Want
from k2core.model.config import Geometry
from k2core.model.int4 import PackedMatrix
from k2core.oracle.rounding import Rounding
from k2core.testing.checkpoints import tiny_config, tiny_tensors

Outputs = Mapping[str, NDArray[Any]]
Groups = Sequence[Sequence[int]]  # of token indices, each run on its own
LAYER = 0
SMALL_ATTENTION = {
    "num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip


@frozen(kw_only=True)
class Layer:
    """A checkpoint of one layer.

    Attributes:
        config: its config.json.
        tensors: by name.
    """

    config: dict[str, Any]
    tensors: dict[str, NDArray[Any]]

    @property
    def geometry(self) -> Geometry:
        """From the config."""
        return Geometry.from_config(self.config)


class Probe(Protocol):
    """How one op is observed on any backend.

    Attributes:
        op: its name.
        oracle, bound: the equation and its error bound that it judges by, as contracts name them; no bound where what is
            judged is exact.
    """

    op: ClassVar[str]
    oracle: ClassVar[str]
    bound: ClassVar[str | None]

    def layer(self, case: Case) -> Layer:
        """The checkpoint that leaves nothing but the op."""
        ...

    def run(self, model: LoadedModel, case: Case, groups: Groups) -> Outputs:
        """What the model gives for the case's tokens, in their order, each group on its own."""
        ...

    def judge(self, case: Case, geometry: Geometry, outputs: Outputs, rounding: Rounding) -> Iterator[Judged]:
        """Every output beside the oracle's."""
        ...


def named(function: Callable[..., Any]) -> str:
    """A function as contracts name it, ``module:function``."""
    return f"{function.__module__}:{function.__qualname__}"


def one_layer(*, experts: bool, **overrides: Any) -> Layer:
    """A layer that adds nothing: the projections that end its halves are zero."""
    sizes = {**SMALL_ATTENTION, "num_hidden_layers": 1, "first_k_dense_replace": 0 if experts else 1, "n_routed_experts": 1}
    config = tiny_config(**{**sizes, "num_experts_per_tok": 1, "intermediate_size": 32, **overrides})
    tensors = tiny_tensors(Geometry.from_config(config), seed=0)
    layer = Layer(config=config, tensors=tensors)
    for name in ("self_attn.o_proj", "mlp.shared_experts.down_proj" if experts else "mlp.down_proj"):
        tensors[f"model.layers.{LAYER}.{name}.weight"][:] = 0
    return layer


def set_plain(layer: Layer, name: str, values: Any) -> None:
    """Replace a tensor, e.g. ``model.norm.weight``.

    Args:
        layer: of which.
        name: full.
        values: of the tensor's shape; kept as bfloat16, or as the float32 it was.

    Raises:
        ShapeError: they are of another.
    """
    old = layer.tensors[name]
    _check_shape(name, np.shape(values), old.shape)
    layer.tensors[name] = np.ascontiguousarray(np.asarray(values).astype(old.dtype))


def set_expert(layer: Layer, expert: int, projection: str, matrix: PackedMatrix) -> None:
    """Replace one matrix of a routed expert.

    Raises:
        ShapeError: it is of another shape.
    """
    name = f"model.layers.{LAYER}.mlp.experts.{expert}.{projection}"
    _check_shape(name, matrix.packed.shape, layer.tensors[f"{name}.weight_packed"].shape)
    layer.tensors[f"{name}.weight_packed"] = matrix.packed
    layer.tensors[f"{name}.weight_scale"] = np.asarray(matrix.scale).astype(ml_dtypes.bfloat16)


def set_matrices(layer: Layer, case: Case, name: str) -> None:
    """Replace one projection of all routed experts by an input of the same name, e.g. ``gate``.

    Raises:
        ShapeError: there are more matrices or fewer, they are of another shape, or not packed.
    """
    experts, matrices = case["experts"], case[name]
    if len(matrices) != experts:
        raise ShapeError(f"{name}: got {len(matrices)} matrices, expected one for each of {experts} experts")
    if not all(isinstance(matrix, PackedMatrix) for matrix in matrices):
        raise ShapeError(f"{name}: got plain matrices, expected packed ones")
    for expert, matrix in enumerate(matrices):
        set_expert(layer, expert, f"{name}_proj", matrix)


def given(case: Case, name: str, *axes: str) -> NDArray[Any]:
    """An input that goes to the seam and not into a tensor, so that nothing else looks at its shape.

    Raises:
        ShapeError: it is not of these axes.
    """
    sizes = tuple(case[axis] for axis in axes)
    values: NDArray[Any] = np.asarray(case[name])
    _check_shape(name, values.shape, sizes)
    return values


def forward_groups(model: LoadedModel, groups: Groups, want: Want) -> list[Step]:
    """Each group as a sequence of its own, the tokens' ids being their indices."""
    steps = []
    for group in groups:
        handle = model.new_sequence()
        try:
            steps.append(model.forward([SequenceInput(handle=handle, token_ids=list(group))], want))
        finally:
            model.free(handle)
    return steps


def yarn(case: Case) -> dict[str, Any]:
    """Overrides of the config for the position parameters of a case."""
    return {
        "rope_theta": case["theta"],
        "rope_scaling": {
            "type": "yarn",
            "factor": case["factor"],
            "original_max_position_embeddings": case["original"],
            "beta_fast": case["beta_fast"],
            "beta_slow": 1.0,
            "mscale": case["mscale"],
            "mscale_all_dim": case["mscale_all_dim"],
        },
    }


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ShapeError(f"{name}: got an array {found}, expected {expected}")
