"""A file of calibrated schedules, as it has to be."""

import json

from deepcache_patch import (
    FULL,
)

SCHEDULE = {
    "unet": {"class": "UNet2DConditionModel", "block_out_channels": [32, 64], "act_fn": "silu"},
    # What DPM-Solver++ has: JSON knows no infinity, Python's does.
    "scheduler": {"class": "DPMSolverMultistepScheduler", "lambda_min_clipped": -float("inf")},
    "timesteps": [801.0, 601.0, 401.0, 201.0, 1.0],
    "plan": [FULL, FULL, -1, FULL, -1],
    "weights": [
        {"steps": [2, 1, 0], "weights": [0.25]},
        {"steps": [4, 3, 1, 0], "weights": [0.5, -1e-06]},
    ],
}

#: Not in every schedule.
REACHED = {
    "work": 2.12,
    "speed": 2.05,
    "quartiles": [1.98, 2.11],
    "timings": 5,
    "psnr": 38.2,
    "worst_psnr": 33.1,
    "default_psnr": 35.4,
    "pictures": 8,
}

WHOLE = {"version": 2, "schedules": [SCHEDULE]}

VALID = json.dumps(WHOLE).encode()
