"""What a checkpoint would take in memory, from its geometry alone."""

import math

from attrs import frozen

from k2core.model.config import Geometry
from k2core.model.layout import PROJECTIONS, expert_name, expert_shape, is_packed, packed_tensors, plain_tensors

ITEM = {"BF16": 2, "F32": 4, "I32": 4, "I64": 8}


@frozen(kw_only=True)
class Footprint:
    """Bytes of the tensors of a checkpoint as the family stores them.

    Attributes:
        plain: of everything but the routed experts, bfloat16.
        experts: of all routed experts.
        expert: of one.
        cache_values: numbers that a position of a sequence takes in the cache, over all layers.
        packed: whether the routed experts are INT4.
    """

    plain: int
    experts: int
    expert: int
    cache_values: int
    packed: bool = True

    @property
    def tensors(self) -> int:
        """All tensors."""
        return self.plain + self.experts

    def cache(self, context: int, item: int) -> int:
        """The cache of one sequence of *context* tokens, *item* bytes per number."""
        return context * self.cache_values * item


def footprint(geometry: Geometry) -> Footprint:
    """Sizes that follow from a geometry; experts are INT4 where it says so."""
    plain = sum(2 * math.prod(one.shape) for one in plain_tensors(geometry))
    expert, layers = 0, len(geometry.moe_layers)
    for projection in PROJECTIONS if layers else ():
        name, shape = expert_name(geometry.moe_layers.start, 0, projection), expert_shape(geometry, projection)
        if geometry.quantisation is not None and is_packed(geometry, name):
            words, scales, _ = packed_tensors(name, shape, geometry.quantisation.group_size)
            expert += 4 * math.prod(words.shape) + 2 * math.prod(scales.shape)
        else:
            expert += 2 * math.prod(shape)
    packed = not layers or (
        geometry.quantisation is not None and is_packed(geometry, expert_name(geometry.moe_layers.start, 0, PROJECTIONS[0]))
    )
    return Footprint(
        packed=packed,
        plain=plain,
        expert=expert,
        experts=expert * geometry.n_routed_experts * layers,
        cache_values=geometry.cache_values_per_token,
    )
