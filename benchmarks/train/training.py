"""What all training scripts share: the cached pictures, the moving average and the loop itself.

The loop is resumable: everything that the next step depends on (weights, their moving average,
optimizer, step and random state) goes into one checkpoint file. What a model is and what its loss
is stands in the script of that model.
"""

import argparse
import copy
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from benchmarks.train.shapes import draw, training_scene

MODELS = Path(__file__).resolve().parents[1] / "models"
TRAINING_SEED = 2024

Model = TypeVar("Model", bound=nn.Module)
Item = TypeVar("Item")
#: Receives the model that carries the averaged weights, and the number of steps done.
Snapshot = Callable[[nn.Module, int], None]
#: Gives the loss of one batch, drawing whatever is random from the generator, on its device.
Loss = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How to train: the options that every training script offers.

    Attributes:
        steps: Optimizer steps in all, those of earlier, resumed runs included.
        batch_size: Pictures in a step.
        learning_rate: Peak of the learning rate; a warm-up leads to it, half a cosine away from it.
        seed: Of the weights, the batches and the noise.
        device: Where to train.
        precision: "fp32" or "bf16"; the latter is autocast, the weights stay in fp32.
        pictures: How many pictures there are to learn from.
        checkpoint_dir: Where checkpoints and cached pictures go.
        checkpoint_every: Steps between two checkpoints.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    device: str
    precision: str
    pictures: int
    checkpoint_dir: Path
    checkpoint_every: int

    def __post_init__(self) -> None:
        """Reject what cannot be trained with."""
        for name in ("steps", "batch_size", "pictures", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")

    def autocast(self) -> torch.autocast:
        """A context in which the model computes at the chosen precision."""
        enabled = self.precision == "bf16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=enabled)


def parser(
    description: str,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    pictures: int = 40_000,
) -> argparse.ArgumentParser:
    """The options that every training script offers, with this script's defaults."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--steps", type=int, default=steps, help="optimizer steps in all")
    options.add_argument("--batch-size", type=int, default=batch_size)
    options.add_argument("--learning-rate", type=float, default=learning_rate)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    options.add_argument("--pictures", type=int, default=pictures, help="pictures to learn from")
    options.add_argument("--checkpoint-dir", type=Path, default=Path("build/train"))
    options.add_argument("--checkpoint-every", type=int, default=200)
    return options


def settings_from(options: argparse.Namespace) -> Settings:
    """The parsed options as settings; options that are one script's own are left out."""
    return Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})


def cached_pictures(count: int, directory: Path) -> torch.Tensor:
    """The first ``count`` training pictures, drawn once and then read from the directory.

    Returns:
        uint8 of shape ``(count, 3, 64, 64)``.
    """
    return drawn_once(
        directory / f"pictures-{TRAINING_SEED}-{count}.npy",
        count,
        lambda index: draw(training_scene(TRAINING_SEED, index)),
    )


def drawn_once(path: Path, count: int, draw_one: Callable[[int], Image.Image]) -> torch.Tensor:
    """Pictures that are drawn if the file is not there yet, and read from it ever after.

    Args:
        path: The file, a ``.npy``.
        count: How many pictures.
        draw_one: Gives the picture of an index, ``0 <= index < count``.

    Returns:
        uint8 of shape ``(count, 3, height, width)``.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = [np.asarray(draw_one(index)) for index in tqdm(range(count), "drawing")]
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.stack(drawn).transpose(0, 3, 1, 2))
        os.replace(partial, path)
    return torch.from_numpy(np.load(path))


def as_input(pictures: torch.Tensor, device: str) -> torch.Tensor:
    """Bytes as floats in [-1, 1], the range in which diffusers' models see pictures."""
    return pictures.to(device).float() / 127.5 - 1


def drawn_rows(count: int, settings: Settings, generator: torch.Generator) -> torch.Tensor:
    """A batch of rows below `count`, on the generator's device; one may come twice."""
    size, device = (settings.batch_size,), generator.device
    return torch.randint(count, size, generator=generator, device=device)


