"""What a run was made on."""

import platform
from pathlib import Path

import torch


def machine(device: torch.device, precision: str) -> dict[str, str]:
    """Names for training.json: processor (or GPU), versions of Python and torch, device and precision. CUDA's part is untested.

    Args:
        device: that the model computes on.
        precision: "float32" or "bfloat16".
    """
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string: checkpoints hold nothing else
        "device": device.type,
        "precision": precision,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
