"""The tables of published papers: speed, PSNR, LPIPS and FID against the plain pictures.

All contestants draw the same prompts from the same seeds, batch by batch in turn and in one
process. A run that was broken off goes on where it was; one that is complete only measures anew.
Run from the project's root:
``python -m benchmarks.published --model MODEL --prompts FILE --sampler dpmpp-2m --steps 50``.
"""

import argparse
import copy
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.generating import Generation, generate
from benchmarks.provenance import command
from benchmarks.published import contestants as field
from benchmarks.published.contestants import Contestant, contestants, helper_settings
from benchmarks.published.gallery import Figures, Gallery
from benchmarks.published.metrics import Metrics, versions_of_metrics
from benchmarks.published.report import measured, table
from benchmarks.published.samplers import require_sampler, use_sampler
from deepcache_patch import OUTPUT, DeepCacheHelper, Uniform
from deepcache_patch.cli.files import lines_of
from deepcache_patch.cli.loading import choose_device, choose_dtype, load_pipeline
from deepcache_patch.errors import first_line
from deepcache_patch.measuring.environment import device_name, versions
from deepcache_patch.measuring.generation import batched_call
from deepcache_patch.measuring.similarity import require_metrics
from deepcache_patch.running.pipeline.components import unets_of

#: What is answered with one line: something that was asked for cannot be done.
_REFUSALS = (ImportError, OSError, TypeError, ValueError)

