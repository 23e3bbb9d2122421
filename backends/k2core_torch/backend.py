"""Probe and load. Importing this module does not import PyTorch."""

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from k2core.errors import ConfigError, Unavailable
from k2core.interfaces import Available, NotAvailable, Numerics, Progress, RoutedExperts
from k2core_torch.device_kernels import kernels_missing

if TYPE_CHECKING:
    from k2core.model.footprint import Footprint
    from k2core_torch.model import TorchModel
    from k2core_torch.routed import TorchExperts

Way = Literal["fast", "eager", "kernels", "graphs"]
PATH = "K2CORE_TORCH_PATH"
SIGNS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))  # of a driver; a container may show either alone


class TorchBackend:
    """Kimi K2 checkpoints on whatever PyTorch runs on."""

    name = "torch"
    numerics: tuple[Numerics, ...] = ("exact", "w4a16")

    def __init__(self, way: Way | None = None) -> None:
        """A backend.

        Args:
            way: ``eager`` is the equations as they are written; ``fast``, ``kernels`` (Triton's, on CUDA) and ``graphs`` (the
                same, and what decodes is recorded and replayed) give the same numbers within their bounds. None asks the
                environment's K2CORE_TORCH_PATH, and takes without it ``graphs`` where they can run, else ``fast``.
        """
        self.way = way

    def probe(self) -> Available | NotAvailable:
        """Whether PyTorch is installed, and what it may run on; does not import it."""
        if importlib.util.find_spec("torch") is None:
            return NotAvailable(reason="torch is not installed. Install it with: pip install 'k2core[torch]'")
        try:
            found = version("torch")
        except PackageNotFoundError:
            return NotAvailable(
                reason="torch is there but its package metadata is missing. Install it again: pip install torch"
            )
        why_not = cuda_missing(found)
        return Available(
            device="cpu",
            detail=f"torch {found}",
            devices=("cpu",) if why_not else ("cpu", "cuda"),
            missing={"cuda": why_not} if why_not else {},
        )

    def needs(self, footprint: "Footprint", *, context: int, numerics: Numerics) -> int:
        """Weights as they are stored, and a cache that doubles as it grows; see `k2core.interfaces.Needs`."""
        return footprint.tensors + 2 * footprint.cache(context, 4 if numerics == "exact" else 2)

    def load(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        moe: RoutedExperts | None = None,
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> "TorchModel":
        """Load a checkpoint folder in the Hugging Face layout; see `k2core.interfaces.Backend.load`.

        Args:
            checkpoint: the folder.
            device: ``cpu`` or ``cuda``.
            numerics: ``exact`` or ``w4a16``.
            moe: another backend's experts.
            expert_bytes: memory for prepared experts, those used least recently make room: unpacked on the CPU, on CUDA moved
                there packed. Without it none is kept unpacked on the CPU, and CUDA holds all.
            progress: told of every layer whose experts were read, where the checkpoint is not small.

        Raises:
            Unavailable: PyTorch is missing, or cannot do what is asked for.
            CheckpointError: the folder is malformed, or a weight is not finite.
            CapacityError: the device's memory does not suffice; says what for.
            ConfigError: K2CORE_TORCH_PATH is none of them.
        """
        way = self._prepared(device, numerics)
        from k2core.model.checkpoint import Checkpoint
        from k2core_torch.computing import computing
        from k2core_torch.model import TorchModel

        opened = Checkpoint.open(checkpoint)
        with computing(device, f"the weights of {checkpoint}"):
            return TorchModel(
                opened, device=device, numerics=numerics, way=way, moe=moe, expert_bytes=expert_bytes, progress=progress
            )

    def load_experts(
        self,
        checkpoint: Path,
        *,
        device: str = "cpu",
        numerics: Numerics = "exact",
        expert_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> "TorchExperts":
        """Load the routed experts alone; see `k2core.interfaces.Backend.load_experts`. Errors as of `load`."""
        way = self._prepared(device, numerics)
        from k2core.model.checkpoint import Checkpoint
        from k2core_torch.computing import computing
        from k2core_torch.routed import TorchExperts

        opened = Checkpoint.open(checkpoint)
        with computing(device, f"the experts of {checkpoint}"):
            return TorchExperts(opened, device=device, numerics=numerics, way=way, expert_bytes=expert_bytes, progress=progress)

    def _prepared(self, device: str, numerics: Numerics) -> Way:
        found = self.probe()
        if isinstance(found, NotAvailable):
            raise Unavailable(f"the torch backend cannot work here: {found.reason}")
        try:
            import torch  # noqa: F401  # whether it can be imported
        except Exception as error:  # a broken library may raise anything
            reason = " ".join(str(error).split())
            raise Unavailable(
                f"the torch backend cannot work here: torch is installed, but its import failed: {reason}. "
                "Install it again: pip install --force-reinstall torch"
            ) from error
        if numerics not in self.numerics:
            raise Unavailable(f"the torch backend has no numerics '{numerics}'. Known: {', '.join(self.numerics)}.")
        if device not in found.devices:
            why = f": {found.missing[device].rstrip('.')}" if device in found.missing else ""
            raise Unavailable(f"the torch backend has no device '{device}'{why}. Known: {', '.join(found.devices)}.")
        if device == "cuda":
            _see_cuda()
        way, why_not = self.way or configured_way(), kernels_missing(device)
        if way in ("kernels", "graphs") and why_not:
            raise Unavailable(f"the torch backend cannot run its kernels: {why_not}. K2CORE_TORCH_PATH=fast goes without.")
        if way == "graphs" and device != "cuda":
            raise Unavailable(
                f"the torch backend records graphs on CUDA, not on {device}. K2CORE_TORCH_PATH=kernels goes without."
            )
        return way or ("fast" if why_not else "graphs" if device == "cuda" else "kernels")


def configured_way() -> Way | None:
    """K2CORE_TORCH_PATH, None without it.

    Raises:
        ConfigError: the variable is something else.
    """
    text: Any = os.environ.get(PATH)
    if text is not None and text not in get_args(Way):
        raise ConfigError(f"{PATH} is '{text}' in the environment, expected one of {', '.join(get_args(Way))}")
    way: Way | None = text
    return way


def cuda_missing(torch_version: str, *signs: Path) -> str:
    """Why CUDA cannot be used, as far as files tell; empty where it may.

    Args:
        torch_version: as installed.
        signs: files that a driver makes; none are `SIGNS`.
    """
    if torch_version.endswith("+cpu"):
        return f"torch {torch_version} is built without CUDA. Install a CUDA build of torch."
    if not any(sign.exists() for sign in signs or SIGNS):
        return f"there is no NVIDIA driver (no {' or '.join(map(str, signs or SIGNS))})"
    return ""


def _see_cuda() -> None:
    """See that PyTorch can really use the device.

    Raises:
        Unavailable: e.g. the driver is too old; with PyTorch's own words.
    """
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        raise Unavailable(f"the torch backend cannot use CUDA here: {' '.join(str(error).split())}") from error
