"""Token embedding: rows of a table."""

from k2core.oracle.arrays import AnyFloat, Float64, Int64, exact


def embedding(token_ids: Int64, table: AnyFloat) -> Float64:
    """(tokens, hidden): the row of *table* (vocab, hidden) for each id.

    Source: transformers modeling_deepseek_v3.py @00b676f, ``embed_tokens``; no factor is applied.
    """
    return exact(table[token_ids])
