"""The equations in float64 NumPy, one op per file, written to be read: what every backend is held to.

`forward` walks a whole checkpoint; `bounds` says how far float32 may be from these, derived and not guessed.
"""
