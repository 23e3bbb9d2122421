"""How much cache memory an engine may use: planned when it starts, held to when a turn begins."""

from attrs import frozen

from k2core.errors import CapacityError
from k2core.interfaces import CacheMemory

SHARE_OF_FREE = 0.8  # of what the device has left; the rest is for everything else
LEAST = 1 << 28  # bytes that a small model may use for what it might see again


@frozen(kw_only=True)
class MemoryPlan:
    """What was decided when the engine started.

    Attributes:
        context: most tokens of one sequence.
        block_tokens: positions that are given and taken back together.
        block_bytes: of the cache.
        blocks: the most that all sequences together may take.
    """

    context: int
    block_tokens: int
    block_bytes: int
    blocks: int

    @classmethod
    def of(cls, memory: CacheMemory, context: int, limit_bytes: int | None = None) -> "MemoryPlan":
        """A plan in which at least one sequence of *context* tokens fits.

        Args:
            memory: the model's, before any sequence lives.
            context: most tokens of one sequence.
            limit_bytes: of the cache; None takes what two sequences of full length need, at least 256 MiB, where that is
                free, else 80 % of what is free.

        Raises:
            CapacityError: not even one sequence fits, or more is asked for than is free; says all sizes.
        """
        block = memory.block_tokens * memory.bytes_per_token
        need = -(-context // memory.block_tokens)
        free = memory.free_bytes
        if limit_bytes is not None and free is not None and limit_bytes > free:
            raise CapacityError(
                f"cannot plan {megabytes(limit_bytes)} of cache memory: {megabytes(free)} are free. Give a smaller limit."
            )
        usable = limit_bytes
        if usable is None:
            usable = max(LEAST, 2 * need * block)
            usable = usable if free is None else min(usable, int(free * SHARE_OF_FREE))
        if need * block > usable:
            which = f"{megabytes(usable)} are free for it" if limit_bytes is None else f"the limit is {megabytes(usable)}"
            most = usable // block * memory.block_tokens
            raise CapacityError(
                f"cannot hold a context of {context} tokens: its cache takes {megabytes(need * block)} "
                f"({memory.bytes_per_token} bytes per token), but {which}. Use a context of at most {most} tokens, "
                "or allow more cache memory."
            )
        return cls(context=context, block_tokens=memory.block_tokens, block_bytes=block, blocks=usable // block)

    def need(self, tokens: int, *, held: int = 0) -> int:
        """Blocks that a sequence of *tokens* takes beyond the whole blocks of its first *held* ones."""
        return -(-tokens // self.block_tokens) - held // self.block_tokens

    def describe(self) -> dict[str, int]:
        """The plan in numbers, for a report."""
        return {
            "context_tokens": self.context,
            "cache_limit_bytes": self.blocks * self.block_bytes,
            "cache_limit_tokens": self.blocks * self.block_tokens,
            "full_sequences": self.blocks // -(-self.context // self.block_tokens),
        }


def megabytes(size: int) -> str:
    """*size* bytes in MB (10**6), one decimal below 100."""
    value = size / 1e6
    return f"{value:.1f} MB" if value < 100 else f"{value:,.0f} MB"
