"""Numba kernels, one op per file; `layers` puts them together, `forward` runs them on the threads of a `crew`."""
