"""How near pictures come to the plain ones: PSNR and LPIPS of each, and the FID of all.

LPIPS is by AlexNet, from the package `lpips`. FID is from `torch-fidelity`, with the Inception
network of 2015 that papers use; torchmetrics takes the same one. Both packages fetch weights at the
first use. Where a package or its weights are not to be had, there is a note in place of a figure.
"""

import importlib.metadata
import importlib.util
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from deepcache_patch.errors import first_line
from deepcache_patch.measuring.similarity import SMALLEST_FOR_LPIPS, lpips

Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclass
class Metrics:
    """What can be measured here besides PSNR.

    Attributes:
        device: Where the networks run.
        notes: Why something is left out, and what to do about it; one line each.
    """

    device: torch.device
    notes: list[str] = field(default_factory=list)

    def lpips(self, side: int) -> Distance | None:
        """A function of two pictures, if it can be had.

        Args:
            side: The shorter one of the pictures, in pixels.
        """
        if side < SMALLEST_FOR_LPIPS:
            return self._note(f"LPIPS is left out: it needs {SMALLEST_FOR_LPIPS} pixels a side")
        if importlib.util.find_spec("lpips") is None:
            return self._note("LPIPS is left out: pip install lpips")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distance = lpips(self.device)
        if distance is None:
            self._note(first_line(caught[-1].message) if caught else "LPIPS is left out")
        return distance

    def fid(self, plain: Path, other: Path) -> float | None:
        """The Fréchet Inception distance of two folders of pictures, if it can be had."""
        if any(note.startswith("FID") for note in self.notes):
            return None
        try:
            from torch_fidelity import calculate_metrics

            found = calculate_metrics(
                input1=str(other),
                input2=str(plain),
                fid=True,
                cuda=self.device.type == "cuda",
                verbose=False,
            )
        except ImportError:
            return self._note("FID is left out: pip install torch-fidelity")
        except Exception as error:  # the weights out of reach; a torchvision that does not fit
            return self._note(f"FID is left out, because torch-fidelity fails: {first_line(error)}")
        return float(found["frechet_inception_distance"])

    def _note(self, line: str) -> None:
        self.notes.append(line)


def summary(
    values: Sequence[float], *, higher_is_better: bool
) -> tuple[float | None, float | None]:
    """Mean, and mean of the worst tenth (at least one picture).

    What is infinite, the PSNR of pictures that are the same, is left out of a mean; a mean of
    nothing is `None`.
    """
    ordered = sorted(values, reverse=not higher_is_better)
    worst = ordered[: math.ceil(len(ordered) / 10)]
    finite = [[value for value in each if math.isfinite(value)] for each in (ordered, worst)]
    mean, mean_of_worst = (statistics.fmean(each) if each else None for each in finite)
    return mean, mean_of_worst


def versions_of_metrics() -> dict[str, str]:
    """Of the packages that measure, as far as they are there."""
    found = {}
    for name in ("scikit-image", "lpips", "torch-fidelity", "torchvision"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
