"""The ways of the torch backend that can run here, each with a device.

Triton reads TRITON_INTERPRET when it is imported, so its kernels run on a CPU in processes of their own: see test_kernels.py.
"""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CUDA = [("fast", "cuda"), ("kernels", "cuda"), ("graphs", "cuda")] if torch.cuda.is_available() and not INTERPRETED else []
KERNELS = [("kernels", "cpu")] if INTERPRETED else ON_CUDA[1:]
WAYS = KERNELS if INTERPRETED else [("fast", "cpu"), ("eager", "cpu"), *ON_CUDA]
