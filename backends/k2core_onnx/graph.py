"""Writing graphs: nodes by calls, weights beside the graph and never in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from k2core.errors import CheckpointError
from k2core.model.checkpoint import Checkpoint
from k2core.model.finite import require_finite

OPSET, MICROSOFT, IR = 21, "com.microsoft", 10
ALIGNED = 4096  # bytes: where a tensor may begin in a file of external data, so that it can be mapped
LEAST_BLOCK = 16  # of `MatMulNBits`
Shape = Sequence[int | str]
KINDS: Mapping[Any, int] = {
    np.dtype(ml_dtypes.bfloat16): onnx.TensorProto.BFLOAT16,
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.int64): onnx.TensorProto.INT64,
    np.dtype(np.uint8): onnx.TensorProto.UINT8,
}


class Graph:
    """One graph while it is written.

    Attributes:
        weights: arrays by the names that the graph knows them under; they lie outside of it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: dict[str, NDArray[Any]] = {}
        self._declared: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._small: list[onnx.TensorProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}

    def input(self, name: str, shape: Shape, kind: int = onnx.TensorProto.FLOAT) -> str:
        """Something that is given to each run."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Shape, kind: int = onnx.TensorProto.FLOAT) -> None:
        """Something that a run gives."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """An array that lies beside the graph."""
        self.weights[name] = array
        self.declare(name, array, 0)
        return name

    def declare(self, name: str, array: NDArray[Any], offset: int) -> None:
        """Tell the graph of an array that lies beside it, *offset* bytes behind the begin of a file where it is one."""
        tensor = onnx.TensorProto(name=name, data_type=KINDS[array.dtype], dims=array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._declared.append(tensor)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small array inside the graph."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self._small.append(onnx.numpy_helper.from_array(array, name))
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(value, np.float32)

    def call(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """A node; returns the name of its output, or a list of several."""
        names = [f"{op}_{len(self._nodes)}_{place}" for place in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x: str, weight: str) -> str:
        """x Wᵀ for (rows, in) and (out, in)."""
        name: str = self.call("Gemm", x, weight, transB=1)
        return name

    def rms_norm(self, x: str, gain: str, eps: float) -> str:
        """gain * x / sqrt(mean(x²) + eps) over the last axis."""
        # an operator of ONNX Runtime's own that lies in ONNX's domain
        name: str = self.call("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=eps, stash_type=1)
        return name

    def rotated(self, x: str, cosine: str, sine: str) -> str:
        """Each pair (2i, 2i + 1) of the last axis of (1, heads, tokens, rope) turned."""
        first = self.constant([0])  # the tables begin with the first token
        name: str = self.call("RotaryEmbedding", x, first, cosine, sine, domain=MICROSOFT, interleaved=1)
        return name

    def swiglu(self, left: str, right: str) -> str:
        """silu(left) * right."""
        name: str = self.call("Mul", self.call("Mul", left, self.call("Sigmoid", left)), right)
        return name

    def model(self, *, location: str) -> onnx.ModelProto:
        """The graph with its weights declared as external data in *location*, which need not be a file."""
        for tensor in self._declared:
            tensor.external_data[0].value = location
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._small + self._declared)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="k2core")


class Weights:
    """A checkpoint's tensors as ONNX Runtime takes them: float32, packed codes as bytes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.geometry = checkpoint, checkpoint.geometry
        self._mapped: list[str] = []

    def float32(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32; its mapped pages are given back.

        Raises:
            CheckpointError: there is none, or a value is not finite.
        """
        array = self.plain(name)
        copied = np.ascontiguousarray(array.astype(np.float32))
        if array.dtype == ml_dtypes.bfloat16:
            self.checkpoint.give_back(name)
        return copied

    def plain(self, name: str) -> NDArray[Any]:
        """A tensor as it is.

        Raises:
            CheckpointError: there is none, or a value is not finite.
        """
        array = self.checkpoint.tensor(name)
        require_finite(array, name)
        return array

    def packed(self, name: str, most: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
        """A packed matrix in blocks: codes (out, blocks, block / 2), two a byte, scales (out, blocks), and a block's columns.

        The checkpoint's words are the bytes that `MatMulNBits` reads: low nibble first, and 8 stands for zero in both. A block
        is a group, or a part of one whose scale is then repeated.

        Args:
            name: without ``.weight_packed``.
            most: columns of a block.

        Raises:
            CheckpointError: a scale is not finite, or groups are of a size that ONNX Runtime has no blocks for.
        """
        words = self.checkpoint.tensor(f"{name}.weight_packed")
        scale = self.float32(f"{name}.weight_scale")
        group = words.shape[1] * 8 // scale.shape[1]
        block = min(group & -group, most)  # the greatest power of two that divides the group
        if block < LEAST_BLOCK:
            raise CheckpointError(
                f"cannot load {name}: its groups have {group} columns, ONNX Runtime takes multiples of 16, in blocks that are "
                "powers of two"
            )
        self._mapped.append(f"{name}.weight_packed")
        codes = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
        return codes.reshape(len(words), -1, block // 2), scale.repeat(group // block, axis=1), block

    def give_back(self) -> None:
        """Let the system take the pages of all packed codes back, once ONNX Runtime has laid them out anew."""
        for name in self._mapped:
            self.checkpoint.give_back(name)
        self._mapped.clear()
