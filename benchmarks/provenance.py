"""What a results file says of how it was made, and where it lies.

Each says what made it: command, versions, device. Files of `speed` and `cost` also have the options
(dtype, threads, seed, …) and lie in the folder of their device, so that results of several machines
stand side by side; these rooms' commands begin with `options` and `prepare`, and end with `write`.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepcache_patch.measuring.environment import device_name, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def command(name: str, *arguments: str) -> str:
    """The command line of a benchmark, by its module's name below `benchmarks`."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *arguments])


def options(name: str, description: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with what all have: device, dtype, threads, seed, repeats and the folder."""
    parser = argparse.ArgumentParser(command(name), description=description.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="default: float16 on cuda, else float32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--output", type=Path, default=None, help="default: results/DEVICE")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Set threads and seed; return the device and the dtype that are meant."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    name = arguments.dtype or ("float16" if device.type == "cuda" else "float32")
    arguments.dtype = name
    return device, getattr(torch, name)


def write(
    name: str,
    arguments: argparse.Namespace,
    device: torch.device,
    figures: Mapping[str, Any],
    *,
    printed: bool = True,
) -> Path:
    """Print and write what was measured, with what it was measured on.

    Args:
        name: Of the benchmark's module below `benchmarks`; the last part is that of the file.
        arguments: Of the command; all of them are written down.
        device: Where it ran.
        figures: What was measured, ready for JSON.
        printed: Whether it is printed, too; not while there is more to come.

    Returns:
        The file.
    """
    given = {key: value for key, value in vars(arguments).items() if key != "output"}
    report = {
        "command": command(name, *sys.argv[1:]),
        "device": device_name(device),
        "versions": versions(),
        "options": given,
        **figures,
    }
    path = file_of(name, arguments, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    if printed:
        print(text)
        print(f"written to {path}")
    return path


def file_of(name: str, arguments: argparse.Namespace, device: torch.device) -> Path:
    """Where `write` writes: below `--output`, or in the device's folder of the results."""
    folder: Path = arguments.output or RESULTS / slug(device_name(device))
    return folder / f"{name.rpartition('.')[2]}.json"


def slug(name: str) -> str:
    """A device's name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
