"""How much work a call of each network is: multiply-adds, in full and cut, counted in three ways.

Counted are the networks of their true size, for one picture without guidance, on the device "meta",
where nothing is computed. Each operation counts by torch's own formulas; the two matrix products of
attention also stand alone, because the paper's tool leaves them out. That tool is repeated here as
`layers`, and with it what users of it have met. Run from the project's root:
``python -m benchmarks.speed.macs``.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks.catalogue import NETWORKS, build
from benchmarks.networks.loop_pipeline import LoopPipeline, Size, hand_cut
from benchmarks.provenance import RESULTS, command
from deepcache_patch.measuring.environment import versions

BRANCHES = (0, 1, 2)

#: Multiply-adds of a step in the paper's tables (arXiv 2312.00858): in full, and the mean at 1:5.
PUBLISHED = {"sd15": (338.8e9, 130.45e9), "ldm4-imagenet": (99.82e9, 23.50e9)}

#: What is no matrix product of attention.
_LAYERS = {"convolution", "mm", "addmm"}


class Work(NamedTuple):
    """The multiply-adds of one call.

    Attributes:
        operations: Of convolutions, linear layers and the two products of attention.
        attention: Those of the two products of attention alone.
        layers: As the paper's tool counts: without them, but with biases and norms.
    """

    operations: int
    attention: int
    layers: int


def main() -> None:
    """Count, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder")
    arguments = parser.parse_args()
    report = {
        "command": command("speed.macs", *sys.argv[1:]),
        "versions": versions(),
        "networks": {name: counted(name) for name in arguments.networks},
        "issue_37": issue_37(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "macs.json").write_text(text + "\n", encoding="utf-8")


def counted(name: str) -> dict[str, Any]:
    """The work of a network in full and cut, and what the paper says of it, where it does."""
    pipe = build(name, device="meta")
    full = work(pipe)
    shallow = {str(branch): work(pipe, branch) for branch in BRANCHES}
    report = {
        "full": full._asdict(),
        "shallow": {branch: each._asdict() for branch, each in shallow.items()},
        "mean_at_5": {b: mean(1, 5, full.layers, each.layers) for b, each in shallow.items()},
    }
    if name in PUBLISHED:
        published, at_5 = PUBLISHED[name]
        report["published"] = {
            "full": published,
            "mean_at_5": at_5,
            # What a shallow call has to be for that.
            "shallow": (5 * at_5 - full.layers) / 4,
        }
    return report


def mean(full_steps: int, steps: int, full: float, shallow: float) -> float:
    """Of a step, if so many of them run in full."""
    return (full_steps * full + (steps - full_steps) * shallow) / steps


def issue_37() -> dict[str, float]:
    """What horseee/DeepCache#37 reports of SD 1.5: 484.3895 G in full, 76.0022 G cut.

    Counted are both halves of guidance, and the tool multiplies numpy's integers: where those have
    32 bits, as on Windows, the counts of large linear layers wrap round.
    """
    pipe = build("sd15", device="meta")
    both = pipe.call_arguments(batch=2)
    counts = []
    for branch in (None, 1):
        with hand_cut(pipe, branch, both):
            counts.append(_by_layers(pipe, both, bits=32))
    full, shallow = counts
    # 50 steps of PNDM, the pipeline's own scheduler, are 51 calls.
    return {"full": full, "shallow": shallow, "mean_at_5": mean(10, 51, full, shallow)}


def work(pipe: LoopPipeline, branch: int | None = None, *, size: Size | None = None) -> Work:
    """Count a call of a pipeline on the device "meta", with its ControlNet if it has one.

    Args:
        pipe: The pipeline.
        branch: Where it is cut; `None` for a call in full.
        size: Of what is denoised; the network's own by default.
    """
    arguments = pipe.call_arguments(size=size)
    with hand_cut(pipe, branch, arguments):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            pipe.predict(**arguments)
        layers = _by_layers(pipe, arguments)
    flops = counter.get_flop_counts()["Global"]
    attention = sum(
        count for operation, count in flops.items() if operation.__name__ not in _LAYERS
    )
    # A multiply-add is two operations there.
    return Work(sum(flops.values()) // 2, attention // 2, layers)


def _by_layers(pipe: LoopPipeline, arguments: dict[str, Any], bits: int | None = None) -> int:
    """Count as `DeepCache/flops.py` of horseee/DeepCache does.

    Args:
        pipe: As it is, whole or cut.
        arguments: Of the call.
        bits: Of the integers in which the work of a linear layer is counted.
    """
    counts: list[int] = []

    def wrapped(count: int) -> int:
        if bits is None:
            return count
        half: int = 2 ** (bits - 1)
        return (count + half) % (2 * half) - half

    def convolution(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
        products = layer.weight[0].numel()
        counts.append(output.numel() * (products + (layer.bias is not None)))

    def linear(layer: nn.Linear, _inputs: Any, output: torch.Tensor) -> None:
        # The tool counts a bias once, and not for every position.
        biases = layer.out_features * (layer.bias is not None)
        counts.append(wrapped(output.numel() * layer.in_features + biases))

    def norm(_layer: nn.Module, inputs: Any, _output: Any) -> None:
        counts.append(2 * inputs[0].numel())

    kinds: dict[type[nn.Module], Any] = {
        nn.Conv2d: convolution,
        nn.Conv3d: convolution,
        nn.Linear: linear,
        nn.GroupNorm: norm,
        nn.LayerNorm: norm,
    }
    with ExitStack() as hooks, torch.no_grad():
        for part in (pipe.unet, pipe.controlnet):
            for layer in [] if part is None else part.modules():
                if type(layer) in kinds:
                    hook = layer.register_forward_hook(kinds[type(layer)])
                    hooks.callback(hook.remove)
        pipe.predict(**arguments)
    return sum(counts)


if __name__ == "__main__":
    main()
