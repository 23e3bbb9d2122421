"""PyTorch on CPU and CUDA; INT4 experts stay packed as they lie in the checkpoint.

backend         probe and load                      model      the loaded model: sequences, forward
tensors         checkpoint -> torch, mapped         caching    what a cache does: contiguous on the CPU, paged for kernels
products        products with weights, rounded      attention  as it is written; attention_fast, in two forms
packed, kept    INT4 matrices, a limit for them     experts    the routed experts' sum, wherever they lie
seam, routed    what crosses, own and lent experts  moe        router, shared expert, and the seam
device_kernels  Triton and CUDA C++, or why not     computing  full float32, and no memory in one line
                                                    decoding   one token each in fixed shapes, recorded on CUDA
"""

from k2core import hookimpl
from k2core.hookspecs import Register


@hookimpl
def register_backends(register: Register) -> None:
    """Register ``torch`` without importing PyTorch."""
    register("k2core_torch.backend:TorchBackend", name="torch", summary="PyTorch on CPU and CUDA, INT4 experts packed")
