"""Every probe by the name of its op."""

from k2core.conformance.probes.attention import MlaAttention, RopeYarn
from k2core.conformance.probes.base import Probe
from k2core.conformance.probes.experts import MoeExperts, MoeForward, MoeRoute
from k2core.conformance.probes.int4 import Int4Dequant
from k2core.conformance.probes.norm import LmHead, RmsNorm

_ALL: tuple[Probe, ...] = (
    Int4Dequant(), RmsNorm(), RopeYarn(), MlaAttention(), MoeRoute(), MoeExperts(), MoeForward(), LmHead(),
)  # fmt: skip
PROBES: dict[str, Probe] = {probe.op: probe for probe in _ALL}