def own_part() -> slice:
    """Which of a batch's samples this process computes; all of them if it is the only one.

    Started by ``torchrun``, or with the variables that it sets, several processes share each batch.
    """
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    if not dist.is_initialized():
        return slice(None)
    return slice(dist.get_rank(), None, dist.get_world_size())


def gathered(own: list[Item]) -> list[Item]:
    """What all processes that share a list made of their parts, in the order of the list."""
    if not dist.is_initialized():
        return own
    parts: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own)
    return [part[row] for row in range(len(parts[0])) for part in parts if row < len(part)]


def saves() -> bool:
    """Whether this process saves what all have; of those that share batches, the first does."""
    return not dist.is_initialized() or dist.get_rank() == 0


def train(
    model: Model,
    loss: Loss,
    settings: Settings,
    *,
    name: str,
    average: float = 0.999,
    snapshot: Snapshot | None = None,
    snapshot_every: int = 0,
    weight_decay: float = 0.01,
    compiled: Iterable[nn.Module] = (),
) -> tuple[Model, float]:
    """Train to the end, from a checkpoint if there is one.

    Args:
        model: What to train, in place.
        loss: Called once in each step.
        settings: How to train.
        name: Of the checkpoint file.
        average: Decay of the exponential moving average of the weights in a step.
        snapshot: Called every ``snapshot_every`` steps; 0 means never.
        snapshot_every: Steps between two snapshots.
        weight_decay: AdamW's.
        compiled: Of the model, what the loss calls and what is worth compiling on a GPU.

    Returns:
        A copy of the model that carries the averaged weights, and the mean loss of the last
        hundred steps.
    """
    device = torch.device(settings.device)
    model.to(device).train()
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    for part in compiled if device.type == "cuda" else ():
        part.compile()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    generator = torch.Generator(device).manual_seed(settings.seed)
    path = settings.checkpoint_dir / f"{name}.pt"
    first = 0
    recent: deque[torch.Tensor] = deque(maxlen=100)
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        begun = state.get("device", "cpu")
        if begun != device.type:
            raise ValueError(
                f"{path} was begun on {begun}: go on with --device {begun}, or remove it"
            )
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["global_random_state"].cpu())
        first = state["step"]
        recent.extend(torch.as_tensor(state["recent_losses"], device=device))

    def save(step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "global_random_state": torch.get_rng_state(),
            "step": step,
            "device": device.type,
            "recent_losses": torch.stack([*recent]),
        }
        torch.save(state, partial)
        os.replace(partial, path)  # a cut-off write never spoils the last good checkpoint

    progress = tqdm(total=settings.steps, initial=first, desc=name, mininterval=5)
    started = time.monotonic()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate_at(step, settings.steps)
        with settings.autocast():
            value = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if dist.is_initialized():
            _average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        _update_average(averaged, model, min(average, (step + 1) / (step + 10)))
        recent.append(value.detach())  # not asked for its value: that would wait for the device
        done = step + 1
        progress.update()
        if done % 50 == 0 or done == settings.steps:
            rate = (done - first) / (time.monotonic() - started)
            progress.write(f"{name}: step {done}, loss {_mean(recent):.5f}, {rate:.2f} it/s")
        if not saves():
            continue
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save(done)
        if snapshot is not None and snapshot_every and done % snapshot_every == 0:
            snapshot(averaged, done)
    progress.close()
    return averaged, _mean(recent)


def _mean(losses: Iterable[torch.Tensor]) -> float:
    return torch.stack([*losses]).mean().item()


def _rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to a hundredth."""
    warmup = min(200, max(1, steps // 20))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def _average_gradients(parameters: list[nn.Parameter]) -> None:
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def _update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    old = [tensor for tensor in averaged.state_dict().values() if tensor.is_floating_point()]
    new = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    torch._foreach_lerp_(old, new, 1 - decay)
