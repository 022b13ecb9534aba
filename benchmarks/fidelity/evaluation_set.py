"""A large set of pictures to evaluate, made by one process or several, and resumable.

Picture *i* belongs to line *i* of the prompts and to seed + *i*. The pictures are made in batches
whose members never change, and batch *b* is made by process *b* mod *n*: so a picture is the same,
bit by bit, however many processes there are. Each process has a pipeline and a helper of its own.
Pictures that are there already are not made again. Run from the project's root, plainly or with
``accelerate launch`` or ``torchrun``:
``accelerate launch --num_processes 2 -m benchmarks.fidelity.evaluation_set MODEL PROMPTS OUTPUT``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env, tqdm
from PIL import Image
from torch import nn

from deepcache_patch import OUTPUT, Auto, DeepCacheHelper
from deepcache_patch.cli.loading import choose_device, choose_dtype, load_pipeline, use_scheduler
from deepcache_patch.measuring.environment import device_name, versions
from deepcache_patch.measuring.generation import (
    accepted_arguments,
    as_floats,
    batched_call,
    seeded_call,
)

#: How long the others wait while the main process learns.
_PATIENCE = timedelta(hours=2)

#: What is answered with one line: how reading, diffusers and this package say that something that
#: was asked for cannot be done.
_REFUSALS = (OSError, TypeError, ValueError)


@dataclass(frozen=True)
class PictureSet:
    """Which pictures there are, and in which batches.

    Attributes:
        prompts: One for each picture; or `None`, where the pipeline takes none.
        count: Of the pictures.
        batch: How many are made at a time.
        seed: Of the first picture.
        folder: Where they are.
    """

    prompts: tuple[str, ...] | None
    count: int
    batch: int
    seed: int
    folder: Path

    def batches(self) -> list[range]:
        """Pictures that are made together, the same whoever makes them."""
        starts = range(0, self.count, self.batch)
        return [range(start, min(start + self.batch, self.count)) for start in starts]

    def missing(self, process: int, processes: int) -> list[range]:
        """The batches of one process that are not complete."""
        own = self.batches()[process::processes]
        return [each for each in own if not all(self.path(index).exists() for index in each)]

    def path(self, index: int) -> Path:
        """Of a picture."""
        return self.folder / f"{index:06d}.png"

    def call(self, batch: range) -> dict[str, Any]:
        """What of the pipeline's arguments belongs to the batch."""
        if self.prompts is None:
            return {}
        return {"prompt": [self.prompts[index] for index in batch]}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures of this process; 2 if something that was asked for cannot be done."""
    arguments = _parser().parse_args(argv)
    if arguments.branch is None:
        arguments.branch = OUTPUT if arguments.auto else 0
    # What accelerate does not look at by itself, and then takes each process for the only one.
    cpu = arguments.cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=cpu or choose_device().type == "cpu", timeout=_PATIENCE)
    try:
        if not state.is_main_process:
            diffusers.utils.logging.disable_progress_bar()
            transformers.utils.logging.disable_progress_bar()
        pictures, pipe = _asked_for(arguments), _loaded(arguments, state.device)
        make = _maker(pipe, pictures, arguments)
        # Before anything is written, because it refuses what the pipeline does not have.
        helper = None if arguments.plain else _helper(pipe, arguments)
        settings = _settings(pipe, pictures, arguments)
        _in_main_process(state, lambda: _settle(pictures.folder / "settings.json", settings))
        if helper is not None and arguments.auto:
            learned = Path(pictures.folder, "learned.json")
            _in_main_process(state, lambda: _learn(learned, pipe, pictures, make, arguments))
            # The main process, too, reads the file: what it learned itself has more digits.
            helper.follow(_auto(learned, arguments))
    except _REFUSALS as error:
        if state.is_main_process:
            print(f"evaluation_set: error: {error}", file=sys.stderr)
        return 2
    finally:
        # From here on no process waits for another, so none can wait too long.
        state.destroy_process_group()
    with helper or nullcontext():
        for batch in tqdm(pictures.missing(state.process_index, state.num_processes)):
            made = make(batch, range(pictures.seed + batch.start, pictures.seed + batch.stop))
            for index, picture in zip(batch, made, strict=True):
                _save(pictures.path(index), picture)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a diffusers pipeline, or hub id")
    add(
        "prompts",
        metavar="PROMPTS",
        help="text file, one prompt in a line; or how many pictures, if the pipeline takes none",
    )
    add("output", metavar="OUTPUT", type=Path, help="folder, made if it does not exist")
    add("--seed", type=int, default=0, metavar="N", help="of the first picture (default: 0)")
    add("--batch", type=int, default=8, metavar="N", help="pictures made at a time (default: 8)")
    add("--steps", type=int, metavar="N", help="default: the pipeline's own")
    add("--guidance-scale", type=float, metavar="X", help="default: the pipeline's own")
    add("--scheduler", metavar="NAME", help="default: the pipeline's own")
    add("--interval", type=int, default=3, metavar="N", help="default: 3")
    add("--branch", type=int, metavar="K", help="default: 0; with --auto -1, where alone it learns")
    schedule = parser.add_mutually_exclusive_group()
    schedule.add_argument(
        "--auto",
        action="store_true",
        help="go by what one generation teaches, kept in OUTPUT/learned.json",
    )
    schedule.add_argument("--plain", action="store_true", help="without a helper")
    add("--dtype", metavar="NAME", help="default: float16 on a GPU, else float32")
    add("--cpu", action="store_true", help="even where there is a GPU")
    add("--threads", type=int, default=1, metavar="N", help="of each process on a CPU (default: 1)")
    return parser


def _asked_for(arguments: argparse.Namespace) -> PictureSet:
    """The set that is meant; its folder exists afterwards.

    Raises:
        ValueError: If it would be empty.
        OSError: If the prompts cannot be read or the folder cannot be made.
    """
    prompts = None
    if arguments.prompts.isdecimal():
        count = int(arguments.prompts)
    else:
        with open(arguments.prompts, encoding="utf-8") as lines:
            prompts = tuple(line.strip() for line in lines)
        count = len(prompts)
    if min(count, arguments.batch) < 1:
        raise ValueError(f"{count} pictures in batches of {arguments.batch}: nothing to make")
    arguments.output.mkdir(parents=True, exist_ok=True)
    return PictureSet(prompts, count, arguments.batch, arguments.seed, arguments.output)


def _loaded(arguments: argparse.Namespace, device: torch.device) -> Any:
    # Both can change the last bits of a picture.
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.deterministic = True
    pipe = load_pipeline(arguments.model, device, choose_dtype(arguments.dtype, device))
    if arguments.scheduler is not None:
        use_scheduler(pipe, arguments.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _maker(
    pipe: Any, pictures: PictureSet, arguments: argparse.Namespace
) -> Callable[[range, range], np.ndarray]:
    """What makes the pictures of a batch, given the seeds as well.

    Raises:
        TypeError: If the pipeline does not take what was given, or needs what was not.
    """
    given = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    given = {name: value for name, value in given.items() if value is not None}
    schedulers = {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, diffusers.SchedulerMixin)
    }

    def call(batch: range) -> dict[str, Any]:
        return batched_call(pipe, {**given, **pictures.call(batch)}, len(batch))

    def make(batch: range, seeds: range) -> np.ndarray:
        # Some pipelines read what the last generation left in their scheduler.
        for name, fresh in schedulers.items():
            setattr(pipe, name, copy.deepcopy(fresh))
        return as_floats(seeded_call(pipe, call(batch), seeds).images)

    if pictures.prompts is None and "prompt" in accepted_arguments(pipe):
        raise TypeError(f"{type(pipe).__name__} draws what a text says: give a file of prompts")
    call(pictures.batches()[0])
    return make


def _settings(pipe: Any, pictures: PictureSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the pictures depend on; JSON's types, and no value has parts."""
    kind = "plain" if arguments.plain else "auto" if arguments.auto else "uniform"
    text = "\n".join(pictures.prompts or ())
    names = ("model", "seed", "batch", "steps", "guidance_scale", "scheduler", "threads")
    return {
        **{name: vars(arguments)[name] for name in names},
        "weights": _fingerprint(pipe),
        "pictures": pictures.count,
        "prompts": hashlib.sha256(text.encode()).hexdigest(),
        "schedule": kind,
        **({} if arguments.plain else {k: vars(arguments)[k] for k in ("interval", "branch")}),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": device_name(pipe.device),
        **versions(),
    }


