"""How far one layer's attention may be from the oracle, from normalised hidden states to the output projection.

Running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, §3.3): each op's own bound, and the errors of
what it is given carried through it. Latents may be expanded to keys and values or the query absorbed, so a score is bounded as
the triple sum over |q| |W| |c| that both forms are sums of, in whatever order; likewise the output.
"""

from collections.abc import Callable

import numpy as np

from k2core.model.config import Geometry
from k2core.oracle.arrays import AnyFloat, Float64, exact
from k2core.oracle.bounds import EXPONENTIAL, FLUSHED, UNIT, gamma, linear_bound, rms_norm_error, rope_yarn_bound
from k2core.oracle.linear import linear
from k2core.oracle.rms_norm import rms_norm
from k2core.oracle.rope_yarn import rope_yarn
from k2core.oracle.rounding import BFLOAT16_UNIT, EXACT, Rounding, rounding_error

MOST = 700.0  # of an exponent: float64 ends behind it

Both = tuple[Float64, Float64]  # a value and its error


def attention_bound(
    geometry: Geometry,
    weight: Callable[[str], AnyFloat],
    x: AnyFloat,
    x_error: AnyFloat | float = 0.0,
    rounding: Rounding = EXACT,
) -> Float64:
    """Of `k2core.oracle.forward.attention` over a whole sequence.

    Args:
        geometry: sizes and constants.
        weight: gives ``q_a_proj`` and the like.
        x: (tokens, hidden), normalised.
        x_error: of x.
        rounding: in force.

    Returns:
        (tokens, hidden).
    """
    g, tokens = geometry, len(x)
    heads, nope, rank, value = g.num_attention_heads, g.qk_nope_head_dim, g.kv_lora_rank, g.v_head_dim
    error = np.broadcast_to(np.asarray(x_error, np.float64), np.shape(x))
    unit = BFLOAT16_UNIT if rounding.attention == "bfloat16" else 0.0

    def product(given: Both, name: str) -> Both:
        given_error = rounding_error(given[0], rounding.dense, given[1])
        return linear(given[0], weight(name)), linear_bound(given[0], weight(name), given_error)

    def normed(given: Both, name: str) -> Both:
        gain = weight(name)
        return rms_norm(given[0], gain, g.latent_norm_eps), rms_norm_error(given[0], gain, g.latent_norm_eps, given[1])

    def turned(given: Both) -> Both:
        turn = (np.arange(tokens), g.inv_freq, g.rope_multiplier)
        return rope_yarn(given[0], *turn), rope_yarn_bound(given[0], g.rope_multiplier, given[1])

    query_both = product(normed(product((exact(x), error), "q_a_proj"), "q_a_layernorm"), "q_b_proj")
    query, query_error = (one.reshape(tokens, heads, g.qk_head_dim) for one in query_both)
    turned_query, turned_query_error = turned((query[..., nope:], query_error[..., nope:]))
    query, query_error = query[..., :nope], query_error[..., :nope]
    latent, latent_error = product((exact(x), error), "kv_a_proj_with_mqa")
    key, key_error = turned((latent[:, rank:], latent_error[:, rank:]))
    latent, latent_error = normed((latent[:, :rank], latent_error[:, :rank]), "kv_a_layernorm")
    latent_error = rounding_error(latent, rounding.attention, latent_error)
    key_error = rounding_error(key, rounding.attention, key_error)

    expand = exact(weight("kv_b_proj")).reshape(heads, nope + value, rank)
    to_key, to_value = np.abs(expand[:, :nope]), np.abs(expand[:, nope:])
    absorbed = np.einsum("thd,hdr->thr", np.abs(query) + query_error, to_key)
    magnitude = np.einsum("thr,jr->thj", absorbed, np.abs(latent) + latent_error)
    magnitude += np.einsum("thd,jd->thj", np.abs(turned_query) + turned_query_error, np.abs(key) + key_error)
    carried = np.einsum("thr,jr->thj", np.einsum("thd,hdr->thr", query_error, to_key), np.abs(latent) + latent_error)
    carried += np.einsum("thr,jr->thj", absorbed, latent_error)
    carried += np.einsum("thd,jd->thj", turned_query_error, np.abs(key) + key_error)
    carried += np.einsum("thd,jd->thj", np.abs(turned_query), key_error)
    own = gamma(nope + rank + g.qk_rope_head_dim + 6) + 3 * unit  # query, absorbed query or key, and turned query are rounded
    score_error = g.softmax_scale * (magnitude * own + carried)

    scores = np.einsum("thd,hdr,jr->thj", query, expand[:, :nope], latent, optimize=True)
    scores = (scores + np.einsum("thd,jd->thj", turned_query, key)) * g.softmax_scale
    seen = np.arange(tokens) <= np.arange(tokens)[:, None, None]
    top = np.where(seen, scores, -np.inf).max(-1, keepdims=True)
    spread = np.where(seen, np.minimum(top - scores, 90.0), 0).max(-1, keepdims=True) * UNIT
    worst = np.where(seen, score_error, 0).max(-1, keepdims=True)
    loss = 2 * gamma(EXPONENTIAL) + gamma(2 * tokens + 3) + unit
    share_error = np.expm1(np.minimum(2 * (worst + spread), MOST)) + loss
    shares = np.where(seen, np.exp(np.where(seen, scores, top) - top), 0)
    shares /= shares.sum(-1, keepdims=True)
    # a share lies between 0 and 1, whatever its score is
    share_error = np.minimum(shares * share_error, 1 + loss) + np.where(seen, FLUSHED, 0)

    weighed = np.einsum("thj,jr->thr", shares + share_error, np.abs(latent) + latent_error)
    weighed_error = np.einsum("thj,jr->thr", share_error, np.abs(latent) + latent_error)
    weighed_error += np.einsum("thj,jr->thr", shares, latent_error) + weighed * (gamma(tokens + rank + 4) + 2 * unit)
    attended_error = np.einsum("thr,hdr->thd", weighed_error, to_value).reshape(tokens, -1)
    attended = np.einsum("thr,hdr->thd", np.einsum("thj,jr->thr", shares, latent), expand[:, nope:]).reshape(tokens, -1)
    attended_error = rounding_error(attended, rounding.dense, attended_error)
    return linear_bound(attended, weight("o_proj"), attended_error)
