"""Probe and load. Importing this module does not import Numba."""

import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from k2core.errors import ConfigError, Unavailable
from k2core.interfaces import Available, NotAvailable, Numerics

if TYPE_CHECKING:
    from k2core_numba.model import NumbaModel

THREADS = "K2CORE_THREADS"


class NumbaBackend:
    """Kimi K2 checkpoints on the CPU."""

    name = "numba"

    def probe(self) -> Available | NotAvailable:
        """Whether Numba is installed; does not import it."""
        if importlib.util.find_spec("numba") is None:
            return NotAvailable(reason="numba is not installed. Install it with: pip install numba")
        try:
            return Available(device="cpu", detail=f"numba {version('numba')}, {usable_cores()} cores")
        except PackageNotFoundError:
            return NotAvailable(
                reason="numba is there but its package metadata is missing. Install it again with: pip install numba"
            )

    def require(self) -> Available:
        """What `probe` found.

        Raises:
            Unavailable: it found that the backend cannot work here.
        """
        found = self.probe()
        if isinstance(found, NotAvailable):
            raise Unavailable(f"the numba backend cannot work here: {found.reason}")
        return found

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> "NumbaModel":
        """Load a checkpoint folder in the Hugging Face layout.

        Args:
            checkpoint: the folder with config.json and safetensors files.
            device: only ``cpu``.
            numerics: only ``exact``: float32 activations and sums, weights exactly as stored.
            progress: called with (what, done, total) while kernels are compiled for the first time.

        Raises:
            Unavailable: Numba is missing, or another device or numerics is asked for.
            CheckpointError: the folder is malformed, or a weight is not finite.
            ConfigError: K2CORE_THREADS is no positive number.
        """
        self.require()
        if device != "cpu":
            raise Unavailable(f"the numba backend has no device '{device}'. Known: cpu.")
        if numerics != "exact":
            raise Unavailable(f"the numba backend has no numerics '{numerics}'. Known: exact.")
        threads = configured_threads()
        from k2core.model.checkpoint import Checkpoint
        from k2core_numba.model import NumbaModel
        from k2core_numba.runtime import compile_kernels
        from k2core_numba.weights import read_weights

        weights = read_weights(Checkpoint.open(checkpoint))
        compile_kernels(progress)
        return NumbaModel(weights, threads=threads)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configured_threads() -> int:
    """K2CORE_THREADS, or every usable core.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get(THREADS)
    if text is None:
        return usable_cores()
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{THREADS} is '{text}' in the environment, expected a number of threads from 1 on")
    return int(text)
