"""The CPU backend: every op a Numba kernel, experts packed in INT4, the same bits for a token in whatever batch it runs.

backend    probe and load                      model      the loaded model: sequences, forward
weights    checkpoint -> arrays and addresses  pages      the latent cache, shared between forks
packing    layouts of matrices                 job        what a compiled forward reads
runtime    compiling, its cache, the one lock  workspace  what it writes into
moe, seam  the seam of the experts             crew       threads that help
experts    lent or their own: expert_layout,   layered    a forward with experts elsewhere
           expert_cache
"""

from collections.abc import Callable

from k2core import hookimpl
from k2core.hookspecs import Register


@hookimpl
def register_backends(register: Register) -> None:
    """Register ``numba`` without importing Numba."""
    register("k2core_numba.backend:NumbaBackend", name="numba", summary="CPU, INT4 experts, bit for bit repeatable")


def warmup(progress: Callable[[str, int, int], None] | None = None) -> None:
    """Compile all kernels into the cache, so that the first load need not.

    Args:
        progress: called with (what, done, total) per compiled kernel; not at all when everything is in the cache.

    Raises:
        Unavailable: Numba is missing or cannot work here.
    """
    from k2core_numba.backend import NumbaBackend
    from k2core_numba.runtime import compile_kernels

    NumbaBackend().require()
    compile_kernels(progress)
