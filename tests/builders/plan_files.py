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
    "interval": 3,
    "seen": 4,
    "plan": [FULL, 0, FULL, 0, FULL],
    "error": 0.125,
    "blends": {
        "1": {"a": 0, "b": 0, "gain": [0.5, -1], "trend": [0, 0.0], "offset": [1.0, 2]},
        "3": {"a": 2, "b": 0, "gain": [0.25, 1e-6], "trend": [1, 0.5], "offset": [-3.5, 0]},
    },
}

#: Not in every schedule.
REACHED = {
    "work": 2.12,
    "speed": 2.05,
    "quartiles": [1.98, 2.11],
    "timings": 5,
    "psnr": 38.2,
    "worst_psnr": 33.1,
}

WHOLE = {"version": 1, "schedules": [SCHEDULE]}

VALID = json.dumps(WHOLE).encode()
