"""What the speed costs: pictures of faster pipelines against those of the plain one.

Every contestant of a sampler (see `contestants`) draws the same prompts from the same
seeds, batch by batch in turn with the plain pipeline and in one process. Counted is the work of
each generation; measured are the time of the denoising loop, PSNR and SSIM against the plain
pictures, Fréchet distances in a classifier's features, and how many prompts the classifier reads
back (see `subjects`). One run measures one sampler or several; each gets a file of its own as soon
as it is complete. Run from the project's root: ``python -m benchmarks.fidelity --sampler ddim-50``.
"""

import argparse
import importlib.metadata
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.fidelity.contestants import (
    BY_DEFAULT,
    FAMILIES,
    SAMPLERS,
    Contestant,
    Sampler,
    contestants,
    on_model,
)
from benchmarks.fidelity.curves import folder_of
from benchmarks.fidelity.frechet import frechet_distance
from benchmarks.fidelity.subjects import SUBJECTS, Subject
from benchmarks.fidelity.work import Calls, Shares, calls_made, counted_shares, counting, own_shares
from benchmarks.generating import Generation, generate
from benchmarks.provenance import command
from benchmarks.train.training import MODELS
from deepcache_patch.cli.loading import choose_device, load_pipeline, use_scheduler
from deepcache_patch.errors import first_line
from deepcache_patch.measuring.environment import device_name, versions
from deepcache_patch.measuring.generation import accepted_arguments, batched_call
from deepcache_patch.measuring.similarity import psnr, ssim


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of the pipeline, but for its steps, and the seeds of its pictures."""

    call: dict[str, Any]
    seeds: range


@dataclass
class Record:
    """What a contestant made so far, or why it makes nothing more.

    Attributes:
        contestant: Who.
        generations: One for each batch.
        calls: What the U-Net calls of each generation were.
        error: Of the first generation that failed.
    """

    contestant: Contestant
    generations: list[Generation] = field(default_factory=list)
    calls: list[Calls] = field(default_factory=list)
    error: str | None = None

    @property
    def pictures(self) -> np.ndarray:
        """(pictures, height, width, 3), floats in 0..1."""
        return np.concatenate([each.pictures for each in self.generations])

    def draw(self, pipe: Any, batch: Batch) -> None:
        """One generation, or none after one that failed; only the plain one may not fail."""
        if self.error is not None:
            return
        with self._failing():
            with self.contestant.around() as entered, counting(pipe.unet) as deep:
                made = self._run(pipe, batch)
            if not np.isfinite(made.pictures).all():
                raise ArithmeticError("the pictures are not finite")
            branch = self.contestant.settings.get("branch")
            self.calls.append(calls_made(entered, made.timing.calls, deep.calls, branch))
            self.generations.append(made)

    def fit(self, pipe: Any, batch: Batch) -> None:
        """What the contestant does before it is measured, if anything."""
        fit = self.contestant.fit
        if fit is not None:
            with self._failing():
                fit(lambda: self._run(pipe, batch).pictures)

    def _run(self, pipe: Any, batch: Batch) -> Generation:
        call = batch.call | {"num_inference_steps": self.contestant.steps}
        return generate(pipe, pipe.unet, call, batch.seeds, label=self.contestant.name)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.contestant.family == "plain":
                raise
            said, name = first_line(error), type(error).__name__
            self.error = said if said.startswith(name) else f"{name}: {said}"
            tqdm.write(f"{self.contestant.name} failed: {self.error}")


def main() -> None:
    """Generate, measure, print and write JSON, one sampler after the other."""
    parser = argparse.ArgumentParser(command("fidelity"), description=__doc__.splitlines()[0])
    parser.add_argument("--sampler", nargs="+", choices=SAMPLERS, help="default: all of the model")
    parser.add_argument("--model", choices=SUBJECTS, help="default: each sampler's own")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(BY_DEFAULT))
    parser.add_argument(
        "--spanning",
        action="store_true",
        help="draw curves: intervals, branches and shares of the steps in the place of budgets",
    )
    parser.add_argument(
        "--update", action="store_true", help="keep what the file says of the other families"
    )
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder of the JSON files; default: by model")
    options = parser.parse_args()
    if options.images < 2:
        parser.error("--images: a spread needs at least 2")
    try:
        device = choose_device(options.device)
        samplers = on_model(options.sampler, options.model)
        for model in {sampler.model for sampler in samplers.values()}:
            SUBJECTS[model](options.images)
    except ValueError as error:
        parser.error(str(error))
    compute_exactly()
    for name, sampler in samplers.items():
        folder = options.output or folder_of(name, sampler.model)
        folder.mkdir(parents=True, exist_ok=True)
        report = measured(name, sampler, device, options)
        file = folder / f"{name}.json"
        if options.update and file.is_file():
            report = updated(json.loads(file.read_text(encoding="utf-8")), report)
        file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print(summary(report), flush=True)


def compute_exactly() -> None:
    """On CUDA: float32 in full, and the same kernels each time.

    What is compared are differences of pictures: those of TF32's ten bits would be among them.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def measured(
    name: str, sampler: Sampler, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one sampler, as it goes into its file."""
    subject = SUBJECTS[sampler.model](options.images)
    pipe = load_pipeline(str(MODELS / sampler.model), device, torch.float32)
    use_scheduler(pipe, sampler.scheduler)
    pipe.set_progress_bar_config(disable=True)
    guidance = options.guidance_scale if "prompt" in accepted_arguments(pipe) else None

    taking_part = contestants(pipe, sampler, options.only, spanning=options.spanning)
    records = [Record(each) for each in taking_part]
    shares = {"work": own_shares(pipe)} | {
        f"work_{network}": counted_shares(network) for network in ("sd15", "sdxl")
    }
    calibration = batch_of(pipe, subject.calibration, options.images, guidance)
    batches = [
        batch_of(pipe, subject.prompts[first : first + options.batch_size], first, guidance)
        for first in range(0, options.images, options.batch_size)
    ]
    share = take_turns(pipe, records, calibration, batches, name)

    finished = [each for each in records if each.error is None]
    return {
        "command": command("fidelity", *sys.argv[1:]),
        "versions": versions() | _version_of_deepcache(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_share": share,
        "sampler": name,
        "title": sampler.title,
        "model": sampler.model,
        "scheduler": type(pipe.scheduler).__name__,
        "steps": sampler.steps,
        "guidance_scale": guidance,
        "images": options.images,
        "batch_size": options.batch_size,
        "seeds": [0, options.images - 1],
        "calibration": {
            "seeds": [calibration.seeds[0], calibration.seeds[-1]],
            "prompts": calibration.call.get("prompt"),
        },
        "shares": shares,
        "feature_dimensions": subject.space.dimensions,
        "feature_variance_kept": subject.space.share,
        "rows": [
            figures(each, records[0], subject) | figures_of_work(each, records[0], shares)
            for each in finished
        ],
        "failed": [
            {"name": each.contestant.name, "family": each.contestant.family, "error": each.error}
            for each in records
            if each.error is not None
        ],
    }


def updated(before: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The earlier report with the families of a later one in the place of its own.

    The plain pipeline stays as it was; each family was measured beside a plain one of its own.
    """
    measured_now = {row["family"] for row in (*report["rows"], *report["failed"])} - {"plain"}
    # A file may have rows of families that are no more: they come last.
    order = [*FAMILIES, *sorted({row["family"] for row in before["rows"]} - FAMILIES.keys())]

    def merged(part: str) -> list[dict[str, Any]]:
        kept = [row for row in before[part] if row["family"] not in measured_now]
        new = [row for row in report[part] if row["family"] in measured_now]
        return sorted(kept + new, key=lambda row: order.index(row["family"]))

    kept = ("command", "versions", "device", "threads", "cpu_share", "batch_size", "calibration")
    note = {key: report[key] for key in kept}
    earlier = (
        {**each, "families": [one for one in each["families"] if one not in measured_now]}
        for each in before.get("updates", [])
    )
    kept_notes = [each for each in earlier if each["families"]]
    notes = [*kept_notes, {"families": sorted(measured_now), **note}]
    return {**before, "updates": notes, "rows": merged("rows"), "failed": merged("failed")}


