"""Numbers by their bits: codes of packed words as floats, and bfloat16.

A float32 between 2**23 and 2**24 has whole numbers in its mantissa: the bits 0x4B000000 | m are 2**23 + m. So codes become
floats without a conversion instruction, which GPUs have few units for.
"""

import triton
import triton.language as tl


@triton.jit
def code(words, NIBBLE: tl.constexpr):
    """Code *NIBBLE* (0 … 7) of each int32 word: float32 in -8 … 7.

    The four nibbles of half a word are taken where they stand, which makes nibble i too large by 16**i; the factor is a power
    of two, so taking it back and subtracting the offset is exact.
    """
    PLACE: tl.constexpr = 4 * (NIBBLE % 4)
    half = words if NIBBLE < 4 else words >> 16
    whole = ((half & (15 << PLACE)) | 0x4B000000).to(tl.float32, bitcast=True)
    return whole * (1.0 / (1 << PLACE)) - (8388608.0 / (1 << PLACE) + 8.0)


@triton.jit
def codes(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """All codes of (ROWS, WORDS) int32 words: (ROWS, 8 * WORDS) float32 in the order of columns."""
    shifted = words[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]
    whole = ((shifted & 15) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
    return tl.reshape(whole, (ROWS, 8 * WORDS))


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """Float32 *x* as *TYPE* keeps it, to nearest even.

    The interpreter's own conversion to bfloat16 drops bits. Rounded by bits before, nothing is left to drop, and a GPU gives
    the same numbers with or without.
    """
    if TYPE == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        x = tl.where(x == x, near, x)
    return x.to(TYPE)


INTERPRETED = not isinstance(rounded, triton.JITFunction)