#: Makes a batch of pictures; more arguments of the pipeline's are given by name.
Make = Callable[..., Generation]


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, measure, and write; 2 if something asked for cannot be done."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_args(arguments)
    try:
        prompts, device, dtype = _asked_for(options)
        settings = _settings(options, prompts, device, dtype)
        gallery = Gallery(options.output, len(prompts), options.batch_size)
        _refuse_others(gallery, settings)
        if gallery.missing():
            _fill(gallery, options, settings, prompts, device, dtype)
    except _REFUSALS as error:
        print(f"published: error: {first_line(error)}", file=sys.stderr)
        return 2
    metrics = Metrics(device)
    report = {
        "command": command("published", *arguments),
        **(gallery.settled() or {}),
        "measured_with": versions() | versions_of_metrics(),
        "lpips_net": "alex",
        **measured(gallery, metrics),
        "notes": metrics.notes,
    }
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (options.output / "results.json").write_text(text, encoding="utf-8")
    (options.output / "table.md").write_text(table(report), encoding="utf-8")
    print(table(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(command("published"), description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="folder of a diffusers pipeline, or hub id")
    add("--prompts", required=True, type=Path, metavar="FILE", help="one prompt in a line")
    add("--output", required=True, type=Path, metavar="DIR", help="made if it is not there")
    add("--sampler", default="dpmpp-2m", help="dpmpp-2m (default), euler, ddim, … or a class")
    add("--karras", action="store_true", help="by Karras' noise levels")
    add("--steps", type=_positive, default=50, help="of the plain pipeline (default: 50)")
    add("--count", type=_positive, help="the first so many prompts (default: all)")
    add("--batch-size", type=_positive, default=1, help="pictures made at a time (default: 1)")
    add("--seed", type=int, default=0, help="of the first picture (default: 0)")
    add("--guidance-scale", type=float, help="default: the pipeline's own")
    add("--height", type=_positive, help="default: the pipeline's own")
    add("--width", type=_positive, help="default: the pipeline's own")
    add("--device", help="default: the best that there is")
    add("--dtype", help="default: float16 on a GPU, else float32")
    add("--variant", help="of the files with weights, such as fp16")
    several: dict[str, Any] = {"action": "append", "default": []}
    add("--fewer-steps", type=_positive, metavar="N", help="several times, if you like", **several)
    add("--deepcache", type=_positive, metavar="N", help="interval of DeepCache 0.1.1", **several)
    add("--ours", metavar="NAME=VALUE,…", help="such as schedule=auto,interval=3", **several)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _asked_for(options: argparse.Namespace) -> tuple[list[str], torch.device, torch.dtype]:
    """Prompts, device and dtype; the contestants' settings are completed.

    Raises:
        ValueError: If something is wrong that can be seen without the model.
        OSError: If the prompts cannot be read.
        ImportError: If a package is not there.
    """
    require_metrics()
    require_sampler(options.sampler, karras=options.karras)
    for text in options.ours:
        helper_settings(text)
    shares = [max(1, round(options.steps * share)) for share in field.FEWER_STEPS]
    options.fewer_steps = list(dict.fromkeys(options.fewer_steps or shares))
    options.deepcache = list(dict.fromkeys(options.deepcache or field.DEEPCACHE_INTERVALS))
    options.ours = list(dict.fromkeys(options.ours or field.OURS))
    if importlib.util.find_spec("DeepCache") is None:
        raise ImportError("DeepCache takes part, too: pip install DeepCache==0.1.1")
    prompts = lines_of(options.prompts.read_text(encoding="utf-8-sig"))
    if len(prompts) < (options.count or 1):
        raise ValueError(f"{options.prompts} has {len(prompts)} prompts, not {options.count or 1}")
    device = choose_device(options.device)
    return prompts[: options.count], device, choose_dtype(options.dtype, device)


def _settings(
    options: argparse.Namespace, prompts: Sequence[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """All that pictures and times depend on, as far as it can be known without the model."""
    given = {name: value for name, value in vars(options).items() if name != "output"}
    return {
        "device": device_name(device),
        "versions": versions() | {"DeepCache": importlib.metadata.version("DeepCache")},
        "options": given
        | {
            "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12],
            "count": len(prompts),
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
        },
    }


def _refuse_others(gallery: Gallery, settings: dict[str, Any]) -> None:
    """Check that what the folder holds belongs to this command, and this machine if there is more.

    Raises:
        ValueError: If it does not.
    """
    before = gallery.settled()
    if before is None:
        return
    pairs = [
        (f"--{name.replace('_', '-')}", before["options"].get(name), value)
        for name, value in settings["options"].items()
    ]
    if gallery.missing():
        pairs += [(name, before[name], settings[name]) for name in ("device", "versions")]
    changes = [f"{name} was {was!r}, is {now!r}" for name, was, now in pairs if was != now]
    if changes:
        raise ValueError(
            f"{gallery.folder} holds pictures of another command ({'; '.join(changes)}): give that "
            "again, or another --output"
        )


def _fill(
    gallery: Gallery,
    options: argparse.Namespace,
    settings: dict[str, Any],
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Let everyone draw the batches that are missing.

    Raises:
        ValueError: If the model cannot be loaded, or does not fit what is asked.
        TypeError: If the pipeline has no U-Net that can be cut, or does not take an argument.
    """
    pipe = load_pipeline(options.model, device, dtype, variant=options.variant)
    if list(unets_of(pipe)) != ["unet"]:
        raise TypeError(f"{type(pipe).__name__}: only pipelines with one U-Net are compared here")
    use_sampler(pipe, options.sampler, karras=options.karras)
    pipe.set_progress_bar_config(disable=True)
    make = _maker(pipe, options, prompts)
    first, *_ = missing = gallery.missing()
    scout = DeepCacheHelper(pipe, schedule=Uniform(2))
    shares: dict[int, float | None] = {}
    everyone = contestants(pipe, shares, options)
    with scout:  # the warm-up: a full step and a shallow one
        make(first, num_inference_steps=2)
    shares.update({OUTPUT: 0.0} | {branch.number: branch.share for branch in scout.branches})
    gallery.settle(settings | {"scheduler": type(pipe.scheduler).__name__})
    broken = _learn(everyone, make, first, beyond=len(prompts))
    for before in gallery.figures():
        broken |= {name: each for name, each in before.items() if "error" in each}
    with tqdm(total=len(missing) * len(everyone), desc="drawing", mininterval=5) as progress:
        for batch in missing:
            figures: dict[str, Figures] = {}
            # Each batch is begun by another one: what slows the machine for a while does not fall
            # on the same contestants in every batch.
            shift = gallery.batches().index(batch) % len(everyone)
            for each in (*everyone[shift:], *everyone[:shift]):
                progress.set_postfix_str(each.name, refresh=False)
                drawn = broken.get(each.name) or _draw(each, make, gallery, batch)
                figures[each.name] = drawn
                if "error" in drawn:
                    broken[each.name] = drawn
                progress.update()
            gallery.close(batch, {each.name: figures[each.name] for each in everyone})


def _maker(pipe: Any, options: argparse.Namespace, prompts: Sequence[str]) -> Make:
    """What makes the pictures of a batch.

    Raises:
        TypeError: If the pipeline does not take what was given.
    """
    given = {name: vars(options)[name] for name in ("guidance_scale", "height", "width")}
    given = {name: value for name, value in given.items() if value is not None}
    fresh = copy.deepcopy(pipe.scheduler)

    def call(batch: range) -> dict[str, Any]:
        texts = [prompts[index] for index in batch]
        return batched_call(pipe, {**given, "prompt": texts}, len(batch))

    def make(batch: range, *, beyond: int = 0, **more: Any) -> Generation:
        # Some pipelines read what the last generation left in their scheduler.
        pipe.scheduler = copy.deepcopy(fresh)
        seeds = [options.seed + beyond + index for index in batch]
        made = generate(pipe, pipe.unet, call(batch) | more, seeds, label="")
        if not np.isfinite(made.pictures).all():
            raise ArithmeticError("the pictures are not finite; --dtype float32 may help")
        return made

    call(range(1))
    return make


def _learn(
    everyone: Sequence[Contestant], make: Make, first: range, *, beyond: int
) -> dict[str, Figures]:
    """Let schedules learn, from prompts of the set and none of its seeds; who failed, by name."""
    broken: dict[str, Figures] = {}
    for each in everyone:
        run = functools.partial(make, first, beyond=beyond, num_inference_steps=each.steps)
        try:
            each.learn(run)
        except Exception as error:
            broken[each.name] = _failure(each, error)
    return broken


def _draw(who: Contestant, make: Make, gallery: Gallery, batch: range) -> Figures:
    """One generation; a contestant may fail, but not the plain pipeline."""
    try:
        with who.around() as tally:
            made = make(batch, num_inference_steps=who.steps)
            work = tally(made.timing.calls)
    except Exception as error:
        if who.name == "plain":
            raise
        return _failure(who, error)
    gallery.hang(who.folder, batch, made.pictures)
    return {"loop_seconds": made.timing.loop_seconds, **asdict(work)}


def _failure(who: Contestant, error: Exception) -> Figures:
    tqdm.write(f"{who.name} failed: {first_line(error)}", file=sys.stderr)
    return {"error": first_line(error)}
