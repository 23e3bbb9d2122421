"""The verifiers that come with k2core: arithmetic recomputed, every number and name found in what was observed."""

from k2core import hookimpl
from k2core.hookspecs import Register


@hookimpl
def register_verifiers(register: Register) -> None:
    """Register the verifiers by where they are found."""
    register("k2core_verifiers.arithmetic:ArithmeticVerifier", name="arithmetic", summary="recomputes every equation")
    register(
        "k2core_verifiers.grounding:GroundingVerifier", name="grounding", summary="finds every number and name in a result"
    )
