"""ONNX Runtime: graphs that are built from a checkpoint, one session per half of a layer.

backend    probe and load                       model      the loaded model
graph      what graphs are written with         parts      what a forward goes through
halves     attention, feed-forward, head        on_host    a forward with arrays, and their cache
experts    router with shared expert, and       on_device  a forward whose states and caches stay on a device
           routed experts without control flow  moe        the seam of the experts
qmoe       routed experts as one node           session    sessions, threads, providers
export     the whole model as one file, command ``k2 onnx``

Routed experts are a `MatMulNBits` per matrix, or with K2CORE_ONNX_EXPERTS=qmoe one `QMoE` per layer. The latter copies the
matrices, rounds no inputs, and saves time where experts are so small that nodes count: bench/test_onnx_experts.py.
"""

from k2core import hookimpl
from k2core.hookspecs import Register


@hookimpl
def register_backends(register: Register) -> None:
    """Register ``onnx`` without importing ONNX Runtime."""
    register("k2core_onnx.backend:OnnxBackend", name="onnx", summary="ONNX Runtime, graphs built from the checkpoint")
