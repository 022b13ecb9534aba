"""What happens to a pipeline beside a helper, written down as a story that can be told again.

Everything that happens to the pipeline and has nothing to do with the helper (another scheduler, a
LoRA, somebody's patch) is written down. What a picture must be is then what a fresh pipeline makes
to which the same things happened in the same order, with a fresh helper or with none. The machine
that makes up stories is in `lifecycle`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import wrapt
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from conftest import layout
from zoo import CASES as ZOO_CASES

from builders.adapters import lora
from builders.cases import CASES as PLAIN_CASES
from builders.schedulers import with_scheduler
from builders.unets import seeded
from deepcache_patch import FULL, Adaptive, Centred, DeepCacheHelper, Uniform


class Family(NamedTuple):
    """A pipeline, what its calls may ask for, and what may happen to it."""

    case: Any
    calls: dict[str, tuple[Any, ...]]
    schedulers: tuple[str, ...] = ("ddim", "pndm", "euler", "heun", "dpm-multistep")
    changes: frozenset[str] = frozenset({"lora", "freeu"})
    dtype: torch.dtype = torch.bfloat16
    #: What a second pipeline with the same parts needs besides.
    more: Mapping[str, Any] = MappingProxyType({})

    @property
    def has_callback(self) -> bool:
        return "callback_on_step_end" in inspect.signature(self.case.pipeline.__call__).parameters


_UNCHECKED = {"requires_safety_checker": False}

FAMILIES = {
    "sd": Family(
        PLAIN_CASES["sd"],
        {"guidance_scale": (4.0, 1.0), "num_images_per_prompt": (1, 2), "height": (16, 24)},
        more=_UNCHECKED,
    ),
    "sd-img2img": Family(
        PLAIN_CASES["sd-img2img"],
        {"guidance_scale": (4.0, 1.0), "num_images_per_prompt": (1, 2), "strength": (0.8, 0.4, 1)},
        more=_UNCHECKED,
    ),
    "sdxl": Family(
        PLAIN_CASES["sdxl"],
        {"guidance_scale": (4.0, 1.0), "num_images_per_prompt": (1, 2), "height": (16, 24)},
        more={"add_watermarker": False},
    ),
    "ddpm": Family(
        PLAIN_CASES["ddpm"],
        {"batch_size": (1, 2)},
        schedulers=("ddpm", "ddim", "dpm-multistep"),
        changes=frozenset(),
        dtype=torch.float64,  # its pictures leave by numpy, which knows no bfloat16
    ),
    "controlnet": Family(
        ZOO_CASES["sd-controlnet"],
        {
            "guidance_scale": (4.0, 1.0),
            "control_guidance_end": (1.0, 0.5),
            "guess_mode": (False, True),
        },
        more=_UNCHECKED,
    ),
    "video": Family(
        ZOO_CASES["animatediff"],
        {"guidance_scale": (4.0, 1.0), "num_frames": (2, 3)},
        changes=frozenset({"freeu"}),
    ),
}


@dataclass(frozen=True)
class Mixed:
    """A schedule of somebody's own, whose shallow steps are at two branches."""

    branches: tuple[int, ...] = (0, 1)

    def plan(self, num_steps):
        return [(FULL, 1, 0)[step % 3] for step in range(num_steps)]


SCHEDULES = (
    Uniform(3),
    Uniform(2, 1),
    Uniform(1),
    Uniform(10),
    Centred(3, center=2),
    Mixed(),
    Adaptive(0.5, (0, 1)),
)

REPLAYS = ("extrapolate", "reuse")


class Site:
    """A pipeline, a second one that shares its U-Net, and how to take back what was put in."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.pipe = family.case.load()
        self.other: Any = None
        self.undo: dict[str, Callable[[], None]] = {}


def _replace_unet(site: Site, seed: int) -> None:
    old = site.pipe.unet
    with seeded(seed):
        site.pipe.unet = type(old).from_config(old.config).eval().to(old.dtype)


def _share(site: Site, scheduler: str) -> None:
    site.other = type(site.pipe)(**site.pipe.components, **site.family.more)
    site.other.set_progress_bar_config(disable=True)
    with_scheduler(site.other, scheduler)


def _louder(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call of a U-Net whose sample is a little larger: so a patch shows in every picture."""
    if args:
        return (args[0] * 1.125, *args[1:]), kwargs
    return args, {**kwargs, "sample": kwargs["sample"] * 1.125}


class _LouderHook(ModelHook):
    def pre_forward(self, module, *args, **kwargs):
        return _louder(args, kwargs)


