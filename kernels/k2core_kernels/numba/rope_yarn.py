"""Rotary positions on interleaved pairs: (a, b) at (2i, 2i + 1) becomes (a cos - b sin, a sin + b cos).

YaRN lives in the table of cosines and sines that the caller makes.
"""

from k2core_kernels.numba.options import floats, kernel, none, size
from k2core_kernels.numba.vectors import load, rotate, store


@kernel(none(floats, size, floats, floats, size, size, floats, size))
def rope_yarn(x, x_start, cosine, sine, pairs, position, y, y_start):
    """Rotate one vector of 2 * pairs values.

    Args:
        x: flat float32; the vector begins at x_start.
        cosine, sine: flat float32 (positions * pairs).
        position: row of the two tables.
        y: flat float32, may be x; the result begins at y_start.
    """
    row, whole = position * pairs, pairs // 8 * 8
    for pair in range(0, whole, 8):
        store(y, y_start + 2 * pair, rotate(load(x, x_start + 2 * pair), cosine, sine, row + pair))
    for pair in range(whole, pairs):
        a, b = x[x_start + 2 * pair], x[x_start + 2 * pair + 1]
        c, s = cosine[row + pair], sine[row + pair]
        y[y_start + 2 * pair] = a * c - b * s
        y[y_start + 2 * pair + 1] = a * s + b * c
