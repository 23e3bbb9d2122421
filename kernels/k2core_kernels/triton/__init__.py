"""Triton kernels, one op per file; host functions take torch tensors. Importing one needs torch and triton."""
