"""Numba kernels, one op per file; `forward` puts them together."""
