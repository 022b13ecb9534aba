"""`Adaptive`, each picture a generation of its own, beside the default's plans of equal mean work.

What a picture gets is counted: full calls, and how often each branch was run. The default makes the
same pictures with the whole numbers of full steps below and above the mean of them; between the two
lies equal work. Work is that of SD 1.5. Run from the project's root:
``python -m benchmarks.fidelity.per_picture --sampler dpm-25``. The file has what was measured of
each sampler last, and its command.
"""

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fidelity.contestants import PROMPTED, SAMPLERS, Sampler, default_helper, on_model
from benchmarks.fidelity.run import Batch, batch_of, worst_tenth
from benchmarks.fidelity.subjects import emoji_prompts, shape_prompts
from benchmarks.fidelity.work import calls_of, counted_shares
from benchmarks.generating import generate
from benchmarks.provenance import RESULTS, command
from benchmarks.train.training import MODELS
from deepcache_patch import OUTPUT, Adaptive, DeepCacheHelper
from deepcache_patch.cli.loading import load_pipeline, use_scheduler
from deepcache_patch.measuring.environment import device_name, versions
from deepcache_patch.measuring.generation import accepted_arguments
from deepcache_patch.measuring.similarity import psnr

NAME = "fidelity.per_picture"
GUIDANCE = 4.0
FILE = RESULTS / "adaptive.json"


def results() -> dict[str, Any]:
    """What was measured, by sampler."""
    return dict(json.loads(FILE.read_text(encoding="utf-8"))["samplers"])


def main() -> None:
    """Measure one sampler after the other; the file is complete after each."""
    parser = argparse.ArgumentParser(command(NAME), description=__doc__.splitlines()[0])
    parser.add_argument("--sampler", nargs="+", choices=SAMPLERS, help="default: all of the model")
    parser.add_argument("--model", choices=sorted(PROMPTED), help="default: each sampler's own")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--tolerance", type=float, nargs="+", default=[Adaptive().tolerance])
    parser.add_argument("--branches", type=int, nargs="+", default=[OUTPUT])
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    given = [each for each in sys.argv[1:] if each != str(options.output)]
    for name, sampler in on_model(options.sampler, options.model).items():
        rows = measured(sampler, options.images, options.tolerance, options.branches)
        elsewhere = "" if sampler == SAMPLERS[name] else f", on {sampler.model}"
        report = {
            "command": command(NAME, *(each for each in given if each != "--output")),
            "versions": versions(),
            "device": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "title": sampler.title + elsewhere,
            "steps": sampler.steps,
            "images": options.images,
            "rows": rows,
        }
        file = options.output
        whole = {"command": command(NAME), "samplers": {}}
        if file.is_file():
            whole = json.loads(file.read_text(encoding="utf-8"))
        apart = f", branches {options.branches}" if options.branches != [OUTPUT] else ""
        whole["samplers"][name + elsewhere + apart] = report
        file.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(sampler.title, *map(told, rows), sep="\n", flush=True)


def measured(
    sampler: Sampler, images: int, tolerances: Sequence[float], branches: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each tolerance, and for each plan of the default that is near one in work."""
    pipe = load_pipeline(str(MODELS / sampler.model), torch.device("cpu"), torch.float32)
    use_scheduler(pipe, sampler.scheduler)
    pipe.set_progress_bar_config(disable=True)
    guidance = GUIDANCE if "prompt" in accepted_arguments(pipe) else None
    prompts, _ = (emoji_prompts if sampler.model == "emoji" else shape_prompts)(images)
    together = batch_of(pipe, prompts, 0, guidance)
    alone = [batch_of(pipe, prompts[each : each + 1], each, guidance) for each in range(images)]

    def made(batch: Batch, around: AbstractContextManager[Any]) -> np.ndarray:
        call = batch.call | {"num_inference_steps": sampler.steps}
        with around:
            return generate(pipe, pipe.unet, call, batch.seeds, label="pictures").pictures

    plain = made(together, nullcontext())
    rows = []
    for tolerance in tolerances:
        helper = DeepCacheHelper(pipe, schedule=Adaptive(tolerance, branches))
        pictures, plans = [], []
        for batch in alone:
            pictures.extend(made(batch, helper))
            plans.extend(list(each.plan) for each in helper.last_generations.values())
        row = figures(plain, pictures, plans)
        row["shallow"] = {str(branch): 0.0 for branch in branches} | row["shallow"]
        rows.append({"name": repr(helper.schedule)} | row)
    calls = calls_of(pipe, sampler.steps)
    means = [row["work"] * calls for row in rows]
    near = {whole(mean) for mean in means for whole in (math.floor, math.ceil)}
    for full_steps in sorted(near):
        helper = default_helper(pipe, full_steps, calls)
        pictures = list(made(together, helper))
        plans = [list(each.plan) for each in helper.last_generations.values()] * images
        rows.append({"name": "default"} | figures(plain, pictures, plans))
    for row, mean in zip(rows, means, strict=False):
        row["default_at_equal_work"] = {
            figure: _between(rows[len(means) :], mean, figure) for figure in ("psnr", "worst_tenth")
        }
    return rows


def figures(
    plain: np.ndarray, pictures: Sequence[np.ndarray], plans: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """Of the pictures of one contestant: their plans, work and likeness to the plain ones."""
    shares = {"full": 1.0} | counted_shares("sd15")
    decibels = [psnr(*pair) for pair in zip(plain, pictures, strict=True)]
    finite = [each for each in decibels if math.isfinite(each)]
    full = [plan.count("full") for plan in plans]
    ran = Counter(entry for plan in plans for entry in plan if entry != "full")
    work = [sum(shares[entry] for entry in plan) / len(plan) for plan in plans]
    return {
        "full_steps": statistics.fmean(full),
        "full_steps_least": min(full),
        "full_steps_most": max(full),
        "full_steps_of_each": full,
        "shallow": {str(branch): ran[branch] / len(plans) for branch in sorted(ran)},
        "work": statistics.fmean(work),
        "psnr": statistics.fmean(finite) if finite else None,
        "psnr_of_each": [each if math.isfinite(each) else None for each in decibels],
        "worst_tenth": worst_tenth(decibels),
    }


def _between(rows: Sequence[dict[str, Any]], mean: float, figure: str) -> float | None:
    """On the line between the default's plans of the nearest numbers of full steps."""
    points = sorted((row["full_steps"], row[figure]) for row in rows)
    return float(np.interp(mean, *zip(*points, strict=True)))


def told(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    beside = row.get("default_at_equal_work", {})
    return (
        f"  {row['name']:55} full {row['full_steps']:5.2f} "
        f"({row['full_steps_least']}-{row['full_steps_most']}) shallow {row['shallow']} "
        f"PSNR {row['psnr']:.2f} worst tenth {row['worst_tenth']:.2f} "
        + " ".join(f"default's {name} {value:.2f}" for name, value in beside.items())
    )


if __name__ == "__main__":
    main()
