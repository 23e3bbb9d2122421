"""Probe and load. Importing this module imports neither ONNX nor ONNX Runtime."""

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from k2core.errors import ConfigError, Unavailable
from k2core.interfaces import Available, NotAvailable, Numerics, Progress, RoutedExperts

if TYPE_CHECKING:
    from k2core.model.footprint import Footprint
    from k2core_onnx.model import OnnxModel
    from k2core_onnx.moe import OnnxExperts

EXPERTS = "K2CORE_ONNX_EXPERTS"
Experts = Literal["matmul", "qmoe"]
PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # two names of one import package: the later one overwrites the other


class OnnxBackend:
    """Kimi K2 checkpoints on ONNX Runtime."""

    name = "onnx"
    numerics: tuple[Numerics, ...] = ("exact", "w4a8")

    def __init__(self, bound: bool | None = None, experts: Experts | None = None) -> None:
        """A backend.

        Args:
            bound: states and caches stay on the device between sessions, by IO binding; None is so on CUDA alone: on the CPU a
                binding copies as little as none and takes longer.
            experts: ``matmul``, a `MatMulNBits` for each matrix, or ``qmoe``, one `QMoE` for a layer; None asks
                K2CORE_ONNX_EXPERTS of the environment, and takes without it ``matmul``.
        """
        self._bound, self._experts = bound, experts
        if (experts or os.environ.get(EXPERTS)) == "qmoe":  # it rounds no inputs
            self.numerics = ("exact",)

    def probe(self) -> Available | NotAvailable:
        """Whether ONNX and one ONNX Runtime are installed; imports neither."""
        found = {name: _version(name) for name in PACKAGES}
        installed = [name for name, one in found.items() if one is not None]
        if len(installed) == 2:
            return NotAvailable(
                reason="onnxruntime and onnxruntime-gpu are both installed and overwrite each other. "
                "Uninstall both, then install one: pip install 'k2core[onnx]' or 'k2core[onnx-gpu]'"
            )
        if not installed or importlib.util.find_spec("onnxruntime") is None:
            return NotAvailable(reason="onnxruntime is not installed. Install it with: pip install 'k2core[onnx]'")
        if importlib.util.find_spec("onnx") is None:
            return NotAvailable(reason="onnx, which writes the graphs, is not installed. Install it with: pip install onnx")
        (name,) = installed
        why_not = cuda_missing(name)
        return Available(
            device="cpu",
            detail=f"{name} {found[name]}",
            devices=("cpu",) if why_not else ("cpu", "cuda"),
            missing={"cuda": why_not} if why_not else {},
        )

    def needs(self, footprint: "Footprint", *, context: int, numerics: Numerics) -> int:
        """Plain weights as float32, packed experts in ONNX Runtime's own layout with float32 scales (more where inputs are
        rounded, and with `QMoE`, beside which the stacked matrices stay; all measured), and a cache that doubles as it grows;
        see `k2core.interfaces.Needs`."""
        fused = (self._experts or configured_experts()) == "qmoe"
        if fused and not footprint.packed:
            raise Unavailable("QMoE takes INT4 experts alone")
        experts = footprint.experts * (230 if fused else 115 if numerics == "exact" else 170) // 100
        return 2 * footprint.plain + experts + 2 * footprint.cache(context, 4)

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        moe: RoutedExperts | None = None,
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> "OnnxModel":
        """Load a checkpoint folder in the Hugging Face layout; see `k2core.interfaces.Backend.load`.

        Args:
            checkpoint: the folder.
            device: ``cpu``, or ``cuda``: the CUDA provider, then the CPU's for what it lacks.
            numerics: ``exact``, or ``w4a8``: `MatMulNBits` with accuracy level 4 at the routed experts.
            moe: another backend's experts.
            expert_bytes: not possible: ONNX Runtime keeps a session's constants as long as the session lives.
            progress: called with (what, done, total) per layer.

        Raises:
            Unavailable: ONNX Runtime is missing, or cannot do what is asked for.
            CheckpointError: the folder is malformed, or a weight is not finite.
            ConfigError: K2CORE_ONNX_EXPERTS is neither.
        """
        fused = self._require(device, numerics, expert_bytes)
        from k2core.model.checkpoint import Checkpoint
        from k2core_onnx.model import OnnxModel

        bound = device != "cpu" if self._bound is None else self._bound
        opened = Checkpoint.open(checkpoint)
        return OnnxModel(opened, device=device, numerics=numerics, moe=moe, fused=fused, progress=progress, bound=bound)

    def load_experts(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> "OnnxExperts":
        """Load the routed experts alone; see `k2core.interfaces.Backend.load_experts`. Errors as of `load`."""
        fused = self._require(device, numerics, expert_bytes)
        from k2core.model.checkpoint import Checkpoint
        from k2core_onnx.moe import OnnxExperts

        return OnnxExperts(Checkpoint.open(checkpoint), device=device, numerics=numerics, fused=fused, progress=progress)

    def _require(self, device: str, numerics: Numerics, expert_bytes: int | None) -> bool:
        """See that all of it can be had; whether experts are one `QMoE`."""
        found = self.probe()
        if isinstance(found, NotAvailable):
            raise Unavailable(f"the onnx backend cannot work here: {found.reason}")
        see_importable()
        if numerics not in self.numerics:
            hint = f" With {EXPERTS}=matmul there are others." if len(self.numerics) < len(type(self).numerics) else ""
            raise Unavailable(f"the onnx backend has no numerics '{numerics}'. Known: {', '.join(self.numerics)}.{hint}")
        if device not in found.devices:
            why = f": {found.missing[device].rstrip('.')}" if device in found.missing else ""
            raise Unavailable(f"the onnx backend has no device '{device}'{why}. Known: {', '.join(found.devices)}.")
        if expert_bytes is not None:
            raise Unavailable(
                "the onnx backend cannot limit the memory of its experts: a session keeps its constants. "
                "Lend them from numba or torch, which can: --moe numba."
            )
        fused = (self._experts or configured_experts()) == "qmoe"
        if fused and device != "cpu":
            raise Unavailable(f"QMoE is used on the CPU alone, not on {device}. {EXPERTS}=matmul goes there.")
        return fused


def configured_experts() -> Experts:
    """K2CORE_ONNX_EXPERTS, ``matmul`` without it.

    Raises:
        ConfigError: it is something else.
    """
    text: Any = os.environ.get(EXPERTS, "matmul")
    if text not in get_args(Experts):
        raise ConfigError(f"{EXPERTS} is '{text}' in the environment, expected one of {', '.join(get_args(Experts))}")
    found: Experts = text
    return found


def see_importable() -> None:
    """See that ONNX and ONNX Runtime, which are installed, can be imported.

    Raises:
        Unavailable: one cannot; says why.
    """
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken library may raise anything
            reason = " ".join(str(error).split())
            raise Unavailable(
                f"the onnx backend cannot work here: {name} is installed, but its import failed: {reason}. "
                f"Install it again: pip install --force-reinstall {name}"
            ) from error


def cuda_missing(package: str, driver: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Why the CUDA provider cannot be used, as far as files tell; empty where it may."""
    if package != "onnxruntime-gpu":
        return "onnxruntime has the CPU provider alone. For CUDA install 'k2core[onnx-gpu]' instead."
    if not driver.exists():
        return f"there is no NVIDIA driver ({driver} is missing)"
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