def _fingerprint(pipe: Any) -> str:
    """Tells a model from the same after more training: by the first values of each tensor."""
    digest = hashlib.sha256()
    for name, part in pipe.components.items():
        for key, tensor in part.state_dict().items() if isinstance(part, nn.Module) else ():
            digest.update(f"{name}.{key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten()[:16].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _in_main_process(state: PartialState, run: Callable[[], None]) -> None:
    """Run something in the main process only, while the others wait.

    Raises:
        ValueError: In all processes, if it failed.
    """
    said: list[str | None] = [None]
    if state.is_main_process:
        try:
            run()
        except _REFUSALS as error:
            said = [str(error)]
    broadcast_object_list(said)
    if said[0] is not None:
        raise ValueError(said[0])


def _settle(path: Path, settings: Mapping[str, Any]) -> None:
    """Write down what the set is made with, or see that it is what it was begun with.

    Raises:
        ValueError: If it is not.
    """
    if not path.exists():
        with _in_one_go(path) as partial:
            partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    before = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if names:
        changes = (f"{name} was {before.get(name)!r}, is {settings.get(name)!r}" for name in names)
        raise ValueError(
            f"{path.parent} holds pictures made with other settings ({'; '.join(changes)}): "
            "give those again, or another OUTPUT"
        )


def _helper(pipe: Any, arguments: argparse.Namespace) -> DeepCacheHelper:
    schedule: Any = "auto" if arguments.auto else "uniform"
    interval, branch = arguments.interval, arguments.branch
    return DeepCacheHelper(pipe, interval=interval, branch=branch, schedule=schedule)


def _learn(
    file: Path,
    pipe: Any,
    pictures: PictureSet,
    make: Callable[[range, range], np.ndarray],
    arguments: argparse.Namespace,
) -> None:
    """See to it that the file holds a plan, from a generation that is not in the set.

    Raises:
        ValueError: If nothing could be learned.
    """
    auto = Auto(arguments.interval, arguments.branch, file=file)
    batch = pictures.batches()[0]
    beyond = pictures.seed + pictures.count
    with DeepCacheHelper(pipe, schedule=auto):
        make(batch, range(beyond, beyond + len(batch)))
    if not auto.learned:
        raise ValueError(
            f"--auto: a generation of {type(pipe).__name__} teaches nothing: give more --steps, or "
            "a smaller --interval"
        )


def _auto(file: Path, arguments: argparse.Namespace) -> Auto:
    """What the file says.

    Raises:
        ValueError: If it is not there.
    """
    auto = Auto(arguments.interval, arguments.branch, file=file)
    if not auto.learned:
        raise ValueError(f"--auto: {file} was not written, or this process cannot see it")
    return auto


def _save(path: Path, picture: np.ndarray) -> None:
    """Write (height, width, channels), 0 to 1, as PNG."""
    values = (picture * 255).round().astype(np.uint8)
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    with _in_one_go(path) as partial:
        image.save(partial, format="PNG")


@contextmanager
def _in_one_go(path: Path) -> Iterator[Path]:
    """A file beside, to be written and then moved: a run that is killed leaves no half of one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
