"""How alike two pictures are: PSNR; SSIM, from scikit-image, which is an extra; and LPIPS, from
`lpips`, where it is installed. Pictures are arrays of floats in 0..1, (height, width, channels).
How alike two sounds are: the ratio of signal to noise. And the mean of any of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import torch

from ..errors import first_line, warn

#: Pixels on the shorter side, below which AlexNet has nothing left to look at.
SMALLEST_FOR_LPIPS = 32


def require_metrics() -> None:
    """Raises early, before minutes of generation, what `ssim` would raise late.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "SSIM needs scikit-image: pip install 'deepcache-patch[compare]'"
        ) from error


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB: infinite for identical pictures.

    Raises:
        ValueError: Their shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"pictures of other shapes: {reference.shape} and {other.shape}")
    error = float(np.square(np.subtract(reference, other, dtype=np.float64)).mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(reference: np.ndarray, other: np.ndarray) -> float:
    """Returns the structural similarity, at most 1, with a window of 7 pixels.

    A picture narrower than that gets the largest odd window that fits.
    """
    from skimage.metrics import structural_similarity

    side = min(7, *reference.shape[:2])
    window = side if side % 2 else side - 1
    value = structural_similarity(
        reference, other, win_size=window, channel_axis=-1, data_range=1.0
    )
    return float(value)


def snr(reference: np.ndarray, other: np.ndarray) -> float:
    """Returns the signal-to-noise ratio of a waveform in dB; infinite for identical ones.

    The signal is `reference`, of any shape, and the noise is what `other` differs by.
    """
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.subtract(reference, other, dtype=np.float64)).sum())
    if noise == 0:
        return float("inf")
    return 10 * math.log10(signal / noise) if signal else float("-inf")


def mean_of(values: Sequence[float]) -> float:
    """The mean of those that are not infinite, if there are any; NaN of no values at all.

    In decibels a result that is identical, such as a black picture of a safety checker, is.
    """
    different = [each for each in values if each != math.inf]
    if not different:
        return math.inf if values else math.nan
    return fmean(different)


def lpips(
    device: torch.device | str = "cpu",
) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """Returns a function that gives the LPIPS of two pictures, 0 for identical ones.

    By AlexNet (arXiv 1801.03924), from the package `lpips`, which fetches its weights at the first
    use. `None` where the package is not installed, and, with a warning, where it does not work.

    Args:
        device: Where the network runs.
    """
    try:
        from lpips import LPIPS

        network = LPIPS(net="alex", verbose=False).eval().to(device)
    except ImportError:
        return None
    except Exception as error:  # the weights out of reach; a torchvision that does not fit torch
        message = f"LPIPS is left out, because the package lpips fails: {first_line(error)}"
        warn(message)
        return None

    def distance(reference: np.ndarray, other: np.ndarray) -> float:
        pictures = (torch.from_numpy(np.nan_to_num(each)).to(device) for each in (reference, other))
        batches = (each.permute(2, 0, 1)[None].expand(-1, 3, -1, -1) for each in pictures)
        with torch.no_grad():
            return float(network(*(each * 2 - 1 for each in batches)))

    return distance