def _wrap(site: Site, kind: str) -> None:
    unet = site.pipe.unet
    if kind == "forward hook":
        hook = unet.register_forward_pre_hook(
            lambda _module, args, kwargs: _louder(args, kwargs), with_kwargs=True
        )
        site.undo[kind] = hook.remove
    elif kind == "accelerate":
        add_hook_to_module(unet, _LouderHook())
        site.undo[kind] = lambda: remove_hook_from_module(unet)
    else:
        inner, present = unet.forward, vars(unet).get("forward")

        def louder(wrapped, _instance, args, kwargs):
            args, kwargs = _louder(args, kwargs)
            return wrapped(*args, **kwargs)

        def undo():
            del unet.forward
            if present is not None:
                unet.forward = present

        patched = functools.partial(louder, inner, None)
        if kind == "wrapt":
            unet.forward = wrapt.FunctionWrapper(inner, louder)
        else:
            unet.forward = lambda *args, **kwargs: patched(args, kwargs)
        site.undo[kind] = undo


WRAPS = ("forward", "forward hook", "accelerate", "wrapt")

#: Whatever can happen to a pipeline that is not the helper's doing.
CHANGES: dict[str, Callable[..., Any]] = {
    "scheduler": lambda site, name: with_scheduler(site.pipe, name),
    "unet": _replace_unet,
    "share": _share,
    "load LoRA": lambda site, seed: site.pipe.load_lora_weights(lora(site.pipe.unet, seed=seed)),
    "unload LoRA": lambda site: site.pipe.unload_lora_weights(),
    "FreeU": lambda site: site.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "no FreeU": lambda site: site.pipe.disable_freeu(),
    "dtype": lambda site, dtype: site.pipe.to(dtype),
    "compile": lambda site: site.pipe.unet.compile(backend="eager"),
    "wrap": _wrap,
    "unwrap": lambda site, kind: site.undo.pop(kind)(),
}


def told(family: Family, story: tuple) -> Site:
    site = Site(family)
    for name, *arguments in story:
        CHANGES[name](site, *arguments)
    return site


class Run(NamedTuple):
    """One generation: through which pipeline, with what arguments, and what happens in it."""

    shared: bool
    call: tuple[tuple[str, Any], ...]
    meddling: str | None
    at: int

    def of(self, site: Site, helper: DeepCacheHelper | None) -> torch.Tensor:
        """The picture, and whatever `meddling` does to the helper after step `at`."""
        pipe, call = site.other if self.shared else site.pipe, dict(self.call)
        if self.meddling and helper is not None:

            def meddle(_pipe, step, _timestep, _tensors):
                if step == self.at:
                    MEDDLINGS[self.meddling](helper)
                return {}

            call["callback_on_step_end"] = meddle
        return site.family.case.run(pipe, **call)


def _toggle(helper):
    helper.disable()
    helper.enable()


MEDDLINGS: dict[str, Callable[[DeepCacheHelper], Any]] = {
    "reset": lambda helper: helper.reset(),
    "set": lambda helper: helper.set(schedule="uniform", interval=2, branch=1),
    "disable": lambda helper: helper.disable(),
    "disable and enable": _toggle,
}


@functools.cache
def expected(
    family: str, story: tuple, run: Run, helper: tuple[Any, str] | None
) -> tuple[torch.Tensor, Any]:
    """The picture of a fresh pipeline with the same story, and the helper's schedule after it."""
    site = told(FAMILIES[family], story)
    if helper is None:
        return run._replace(meddling=None).of(site, None), None
    schedule, replay = helper
    pipe = site.other if run.shared else site.pipe
    fresh = DeepCacheHelper(pipe, schedule=schedule, replay=replay).enable()
    return run.of(site, fresh), (fresh.schedule, fresh.enabled)


@functools.cache
def expected_layout(family: str, story: tuple) -> list:
    """What a fresh pipeline's modules hold after the same story."""
    pipe = told(FAMILIES[family], story).pipe
    return [layout(part) for part in patched_parts(pipe)]


def patched_parts(pipe: Any) -> list[torch.nn.Module]:
    return [part for part in (pipe.unet, getattr(pipe, "controlnet", None)) if part is not None]


def with_weights_of(pipe: Any, site: Site) -> Site:
    """The site with the very weights of another pipeline, which are equal to its own.

    How a CPU rounds depends on where in memory they begin, and a copy's begin elsewhere.
    """
    theirs = pipe.components
    for name, part in site.pipe.components.items():
        if isinstance(part, torch.nn.Module):
            for mine, its in zip(part.parameters(), theirs[name].parameters(), strict=True):
                assert torch.equal(mine, its)
                mine.data = its.data
    return site
