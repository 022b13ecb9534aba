"""What the curves of the fidelity benchmark say: the PSNR of a family at a given speedup, and the
speedup at a given PSNR. Reads results, measures nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fidelity.contestants import SAMPLERS
from benchmarks.provenance import RESULTS as ALL_RESULTS

RESULTS = ALL_RESULTS / "fidelity"

#: One contestant's figures, as `run` writes them.
Row = Mapping[str, Any]


def results(folder: Path = RESULTS) -> dict[str, Any]:
    """What was measured, by sampler; samplers without a file are left out."""
    files = {name: folder / f"{name}.json" for name in SAMPLERS}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


def points(rows: Sequence[Row], family: str) -> list[tuple[float, float]]:
    """Speedup and PSNR of each contestant of the family that has both."""
    return [
        (row["speedup"], row["psnr"])
        for row in rows
        if row["family"] == family and row["psnr"] is not None
    ]


def envelope(rows: Sequence[Row], family: str) -> list[tuple[float, float]]:
    """The family's points that no other of it beats in one without losing in the other.

    Returns:
        Speedup and PSNR; the speedup rises, the PSNR falls.
    """
    kept: list[tuple[float, float]] = []
    for speedup, psnr in sorted(points(rows, family), reverse=True):
        if not kept or psnr > kept[-1][1]:
            kept.append((speedup, psnr))
    return kept[::-1]


def psnr_at(rows: Sequence[Row], family: str, speedup: float) -> float | None:
    """The PSNR in dB that the family has at a speedup, between two points of its envelope.

    Linear in the logarithm of the speedup; `None` where the envelope does not reach.
    """
    return _interpolated(
        [(float(np.log2(fast)), psnr) for fast, psnr in envelope(rows, family)],
        float(np.log2(speedup)),
    )


def speedup_at_psnr(rows: Sequence[Row], family: str, psnr: float) -> float | None:
    """The speedup that the family has at a PSNR in dB: the inverse of `psnr_at`."""
    power = _interpolated(
        [(good, float(np.log2(fast))) for fast, good in reversed(envelope(rows, family))], psnr
    )
    return None if power is None else float(2**power)


def _interpolated(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """The curve's value, linear between its points, whose first coordinates rise."""
    if not curve or not curve[0][0] <= at <= curve[-1][0]:
        return None
    places, values = zip(*curve, strict=True)
    return float(np.interp(at, places, values))