def batch_of(pipe: Any, prompts: Sequence[str], first: int, guidance: float | None) -> Batch:
    """A picture for each prompt, with seeds from `first` on; no prompts without guidance."""
    seeds = range(first, first + len(prompts))
    call: dict[str, Any] = {}
    if guidance is not None:
        call = {"prompt": list(prompts), "guidance_scale": guidance}
    return Batch(batched_call(pipe, call, len(seeds)), seeds)


def take_turns(
    pipe: Any, records: Sequence[Record], calibration: Batch, batches: Sequence[Batch], name: str
) -> float:
    """Let every contestant draw every batch, each batch begun by another one.

    So what slows the machine for a while does not fall on the same contestants in every batch.

    Returns:
        Seconds of the processor for each second that passed: where this is clearly less than 1
        with one thread on a CPU, others were at work there, and the times are to be distrusted.
    """
    warm_up = batches[0].call | {"num_inference_steps": 2}
    generate(pipe, pipe.unet, warm_up, batches[0].seeds, label="warm-up")
    for record in records:
        record.fit(pipe, calibration)
    start, processor_start = time.perf_counter(), time.process_time()
    with tqdm(total=len(batches) * len(records), desc=name, mininterval=5) as progress:
        for number, batch in enumerate(batches):
            shift = number * len(records) // len(batches)
            for record in (*records[shift:], *records[:shift]):
                progress.set_postfix_str(record.contestant.name, refresh=False)
                record.draw(pipe, batch)
                progress.update()
    return (time.process_time() - processor_start) / (time.perf_counter() - start)


