"""What the rows of the fidelity benchmark say at a speed by the work of SD 1.5: read off a family's
curve, or of who was fitted to that budget. Reads results, measures nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fidelity.contestants import SAMPLERS
from benchmarks.provenance import RESULTS as ALL_RESULTS

RESULTS = ALL_RESULTS / "fidelity"

#: What people call each family of `contestants` that tables and plots show.
TITLES = {
    "fewer steps": "fewer steps",
    "deepcache 0.1.1": "DeepCache 0.1.1",
    "default": "default",
    "auto": "auto",
    "calibrated": "calibrated",
    "spectrum": "Spectrum",
    "zeus": "ZEUS",
    "adaptivediffusion": "AdaptiveDiffusion",
    "sada": "SADA",
    "easycache": "EasyCache",
    "output reuse": "Output reuse",
}

#: One contestant's figures, as `run` writes them.
Row = Mapping[str, Any]


def folder_of(sampler: str, model: str) -> Path:
    """Where the file of a sampler lies: apart, if the model is not its own."""
    return RESULTS if model == SAMPLERS[sampler].model else RESULTS / model


def results(folder: Path = RESULTS) -> dict[str, Any]:
    """What was measured, by sampler; samplers without a file are left out."""
    files = {name: folder / f"{name}.json" for name in SAMPLERS}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


def points(rows: Sequence[Row], family: str) -> list[tuple[float, float]]:
    """Speed by the work of SD 1.5, and PSNR, of each contestant of the family that has both."""
    return [
        (1 / row["work_sd15"], row["psnr"])
        for row in rows
        if row["family"] == family and row["psnr"] is not None and row.get("work_sd15") is not None
    ]


def envelope(rows: Sequence[Row], family: str) -> list[tuple[float, float]]:
    """The family's points that no other of it beats in one without losing in the other.

    Returns:
        Speed and PSNR; the speed rises, the PSNR falls.
    """
    kept: list[tuple[float, float]] = []
    for speed, psnr in sorted(points(rows, family), reverse=True):
        if not kept or psnr > kept[-1][1]:
            kept.append((speed, psnr))
    return kept[::-1]


def psnr_at(rows: Sequence[Row], family: str, speed: float) -> float | None:
    """The PSNR in dB that the family has at a speed, between two points of its envelope.

    Linear in the work, which is 1 / speed; `None` where the envelope does not reach.
    """
    curve = envelope(rows, family)
    if not curve or not curve[0][0] <= speed <= curve[-1][0]:
        return None
    speeds, decibels = (np.array(each) for each in zip(*curve, strict=True))
    return float(np.interp(1 / speed, 1 / speeds[::-1], decibels[::-1]))


def fitted_to(rows: Sequence[Row], family: str, speed: float) -> Row | None:
    """The family's row that was fitted to the budget, if there is one."""
    own = (row for row in rows if row["family"] == family)
    return next((row for row in own if row["settings"].get("speed") == speed), None)


def nearest(rows: Sequence[Row], family: str, speed: float) -> Row | None:
    """The family's row whose work is nearest to that of the speed, if there is one."""
    own = [row for row in rows if row["family"] == family and row.get("work_sd15") is not None]
    return min(own, key=lambda row: abs(row["work_sd15"] - 1 / speed), default=None)
