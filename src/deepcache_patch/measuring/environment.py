"""What a measurement was made on: versions and the device's name. A figure without them says
little, so every result file carries both.
"""

from __future__ import annotations

import platform
from pathlib import Path

import diffusers
import torch

from ..versions import __version__


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package, torch and diffusers."""
    return {
        "python": platform.python_version(),
        "deepcache_patch": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def device_name(device: torch.device) -> str:
    """Returns the name that the maker gave the device, as far as it can be told."""
    if device.type in ("cuda", "xpu"):
        return str(getattr(torch, device.type).get_device_name(device))  # pragma: no cover (a GPU)
    # Linux tells `platform.processor` nothing, or the architecture once more.
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