def figures(record: Record, plain: Record, subject: Subject) -> dict[str, Any]:
    """Medians over the batches and means over the pictures, against those of the plain pipeline.

    Args:
        record: A contestant that has finished.
        plain: The plain pipeline's.
        subject: What was drawn.
    """
    pairs = list(zip(plain.pictures, record.pictures, strict=True))
    ratios = [
        before.timing.loop_seconds / after.timing.loop_seconds
        for before, after in zip(plain.generations, record.generations, strict=True)
    ]
    speedup = statistics.median(ratios)
    # Infinite where a picture is the same: an adaptive schedule may run a batch in full.
    all_decibels = [psnr(*pair) for pair in pairs]
    decibels = [value for value in all_decibels if math.isfinite(value)]
    pictures, others = (torch.from_numpy(each.pictures).movedim(3, 1) for each in (record, plain))
    features, drawings = subject.space.describe(pictures), subject.drawings(pictures.shape[-1])
    return {
        "name": record.contestant.name,
        "family": record.contestant.family,
        "settings": dict(record.contestant.settings),
        "steps": record.contestant.steps,
        "loop_seconds": [each.timing.loop_seconds for each in record.generations],
        "speedup": speedup,
        "relative_time": 1 / speedup,
        "psnr": statistics.fmean(decibels) if decibels else None,
        "psnr_worst_tenth": worst_tenth(all_decibels),
        "psnr_each": [round(each, 3) if math.isfinite(each) else None for each in all_decibels],
        "ssim": statistics.fmean(ssim(*pair) for pair in pairs),
        "frechet": frechet_distance(subject.space.describe(others), features),
        "frechet_drawings": None if drawings is None else frechet_distance(drawings, features),
        "read_back": subject.read_back(pictures),
    }


def worst_tenth(decibels: Sequence[float]) -> float | None:
    """The mean of the worst tenth of the pictures, at least one; `None` where it is infinite."""
    worst = statistics.fmean(sorted(decibels)[: max(1, len(decibels) // 10)])
    return worst if math.isfinite(worst) else None


def figures_of_work(record: Record, plain: Record, shares: Mapping[str, Shares]) -> dict[str, Any]:
    """Full calls, and the work as a part of the plain pipeline's, means over the generations.

    Args:
        record: A contestant that has finished.
        plain: The plain pipeline's.
        shares: What a shallow call costs, by the name of the figure; where it costs nobody knows
            what, the figure is `None`.
    """
    counts = [each.full for each in record.calls]
    most = statistics.fmean(each.full for each in plain.calls)
    row: dict[str, Any] = {
        "full_steps": statistics.fmean(counts),
        "full_steps_least": min(counts),
        "full_steps_most": max(counts),
    }
    for name, known in shares.items():
        done = [each.work(known) for each in record.calls]
        row[name] = None if None in done else statistics.fmean(done) / most
    return row


def summary(report: dict[str, Any]) -> str:
    """The figures as a table for the terminal."""
    lines = [
        f"{report['title']}: speedup, work of SD 1.5, PSNR, worst tenth, SSIM, Fréchet distance, "
        "prompts read back"
    ]
    for row in report["rows"]:
        columns = [
            f"{row['name']:40}",
            f"{row['speedup']:6.2f}",
            *(_or_dash(row.get(name)) for name in ("work_sd15", "psnr", "psnr_worst_tenth")),
            f"{row['ssim']:6.3f}",
            f"{row['frechet']:8.4f}",
            "" if row["read_back"] is None else f"{row['read_back']:6.1%}",
        ]
        lines.append(" ".join(columns))
    lines += [f"{each['name']:40} failed: {each['error']}" for each in report["failed"]]
    return "\n".join(lines)


def _or_dash(value: float | None) -> str:
    return "     –" if value is None else f"{value:6.2f}"


def _version_of_deepcache() -> dict[str, str]:
    try:
        return {"DeepCache": importlib.metadata.version("DeepCache")}
    except importlib.metadata.PackageNotFoundError:
        return {}
