"""Kernels by technology: one op has one name and one file in each of them. Imports nothing of k2core."""
