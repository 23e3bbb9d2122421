"""How often prepared experts lay ready, as a report says it."""

from collections.abc import Mapping


def told_hits(info: Mapping[str, str]) -> str:
    """A line of what a model tells of its experts; empty where they are not prepared one by one."""
    hits, misses = (int(info.get(key, 0)) for key in ("expert_hits", "expert_misses"))
    if not hits + misses:
        return ""
    return f"{100 * hits / (hits + misses):.1f} % of {hits + misses:,} lay ready, {misses:,} were prepared"
