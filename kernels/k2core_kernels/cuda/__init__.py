"""CUDA C++ kernels, one op per file, compiled on first use. Importing one needs cuda-bindings, and torch for its tensors."""
