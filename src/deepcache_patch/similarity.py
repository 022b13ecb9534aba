"""How alike two pictures are: PSNR and SSIM, from scikit-image, which is an extra. Pictures are
arrays of floats in 0..1, (height, width, channels).
"""

from __future__ import annotations

import numpy as np


def require_metrics() -> None:
    """Raises early, before minutes of generation, what `psnr` and `ssim` would raise late.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "PSNR and SSIM need scikit-image: pip install 'deepcache-patch[compare]'"
        ) from error


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB: infinite for identical pictures."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(reference, other):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, other, data_range=1.0))


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
