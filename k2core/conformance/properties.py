"""What must hold of an op: each property runs a case in its way and judges what came out by the same bounds.

Where a model declares itself batch-invariant, what is run in another way must have the same bits as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from k2core.conformance.cases import Case
from k2core.conformance.judged import Judged
from k2core.conformance.probes.all import PROBES
from k2core.conformance.probes.attention import HIDDEN, MlaAttention, judged
from k2core.conformance.probes.base import Groups, Outputs, Probe
from k2core.conformance.probes.experts import MoeExperts, MoeForward, MoeRoute
from k2core.conformance.probes.int4 import Int4Dequant
from k2core.conformance.probes.norm import LmHead, RmsNorm
from k2core.interfaces import LoadedModel, Routing, SequenceInput
from k2core.model.config import Geometry
from k2core.oracle.rounding import Rounding

Property = Callable[[Probe, Case, LoadedModel, Rounding], Iterator[Judged]]


def within_bound(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """Every number is as near the oracle's as its bound says."""
    yield from probe.judge(case, _geometry(probe, case), probe.run(model, case, _whole(case)), rounding)


def tokens_are_independent(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """Token by token gives what all at once give."""
    yield from _in_groups(probe, case, model, rounding, [[token] for token in _tokens(case)])


def batch_split_is_irrelevant(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """Any cut of the tokens gives what all at once give."""
    tokens, draw = list(_tokens(case)), np.random.default_rng([case.seed, 1])
    cuts = sorted({0, len(tokens), *draw.integers(0, len(tokens) + 1, 3).tolist()})
    groups = [tokens[start:end] for start, end in pairwise(cuts)]
    yield from _in_groups(probe, case, model, rounding, groups)


def expert_order_is_irrelevant(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """Slots of a routing in another order give the same sum."""
    order = np.random.default_rng([case.seed, 2]).permutation(case["top_k"])
    changed = {name: np.ascontiguousarray(case[name][:, order]) for name in ("expert_ids", "weights")}
    yield from within_bound(probe, _with(case, changed), model, rounding)


def zero_weight_expert_is_free(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """An expert of weight zero adds nothing, whichever it is."""
    weights = case["weights"].copy()
    weights[:, np.random.default_rng([case.seed, 3]).integers(case["top_k"])] = 0
    yield from within_bound(probe, _with(case, {"weights": weights}), model, rounding)


def inputs_are_unchanged(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """What is handed to the seam of the experts is handed back as it was."""
    watched = _Watched(model)
    probe.run(cast(LoadedModel, watched), case, _whole(case))
    yield from watched.seen


def forward_does_the_same(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """A forward, whatever it fuses, does what the seam does."""
    assert isinstance(probe, MoeForward)
    yield from probe.judge_forward(case, _geometry(probe, case), probe.run_forward(model, case, _whole(case)), rounding)


def prefill_is_token_by_token(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """A prompt at once leaves what its tokens one by one leave."""
    yield from _in_groups(probe, case, model, rounding, [[token] for token in _tokens(case)])


def fork_leaves_the_parent(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """A fork goes its own way and its parent goes on as if there were none, in whatever order they run."""
    assert isinstance(probe, MlaAttention)
    ids, cut = _cut(probe, case)
    parent = model.new_sequence()
    before = _extend(model, parent, ids[:cut])
    child = model.fork(parent, cut)
    other = list(reversed(ids[cut:])) + ids[:1]
    first, second = (_extend(model, child, other), None) if case.seed % 2 else (None, _extend(model, parent, ids[cut:]))
    first = _extend(model, child, other) if first is None else first
    second = _extend(model, parent, ids[cut:]) if second is None else second
    for handle in (parent, child):
        model.free(handle)
    layer = probe.layer(case)
    for sequence, pieces in ((ids[:cut] + other, (before, first)), (ids, (before, second))):
        yield judged(layer.geometry, layer.tensors, sequence, np.concatenate(pieces), rounding)


def truncate_is_never_seen(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding) -> Iterator[Judged]:
    """Tokens that were cut off leave no trace."""
    assert isinstance(probe, MlaAttention)
    ids, cut = _cut(probe, case)
    handle = model.new_sequence()
    before = _extend(model, handle, ids[:cut])
    _extend(model, handle, list(reversed(ids)))
    model.truncate(handle, cut)
    after = _extend(model, handle, ids[cut:])
    model.free(handle)
    got = np.concatenate([before, after])
    layer = probe.layer(case)
    yield judged(layer.geometry, layer.tensors, ids, got, rounding)
    if model.batch_invariant:
        fresh = model.new_sequence()
        yield same_bits("hidden", got, _extend(model, fresh, ids))
        model.free(fresh)


TOKENWISE = (RmsNorm, LmHead, MoeRoute, MoeExperts, MoeForward)
FITS: Mapping[Property, tuple[type[Probe], ...]] = {
    within_bound: tuple(map(type, PROBES.values())),
    tokens_are_independent: TOKENWISE,
    batch_split_is_irrelevant: (*TOKENWISE, MlaAttention),
    expert_order_is_irrelevant: (MoeExperts,),
    zero_weight_expert_is_free: (MoeExperts,),
    inputs_are_unchanged: (Int4Dequant, MoeRoute, MoeExperts, MoeForward),
    forward_does_the_same: (MoeForward,),
    prefill_is_token_by_token: (MlaAttention,),
    fork_leaves_the_parent: (MlaAttention,),
    truncate_is_never_seen: (MlaAttention,),
}  # the probes that a property says something of: another would break it, or hold whatever happens
PROPERTIES: Mapping[str, Property] = {one.__name__: one for one in FITS}


def properties_of(probe: Probe) -> tuple[str, ...]:
    """The properties that a contract of the probe's op may name."""
    return tuple(one.__name__ for one, probes in FITS.items() if type(probe) in probes)


def same_bits(output: str, got: NDArray[Any], expected: NDArray[Any]) -> Judged:
    """Nothing but equality is allowed."""
    values = np.asarray(expected, np.float64)
    return Judged(output=output, got=np.asarray(got, np.float64), expected=values, allowed=np.zeros(values.shape))


def _in_groups(probe: Probe, case: Case, model: LoadedModel, rounding: Rounding, groups: Groups) -> Iterator[Judged]:
    outputs = probe.run(model, case, groups)
    yield from probe.judge(case, _geometry(probe, case), outputs, rounding)
    if model.batch_invariant:
        whole: Outputs = probe.run(model, case, _whole(case))
        for name in whole:
            yield same_bits(name, outputs[name], whole[name])


def _geometry(probe: Probe, case: Case) -> Geometry:
    return probe.layer(case).geometry


def _tokens(case: Case) -> range:
    return range(case.axes.get("tokens", 0))


def _whole(case: Case) -> Groups:
    return [_tokens(case)]


def _with(case: Case, changed: Mapping[str, Any]) -> Case:
    return evolve(case, inputs={**case.inputs, **changed})


def _cut(probe: MlaAttention, case: Case) -> tuple[list[int], int]:
    """The sequence, and a place in it that leaves at least one token on each side where there are two."""
    ids = probe.ids(case)
    ids = ids if len(ids) > 1 else ids * 2
    return ids, int(np.random.default_rng([case.seed, 4]).integers(1, len(ids)))


def _extend(model: LoadedModel, handle: int, ids: Sequence[int]) -> NDArray[Any]:
    return np.asarray(model.forward([SequenceInput(handle=handle, token_ids=list(ids))], HIDDEN).hidden)


class _Watched:
    """A model whose seam of the experts is watched.

    Attributes:
        seen: every array that was handed in, as it was after beside as it was before.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self.moe = self
        self.seen: list[Judged] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def route(self, layer: int, x: Any) -> Any:
        return self._watch(lambda: self._model.moe.route(layer, x), x=x)

    def experts(self, layer: int, x: Any, routing: Routing) -> Any:
        given = {"x": x, "expert_ids": routing.expert_ids, "weights": routing.weights}
        return self._watch(lambda: self._model.moe.experts(layer, x, routing), **given)

    def forward(self, layer: int, x: Any) -> Any:
        return self._watch(lambda: self._model.moe.forward(layer, x), x=x)

    def _watch(self, call: Callable[[], Any], **arrays: Any) -> Any:
        before = {name: np.array(array) for name, array in arrays.items()}
        result = call()
        self.seen += [same_bits(name, np.asarray(array), before[name]) for name, array in arrays.items()]
        return result
