"""Who takes part in the fidelity benchmark: the samplers, and every way of being faster on each.

A contestant says what stands around one of its generations; nothing here generates or measures.
Those that take part by default are fitted to budgets (`work.SPEEDS`); `spanning` ones have the
intervals, branches and shares of steps that draw a curve.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.deepcache import deepcache
from benchmarks.fidelity import work
from benchmarks.fidelity.rivals import plans
from benchmarks.fidelity.rivals.adaptive_diffusion import AdaptiveDiffusion
from benchmarks.fidelity.rivals.easycache import EasyCache
from benchmarks.fidelity.rivals.fitting import fitted
from benchmarks.fidelity.rivals.output_reuse import OutputReuse
from benchmarks.fidelity.rivals.sada import Sada
from benchmarks.fidelity.rivals.skipping import skipping
from benchmarks.fidelity.rivals.spectrum import Spectrum
from benchmarks.fidelity.rivals.zeus import Zeus
from deepcache_patch import OUTPUT, Adaptive, Auto, Centred, DeepCacheHelper, Uniform

#: Makes one generation of prompts that are not measured, with whatever stands around it.
Run = Callable[[], Any]


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
    "dpm-karras-25": Sampler("DPM-Solver++ 2M Karras, 25 steps", "dpm-solver++-karras", 25),
    "dpm-karras-20": Sampler("DPM-Solver++ 2M Karras, 20 steps", "dpm-solver++-karras", 20),
    "dpm-sde-25": Sampler("DPM-Solver++ 2M SDE, 25 steps", "dpm-solver++-sde", 25),
    "unipc-20": Sampler("UniPC, 20 steps", "unipc", 20),
    "euler-30": Sampler("Euler, 30 steps", "euler", 30),
    "euler-20": Sampler("Euler, 20 steps", "euler", 20),
    "euler-ancestral-30": Sampler("Euler ancestral, 30 steps", "euler-ancestral", 30),
    "pndm-50": Sampler("PNDM, 50 steps", "pndm", 50),
    "ddpm-100": Sampler("DDPM model, DDIM, 100 steps", "ddim", 100, model="shapes-ddpm"),
}

#: Models that take prompts: what is a sampler of one of them is one of the others.
PROMPTED = frozenset({"shapes", "emoji"})


def on_model(names: Sequence[str] | None, model: str | None) -> dict[str, Sampler]:
    """Samplers by name, with another model in the place of their own.

    Args:
        names: Keys of `SAMPLERS`; `None` for all that the model goes with.
        model: Folder in `benchmarks/models`; `None` leaves each its own.

    Raises:
        ValueError: A sampler does not go with the model.
    """
    if model is None:
        return {name: SAMPLERS[name] for name in names or SAMPLERS}
    fitting = {
        name: replace(sampler, model=model)
        for name, sampler in SAMPLERS.items()
        if sampler.model == model or {sampler.model, model} <= PROMPTED
    }
    for name in names or ():
        if name not in fitting:
            own = SAMPLERS[name].model
            raise ValueError(
                f"--sampler {name} --model {model}: that sampler is of the model {own}, and one of "
                f"the two models takes no prompt; {model} goes with {', '.join(fitting)}"
            )
    return {name: fitting[name] for name in names or fitting}


#: Shares of the plain pipeline's steps; their times span those of intervals 2 to 10.
FEWER_STEPS = (0.6, 0.5, 0.38, 0.28)
INTERVALS = (2, 3, 5)
TOLERANCES = (0.015, 0.03, 0.06)


@dataclass(frozen=True)
class Contestant:
    """One way to make the pictures.

    Attributes:
        name: No other contestant of the sampler has it.
        family: A key of `FAMILIES`.
        steps: `num_inference_steps` of its generations.
        settings: What distinguishes it within its family; `fit` may add what it found.
        around: Makes the context in which a generation runs; called anew for each.
        fit: What it does once before it is measured, with as many plain generations as it wants.
    """

    name: str
    family: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    fit: Callable[[Run], None] | None = None


def contestants(
    pipe: Any, sampler: Sampler, families: Collection[str], *, spanning: bool = False
) -> list[Contestant]:
    """Everyone who takes part; the plain pipeline first, whether or not it is asked for.

    Args:
        pipe: The sampler's pipeline.
        sampler: The sampler.
        families: Keys of `FAMILIES`.
        spanning: Those that draw a curve take part in the place of those that keep budgets.
    """
    makers = FAMILIES | SPANNING if spanning else FAMILIES
    chosen = [make for name, make in makers.items() if name == "plain" or name in families]
    return [each for make in chosen for each in make(pipe, sampler)]


def _plain(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    yield Contestant("plain", "plain", sampler.steps)


def _fewer_steps(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    """For each budget the most steps within it, and one more: between them lies equal work."""
    calls = work.calls_of(pipe, sampler.steps)
    extra = calls - sampler.steps
    counts = [work.full_steps_within(calls, speed, 0) - extra for speed in work.SPEEDS]
    for steps in dict.fromkeys(steps for count in counts for steps in (count + 1, count)):
        yield Contestant(f"{steps} steps", "fewer steps", steps)


def _spanning_steps(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for steps in dict.fromkeys(round(sampler.steps * share) for share in FEWER_STEPS):
        yield Contestant(f"{steps} steps", "fewer steps", steps)


def _deepcache(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for interval in (2, 3):
        yield _deepcache_of(pipe, sampler, interval, 0)


def _spanning_deepcache(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for branch in (0, 1, 2) if sampler.main else (0,):
        for interval in _intervals(sampler):
            yield _deepcache_of(pipe, sampler, interval, branch)


def _deepcache_of(pipe: Any, sampler: Sampler, interval: int, branch: int) -> Contestant:
    return Contestant(
        f"DeepCache 0.1.1, interval {interval}, branch {branch}",
        "deepcache 0.1.1",
        sampler.steps,
        {"interval": interval, "branch": branch},
        functools.partial(deepcache, pipe, interval, branch),
    )


def default_helper(pipe: Any, full_steps: int, steps: int) -> DeepCacheHelper:
    """The package's default for a budget.

    Args:
        pipe: The pipeline.
        full_steps: How many of the steps run whole.
        steps: U-Net calls of a generation.
    """
    return DeepCacheHelper(pipe, interval=steps / full_steps)


def _default(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for speed, full_steps, calls in _budgets(pipe, sampler, 0):
        make = functools.partial(default_helper, pipe, full_steps, calls)
        settings = {"speed": speed, "full_steps": full_steps, "branch": OUTPUT}
        name = f"default, {full_steps} full steps"
        yield Contestant(name, "default", sampler.steps, settings, functools.cache(make))


def _auto(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for speed, full_steps, calls in _budgets(pipe, sampler, 0):
        settings = {"speed": speed, "full_steps": full_steps, "branch": OUTPUT}
        schedule = Auto(interval=calls / full_steps)
        yield _auto_of(pipe, sampler, f"auto, {full_steps} full steps", settings, schedule)


def _auto_of(
    pipe: Any, sampler: Sampler, name: str, settings: dict[str, Any], schedule: Auto
) -> Contestant:
    around = _helper(pipe, schedule=schedule)

    def fit(run: Run) -> None:
        with around():
            run()

    return Contestant(name, "auto", sampler.steps, settings, around, fit)


def _calibrated(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for speed, full_steps, _ in _budgets(pipe, sampler, 0):
        around = _helper(pipe)
        settings = {"speed": speed, "full_steps": full_steps, "branch": OUTPUT}

        def fit(
            run: Run,
            around: Any = around,
            full_steps: int = full_steps,
            settings: dict[str, Any] = settings,
        ) -> None:
            found = around().calibrate(run, full_steps=full_steps)
            settings["plan"] = list(found.entries.full_steps)

        name = f"calibrated, {full_steps} full steps"
        yield Contestant(name, "calibrated", sampler.steps, settings, around, fit)


def _planned(title: str, rival: Any, plan: Callable[[int, int], list[int]]) -> Any:
    """A family of a rival whose plan is known in advance."""

    def make(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
        for speed, full_steps, calls in _budgets(pipe, sampler, 0):
            chosen = plan(calls, full_steps)
            settings = {"speed": speed, "plan": chosen}
            name = f"{title}, {len(chosen)} full steps"
            around = functools.partial(_with_rival, pipe, rival, chosen)
            yield Contestant(name, title.lower(), sampler.steps, settings, around)

    return make


def _fitted(title: str, rival: Any) -> Any:
    """A family of a rival whose threshold is fitted."""

    def make(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
        for speed, full_steps, _ in _budgets(pipe, sampler, 0):
            settings: dict[str, Any] = {"speed": speed, "full_steps": full_steps}

            def around(settings: dict[str, Any] = settings) -> AbstractContextManager[Any]:
                return _with_rival(pipe, rival, settings["threshold"])

            def fit(run: Run, settings: dict[str, Any] = settings) -> None:
                def full_calls(threshold: float) -> int:
                    with _with_rival(pipe, rival, threshold), work.counting(pipe.unet) as deep:
                        run()
                    return deep.calls

                settings["threshold"] = fitted(full_calls, settings["full_steps"], *rival.KNOB)

            name = f"{title}, up to {full_steps} full steps"
            yield Contestant(name, title.lower(), sampler.steps, settings, around, fit)

    return make


def _with_rival(pipe: Any, rival: Any, setting: Any) -> AbstractContextManager[Any]:
    return skipping(pipe, rival(setting))


def _budgets(pipe: Any, sampler: Sampler, share: float) -> Iterator[tuple[float, int, int]]:
    """Each speed, the full steps with which it is kept, and the calls of a generation."""
    calls = work.calls_of(pipe, sampler.steps)
    for speed in work.SPEEDS:
        yield speed, work.full_steps_within(calls, speed, share), calls


def _uniform_reuse(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    # DeepCache at branch 0 makes the same pictures.
    for interval in _intervals(sampler) if sampler.main else (3,):
        settings = {"interval": interval, "branch": 0, "replay": "reuse"}
        around = _helper(pipe, schedule=Uniform(interval), replay="reuse")
        yield Contestant(f"interval {interval}", "uniform reuse", sampler.steps, settings, around)


def _uniform_extrapolated(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for interval in INTERVALS:
        settings = {"interval": interval, "branch": 0, "replay": "extrapolate"}
        around = _helper(pipe, schedule=Uniform(interval), replay="extrapolate")
        name = f"interval {interval}, extrapolated"
        yield Contestant(name, "uniform extrapolated", sampler.steps, settings, around)


def _centred(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    schedule = Centred()
    name = f"centred, interval {schedule.interval}"
    yield _scheduled(pipe, sampler, name, "centred", schedule)


def _scheduled(
    pipe: Any, sampler: Sampler, name: str, family: str, schedule: Centred
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


def _spanning_auto(pipe: Any, sampler: Sampler) -> Iterator[Contestant]:
    for interval in _intervals(sampler):
        settings = {"interval": interval, "branch": OUTPUT}
        schedule = Auto(interval=interval)
        yield _auto_of(pipe, sampler, f"auto, interval {interval}", settings, schedule)


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
    "default": _default,
    "auto": _auto,
    "calibrated": _calibrated,
    "spectrum": _planned("Spectrum", Spectrum, plans.spectrum),
    "zeus": _planned("ZEUS", Zeus, plans.zeus),
    "adaptivediffusion": _fitted("AdaptiveDiffusion", AdaptiveDiffusion),
    "sada": _fitted("SADA", Sada),
    "easycache": _fitted("EasyCache", EasyCache),
    "output reuse": _planned("Output reuse", OutputReuse, plans.uniform),
    "uniform reuse": _uniform_reuse,
    "uniform extrapolated": _uniform_extrapolated,
    "centred": _centred,
    "adaptive": _adaptive,
}

#: Rebuilt from their papers.
RIVALS = ("spectrum", "zeus", "adaptivediffusion", "sada", "easycache", "output reuse")

#: Who takes part unless it is said otherwise.
BY_DEFAULT = (
    *("plain", "fewer steps", "deepcache 0.1.1", "default", "auto", "calibrated"),
    *RIVALS,
)

#: Those that draw a curve, in the place of their namesakes.
SPANNING = {
    "fewer steps": _spanning_steps,
    "deepcache 0.1.1": _spanning_deepcache,
    "auto": _spanning_auto,
}
