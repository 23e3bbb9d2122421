"""What a forward writes into: made once for some number of tokens and context, made anew when either grows."""

from typing import Any

import numpy as np

from k2core_numba.packing import round_up
from k2core_numba.runtime import kernels


def make_workspace(sizes: Any, tokens: int, context: int) -> Any:
    """A `k2core_kernels.numba.forward.Workspace`, zeroed: padding lanes must be finite.

    Args:
        sizes: `Sizes` of the model.
        tokens: the most tokens of a call.
        context: the longest sequence.
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
    arrays = {name: np.zeros(tokens * width + 16, np.float32) for name, width in per_token.items()}
    arrays["scores"] = np.zeros(kernels().SCORE_ROWS * round_up(context), np.float32)
    return kernels().Workspace(**arrays, members=np.zeros(tokens, np.int32))
