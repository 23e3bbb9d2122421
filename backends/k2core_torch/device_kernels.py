"""Whether compiled kernels can take over, why not where they cannot, and where they are. Imports no PyTorch by itself."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from k2core.errors import Unavailable

PACKAGE = "k2core_kernels.triton"
CUDA_PACKAGE = "k2core_kernels.cuda"
Kernel = Callable[..., Any]


def kernels_missing(device: str) -> str:
    """Why Triton kernels cannot run; empty where they can: on CUDA, or on a CPU under Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; install it with: pip install 'k2core[triton]'"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "they run on CUDA; on a CPU only under Triton's interpreter (TRITON_INTERPRET=1)"
    return ""


def kernels_told(device: str, way: str) -> str:
    """What a report says of them: the version of Triton, or why they are not used."""
    if way not in ("kernels", "graphs"):
        return f"none: {kernels_missing(device) or f'the path is {way}'}"
    try:
        triton = f"triton {version('triton')}"
    except PackageNotFoundError:
        triton = "triton"
    if device != "cuda":
        return triton
    return f"{triton}, no CUDA C++: {why_not}" if (why_not := nvrtc_missing()) else f"{triton}, CUDA C++ by NVRTC"


def nvrtc_missing() -> str:
    """Why CUDA C++ cannot be compiled; empty where it can."""
    try:
        import_module(f"{CUDA_PACKAGE}.nvrtc").version()
    except ModuleNotFoundError:
        return "cuda-bindings is not installed; install it with: pip install 'k2core[cuda]'"
    except Exception as error:  # the bindings have exceptions of their own for a library that is not there
        return f"NVRTC cannot be loaded: {' '.join(str(error).split())[:200]}"
    return ""


def load_kernel(name: str) -> Kernel:
    """A kernel's host function, e.g. ``moe_experts``, which its module is named like.

    Raises:
        Unavailable: Triton is there, but cannot be imported.
    """
    try:
        kernel: Kernel = getattr(import_module(f"{PACKAGE}.{name}"), name)
    except ImportError as error:
        raise Unavailable(
            f"the torch backend cannot run its kernels: import of {PACKAGE}.{name} failed: {error}. "
            "K2CORE_TORCH_PATH=fast goes without."
        ) from error
    return kernel


def compiled_decode(group: int, *, exact: bool) -> tuple[Kernel, int]:
    """`moe_experts` for few tokens in CUDA C++, for the current device; compiled now, or taken from the user's cache.

    Args:
        group: columns per scale.
        exact: float32 throughout.

    Returns:
        The kernel's host function, and how many tokens it is meant for.

    Raises:
        Unavailable: NVRTC does not take the source, or the driver not what it gives.
    """
    import torch

    module = import_module(f"{CUDA_PACKAGE}.moe_experts_decode")
    folder = _cache_folder()
    try:
        try:
            module.prepare(torch.cuda.current_device(), group, exact, folder)
        except OSError:  # no room in it: compiled in every process then
            folder = None
            module.prepare(torch.cuda.current_device(), group, exact, folder)
    except RuntimeError as error:
        raise Unavailable(
            f"the torch backend cannot compile its kernels: {' '.join(str(error).split())[:300]}. "
            "K2CORE_TORCH_PATH=fast goes without."
        ) from error
    return partial(module.moe_experts_decode, folder=folder), module.FEW


def _cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where nothing can be written: they are compiled in every process then."""
    from platformdirs import user_cache_dir

    folder = Path(user_cache_dir("k2core", appauthor=False), "cuda")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
