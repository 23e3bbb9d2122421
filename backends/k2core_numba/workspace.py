"""What a forward writes into: one stretch of memory per thread, made for some number of tokens."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2core_numba.packing import round_up
from k2core_numba.runtime import kernels

LINE = 16  # float32 of a cache line


def offsets(sizes: Any, tokens: int, threads: int) -> NDArray[np.int64]:
    """Where each array of a `k2core_kernels.numba.layers.Workspace` begins, in bytes, and where the last one ends.

    Args:
        sizes: `Sizes` of the model.
        tokens: the most tokens of a piece.
        threads: that share every op of a piece.

    Returns:
        int64 (arrays + 1).
    """
    hidden, heads = round_up(sizes.hidden), sizes.heads
    inner = max(round_up(sizes.dense_inner), round_up(sizes.shared_inner), round_up(sizes.inner))
    per_token = {
        "hidden": hidden,
        "normed": hidden,
        "query_latent": round_up(sizes.query_rank),
        "query": round_up(heads * (sizes.nope + sizes.rope)),
        "latent": round_up(sizes.latent_rank + sizes.rope),
        "absorbed": heads * (round_up(sizes.latent_rank) + round_up(sizes.rope)),
        "attended": heads * round_up(sizes.latent_rank),
        "values": round_up(heads * sizes.value) + 16,
        "output": hidden,
        "gate": inner,
        "up": inner,
        "router": round_up(sizes.experts),
        "gathered": hidden,
        "down": hidden,
        "slots": sizes.top_k * hidden,
        "routed": hidden,
    }
    counts = {name: tokens * width + LINE for name, width in per_token.items()}
    attention = kernels("mla_attention")
    state = attention.TILE * attention.GROUP * attention.state_of_head(sizes.latent_rank)
    counts |= {"scores": threads * attention.SCORES, "state": threads * state, "members": tokens}
    lengths = [round_up(counts[name], LINE) for name in kernels("layers").Workspace._fields]
    return np.cumsum([0, *lengths], dtype=np.int64) * 4
