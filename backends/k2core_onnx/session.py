"""Sessions of ONNX Runtime: threads, providers, weights and inputs by reference.

Each session has threads of its own. A pool for all would be fewer of them, but is the process's: no session of anybody else
could be made then, and from Python it cannot be told not to spin, which doubles the time of a step where there is other work.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from k2core.errors import ConfigError, Unavailable
from k2core_onnx.graph import Graph

PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
SESSIONS_PER_LAYER = 3  # attention, what is not routed, routed experts
THREADS = "K2CORE_THREADS"
OUT_OF_MEMORY = (
    "Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory", "smaller than requested bytes",
    "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
MOST_THREADS = 4096  # of all sessions of a model; they sleep but where theirs runs


def configured_threads() -> int:
    """K2CORE_THREADS, or every core this process may use.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get(THREADS)
    if text is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{THREADS} is '{text}' in the environment, expected a number of threads from 1 on")
    return int(text)


class Sessions:
    """Makes the sessions of one model.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: of one run.
    """

    def __init__(self, device: str, count: int) -> None:
        """For about *count* sessions.

        Raises:
            ConfigError: K2CORE_THREADS is no positive number.
        """
        self.device, self.threads = device, min(configured_threads(), 1 + MOST_THREADS // max(1, count))

    def make(self, graph: Graph, *, packs: bool = False) -> "Session":
        """A session.

        Args:
            graph: what it runs.
            packs: ONNX Runtime may lay weights out anew. That makes a second copy of them, without which `MatMulNBits` is slow
                and float32 products of one token are not.

        Raises:
            Unavailable: ONNX Runtime would run the graph on another device than was asked for, or cannot make it.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # each session's would keep the most that it ever needed
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "0" if packs else "1")
        weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in graph.weights.items()}
        options.add_external_initializers(list(weights), list(weights.values()))
        if self.device == "cpu":  # said a second time: what is said once is copied (measured, 1.31 and 1.32)
            for name, value in weights.items():
                options.add_initializer(name, value)
        wanted, content = PROVIDERS[self.device], graph.model(location="memory").SerializeToString()
        if wanted[0] not in (there := onnxruntime.get_available_providers()):
            raise Unavailable(f"ONNX Runtime has no {wanted[0]} here, only {', '.join(there)}. Install 'k2core[onnx-gpu]'.")
        try:
            session = onnxruntime.InferenceSession(content, options, providers=list(wanted), enable_fallback=0)
        except Exception as error:  # the library's own exceptions have no common class but this
            raise Unavailable(f"ONNX Runtime cannot take graph '{graph.name}': {' '.join(str(error).split())}") from error
        if wanted[0] not in session.get_providers():
            raise Unavailable(
                f"ONNX Runtime has no {wanted[0]} here, only {', '.join(session.get_providers())}. "
                "Its CUDA and cuDNN libraries may be missing."
            )
        return Session(session, weights, self.device)

    def place(self, array: NDArray[Any]) -> Any:
        """A copy of an array on the device, for `Session.bound`."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)


class Session:
    """One graph that can be run."""

    def __init__(self, session: Any, weights: Mapping[str, Any], device: str) -> None:
        self._device, self._session, self._outputs = device, session, [output.name for output in session.get_outputs()]
        self._weights = weights  # ONNX Runtime refers to them

    def run(self, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """All outputs for C-contiguous inputs, which are not copied on the CPU.

        Raises:
            MemoryError: there is not enough memory.
        """
        # not by a binding: that copies as little, and takes 20 µs more
        with memory_errors():
            found: list[NDArray[Any]] = self._session.run(self._outputs, inputs)
        return found

    def bound(self, **inputs: Any) -> list[Any]:
        """All outputs as values on the device, where they stay; inputs are such values, or C-contiguous arrays.

        Raises:
            MemoryError: there is not enough memory.
        """
        with memory_errors():
            binding = self._session.io_binding()
            for name, value in inputs.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, self._device, 0)
            self._session.run_with_iobinding(binding)
            return list(binding.get_outputs())


def on_host(value: Any) -> NDArray[Any]:
    """A value as an array; an array as it is."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


@contextmanager
def memory_errors() -> Iterator[None]:
    """ONNX Runtime's word of no memory becomes a MemoryError."""
    try:
        yield
    except Exception as error:  # the library's own exceptions have no common class but this
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise MemoryError(" ".join(str(error).split())) from error
        raise
