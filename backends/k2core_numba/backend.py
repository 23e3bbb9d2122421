"""Probe and load. Importing this module does not import Numba."""

import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from k2core.errors import ConfigError, Unavailable
from k2core.interfaces import Available, NotAvailable, Numerics, RoutedExperts

if TYPE_CHECKING:
    from k2core.model.checkpoint import Checkpoint
    from k2core.model.footprint import Footprint
    from k2core_numba.experts import NumbaExperts
    from k2core_numba.model import NumbaModel

THREADS = "K2CORE_THREADS"
EAGER_BYTES = 1 << 30  # of a checkpoint whose experts are all repacked when it is loaded


class NumbaBackend:
    """Kimi K2 checkpoints on the CPU."""

    name = "numba"
    numerics: tuple[Numerics, ...] = ("exact",)

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

    def needs(self, footprint: "Footprint", *, context: int, numerics: Numerics) -> int:
        """Weights as they are stored, and a float32 cache; see `k2core.interfaces.Needs`.

        Raises:
            Unavailable: experts that are not packed, which it does not load.
        """
        if not footprint.packed:
            raise Unavailable("it takes INT4 experts alone: k2 quantize makes them")
        return footprint.tensors + footprint.cache(context, 4)

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        moe: RoutedExperts | None = None,
        expert_bytes: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> "NumbaModel":
        """Load a checkpoint folder in the Hugging Face layout.

        Args:
            checkpoint: the folder with config.json and safetensors files.
            device: only ``cpu``.
            numerics: only ``exact``: float32 activations and sums, weights exactly as stored.
            moe: another backend's routed experts.
            expert_bytes: memory of repacked experts. None keeps a small model's all from the beginning where they fit; a
                larger one's are repacked when they are first needed, as many as most of the free memory holds.
            progress: called with (what, done, total) while kernels are compiled for the first time.

        Raises:
            Unavailable: Numba is missing, or another device or numerics is asked for.
            CheckpointError: the folder is malformed, or a weight is not finite.
            CapacityError: not even one expert fits into *expert_bytes*.
            ConfigError: K2CORE_THREADS is no positive number.
        """
        opened, threads = self._opened(checkpoint, device, numerics, progress)
        from k2core.model.footprint import footprint
        from k2core_numba.expert_cache import require_packed, room
        from k2core_numba.experts import NumbaExperts
        from k2core_numba.model import NumbaModel
        from k2core_numba.weights import read_weights

        if moe is None:
            require_packed(opened)
            is_small = opened.size_bytes <= EAGER_BYTES
            if is_small and expert_bytes is None and footprint(opened.geometry).experts <= room(opened):
                return NumbaModel(read_weights(opened), threads=threads)
            moe = NumbaExperts(opened, expert_bytes, threads=threads) if opened.geometry.moe_layers else None
        return NumbaModel(read_weights(opened, experts=False), threads=threads, routed=moe)

    def load_experts(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        expert_bytes: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> "NumbaExperts":
        """Load the routed experts alone; each is read when it is first needed. Arguments and errors as of `load`."""
        opened, threads = self._opened(checkpoint, device, numerics, progress)
        from k2core_numba.experts import NumbaExperts

        return NumbaExperts(opened, expert_bytes, threads=threads)

    def _opened(
        self, checkpoint: Path, device: str, numerics: Numerics, progress: Callable[[str, int, int], None] | None
    ) -> "tuple[Checkpoint, int]":
        self.require()
        if device != "cpu":
            raise Unavailable(f"the numba backend has no device '{device}'. Known: cpu.")
        if numerics not in self.numerics:
            raise Unavailable(f"the numba backend has no numerics '{numerics}'. Known: {', '.join(self.numerics)}.")
        threads = configured_threads()
        from k2core.model.checkpoint import Checkpoint
        from k2core_numba.runtime import compile_kernels

        opened = Checkpoint.open(checkpoint)
        compile_kernels(progress)
        return opened, threads


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
