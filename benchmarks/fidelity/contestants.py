"""Who takes part in the fidelity benchmark: the samplers, and every way of being faster on each.

A contestant says what stands around one of its generations; nothing here generates or measures.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.deepcache import deepcache
from deepcache_patch import Adaptive, Auto, Centred, DeepCacheHelper, Growing, Uniform


@dataclass(frozen=True)
class Sampler:
    """A model, a scheduler and a number of steps.

    Attributes:
        title: For people.
        scheduler: A name for `deepcache_patch.cli.loading.use_scheduler`.
        steps: Of the plain pipeline.
        model: Folder in `benchmarks/models`.
        main: Whether every setting takes part; elsewhere only some do, to save hours.
    """

    title: str
    scheduler: str
    steps: int
    model: str = "shapes"
    main: bool = False


SAMPLERS = {
    "ddim-50": Sampler("DDIM, 50 steps", "ddim", 50, main=True),
    "ddim-20": Sampler("DDIM, 20 steps", "ddim", 20),
    "dpm-25": Sampler("DPM-Solver++ 2M, 25 steps", "dpm-solver++", 25),
    "dpm-20": Sampler("DPM-Solver++ 2M, 20 steps", "dpm-solver++", 20),
    "unipc-20": Sampler("UniPC, 20 steps", "unipc", 20),
    "euler-30": Sampler("Euler, 30 steps", "euler", 30),
    "euler-ancestral-30": Sampler("Euler ancestral, 30 steps", "euler-ancestral", 30),
    "pndm-50": Sampler("PNDM, 50 steps", "pndm", 50),
    "ddpm-100": Sampler("DDPM model, DDIM, 100 steps", "ddim", 100, model="shapes-ddpm"),
}

#: Shares of the plain pipeline's steps; their times span those of intervals 2 to 10.
FEWER_STEPS = (0.6, 0.5, 0.38, 0.28)
INTERVALS = (2, 3, 5)
TOLERANCES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Contestant:
    """One way to make the pictures.

    Attributes:
        name: No other contestant of the sampler has it.
        family: A key of `FAMILIES`.
        steps: `num_inference_steps` of its generations.
        settings: What distinguishes it within its family.
        around: Makes the context in which a generation runs; called anew for each.
        calibrates: Its first generation measures, and is not to be measured.
    """

    name: str
    family: str
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    calibrates: bool = False


def contestants(pipe: Any, sampler: Sampler, families: Collection[str]) -> list[Contestant]:
    """Everyone who takes part; the plain pipeline first, whether or not it is asked for.

    Args:
        pipe: The sampler's pipeline.
        sampler: The sampler.
        families: Keys of `FAMILIES`.
    """
    chosen = [make for name, make in FAMILIES.items() if name == "plain" or name in families]
    return [each for make in chosen for each in make(pipe, sampler)]


def _plain(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    yield Contestant("plain", "plain", sampler.steps)


def _fewer_steps(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for steps in dict.fromkeys(round(sampler.steps * share) for share in FEWER_STEPS):
        yield Contestant(f"{steps} steps", "fewer steps", steps)


def _deepcache(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for branch in (0, 1, 2) if sampler.main else (0,):
        for interval in _intervals(sampler):
            yield Contestant(
                f"DeepCache 0.1.1, interval {interval}, branch {branch}",
                "deepcache 0.1.1",
                sampler.steps,
                {"interval": interval, "branch": branch},
                functools.partial(deepcache, pipe, interval, branch),
            )


def _uniform_reuse(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    # DeepCache at branch 0 makes the same pictures.
    for interval in _intervals(sampler) if sampler.main else (3,):
        settings = {"interval": interval, "branch": 0, "replay": "reuse"}
        around = _helper(pipe, **settings)
        yield Contestant(f"interval {interval}", "uniform reuse", sampler.steps, settings, around)


def _uniform_extrapolated(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for interval in INTERVALS:
        settings = {"interval": interval, "branch": 0, "replay": "extrapolate"}
        around = _helper(pipe, **settings)
        name = f"interval {interval}, extrapolated"
        yield Contestant(name, "uniform extrapolated", sampler.steps, settings, around)


def _growing(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    pipe.scheduler.set_timesteps(sampler.steps)
    steps = len(pipe.scheduler.timesteps)  # PNDM makes one more than it is asked for
    for interval in INTERVALS if sampler.main else (3,):
        schedule = Growing(len(Uniform(interval).plan(steps).full_steps))
        name = f"growing, {schedule.full_steps} full steps"
        yield _scheduled(pipe, sampler, name, "growing", schedule)


def _centred(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    schedule = Centred()
    name = f"centred, interval {schedule.interval}"
    yield _scheduled(pipe, sampler, name, "centred", schedule)


def _scheduled(
    pipe: Any, sampler: Sampler, name: str, family: str, schedule: Growing | Centred
) -> Contestant:
    """A schedule with features used again as they are, so that only it differs from uniform."""
    around = _helper(pipe, schedule=schedule, replay="reuse")
    settings = asdict(schedule) | {"replay": "reuse"}
    return Contestant(name, family, sampler.steps, settings, around)


def _adaptive(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for tolerance in TOLERANCES if sampler.main else TOLERANCES[1:2]:
        around = _helper(pipe, schedule=Adaptive(tolerance=tolerance))
        settings = {"tolerance": tolerance}
        name = f"adaptive, tolerance {tolerance:g}"
        yield Contestant(name, "adaptive", sampler.steps, settings, around)


def _auto(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for interval in _intervals(sampler):
        around = _helper(pipe, schedule=Auto(interval=interval))
        settings = {"interval": interval, "branch": 0}
        name = f"auto, interval {interval}"
        yield Contestant(name, "auto", sampler.steps, settings, around, calibrates=True)


def _intervals(sampler: Sampler) -> tuple[int, ...]:
    return (*INTERVALS, 10) if sampler.main else INTERVALS


def _helper(pipe: Any, **settings: Any) -> Callable[[], DeepCacheHelper]:
    """Makes the helper at the first call, and returns that one ever after."""
    return functools.cache(lambda: DeepCacheHelper(pipe, **settings))


#: In the order in which tables and plots show them.
FAMILIES: dict[str, Callable[[Any, Sampler], Iterator[Contestant]]] = {
    "plain": _plain,
    "fewer steps": _fewer_steps,
    "deepcache 0.1.1": _deepcache,
    "uniform reuse": _uniform_reuse,
    "uniform extrapolated": _uniform_extrapolated,
    "growing": _growing,
    "centred": _centred,
    "adaptive": _adaptive,
    "auto": _auto,
}
