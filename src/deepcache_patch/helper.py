"""`DeepCacheHelper`: attaches to a pipeline and decides at each call what runs.

The other modules know where a U-Net can be cut, which step a call belongs to and what is in the
cache; whether a call runs in full or shallow is decided here and nowhere else, in
`_AttachedUNet._branch_to_run`.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, cast

import torch
from diffusers import DiffusionPipeline
from torch import nn

from .anatomy import dissect, is_unet
from .cut import Cut
from .errors import (
    AlreadyEnabledError,
    DeepCacheWarning,
    InvalidSettingError,
    UnsupportedModelError,
)
from .features import FeatureCache, FeatureKey, Recorder, StandIn
from .patch import Patch, is_patched
from .schedule import FULL, PlanEntry, Schedule, Uniform
from .steps import Position, StepTracker

# Where the patch goes. `nn.Module.__call__` runs this, if it is not `None`, instead of hooks and
# `forward`. So the patch is outermost: whoever replaces `forward` (accelerate does at every
# offload) is inside, and `Module.compile` puts its compiled call in the same place. Copies and
# pickles of a module leave it out.
_CALL = "_compiled_call_impl"


@dataclass(frozen=True)
class Stats:
    """What has happened since `DeepCacheHelper.enable`.

    Attributes:
        generations: Denoising loops that were started.
        full_calls: U-Net calls that ran everything.
        shallow_calls: U-Net calls that ran only what lies above the branch.
        cache_nbytes: The most bytes of deep features that were held at once.
    """

    generations: int = 0
    full_calls: int = 0
    shallow_calls: int = 0
    cache_nbytes: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.generations + other.generations,
            self.full_calls + other.full_calls,
            self.shallow_calls + other.shallow_calls,
            self.cache_nbytes + other.cache_nbytes,
        )


class DeepCacheHelper:
    """Makes the U-Net of an existing pipeline skip its deep layers on most denoising steps.

    Full steps and the disabled helper are bit-exact; shallow steps are approximate, which is where
    the speed comes from. `pipe` is not changed but for the length of a U-Net call, and `disable`
    leaves every module as it was.

    Args:
        pipe: A diffusers pipeline with a U-Net, or a bare U-Net for a hand-written loop.
        interval: N of the paper's 1:N, at least 1 (default 3): steps 0, N, 2N, … run in full.
        branch: Where shallow steps are cut (default 0, the shallowest and fastest), from 0 up to a
            limit that depends on the U-Net; a higher one is slower and closer to the plain picture.
        schedule: Any `Schedule`, in the place of `interval` and `branch`.

    Raises:
        UnsupportedModelError: If there is no U-Net here that can be cut.
        InvalidSettingError: If an argument is out of range; the message names the range.

    Example:
        >>> helper = DeepCacheHelper(pipe, interval=3)  # doctest: +SKIP
        >>> helper.enable()  # doctest: +SKIP
        >>> images = pipe("a red circle").images  # doctest: +SKIP
        >>> helper.disable()  # doctest: +SKIP
    """

    def __init__(
        self,
        pipe: DiffusionPipeline | nn.Module,
        *,
        interval: int | None = None,
        branch: int | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self._pipe = pipe
        self._attached: tuple[_AttachedUNet, ...] = ()
        self._anatomies = [dissect(_unwrapped(unet)) for unet in _unets(pipe)]
        if schedule is None:
            chosen = {"interval": interval, "branch": branch}
            schedule = Uniform(**{key: value for key, value in chosen.items() if value is not None})
        elif interval is not None or branch is not None:
            raise InvalidSettingError("give either schedule or interval and branch, not both")
        self._schedule = self._checked(schedule)

    @property
    def schedule(self) -> Schedule:
        """What decides which steps run in full, and at which branch the others run."""
        return self._schedule

    @property
    def enabled(self) -> bool:
        """Whether calls of the U-Net go through this helper (while it is paused, too)."""
        return bool(self._attached)

    @property
    def stats(self) -> Stats:
        """Counts since `enable`; those of the last time while disabled."""
        return self._stats + sum((unet.stats for unet in self._attached), Stats())

    _stats = Stats()

    def enable(self) -> "DeepCacheHelper":
        """Patch the U-Net and return the helper. Harmless when already enabled.

        Raises:
            AlreadyEnabledError: If another helper is enabled on the same U-Net.
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
        """
        if self.enabled:
            return self
        unets = _unets(self._pipe)
        for unet in unets:
            if is_patched(unet, _CALL) or is_patched(_unwrapped(unet), _CALL):
                raise AlreadyEnabledError(
                    "another DeepCacheHelper is enabled on this "
                    f"{type(_unwrapped(unet)).__name__}: "
                    "call its disable() first, or change it with its set_params()"
                )
        scheduler_of = _scheduler_of(self._pipe)
        attached = tuple(_AttachedUNet(unet, self._schedule, scheduler_of) for unet in unets)
        with ExitStack() as undo:
            for one in attached:
                undo.callback(one.detach)
                one.attach()
            undo.pop_all()
        self._stats, self._attached = Stats(), attached
        return self

    def disable(self) -> None:
        """Remove every trace from the U-Net and release the cache. Harmless when not enabled."""
        attached, self._attached = self._attached, ()
        for unet in attached:
            unet.detach()
        self._stats += sum((unet.stats for unet in attached), Stats())

    def __enter__(self) -> "DeepCacheHelper":
        return self.enable()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disable()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The plain pipeline for the length of a `with` block, bit-exact."""
        attached = self._attached
        for unet in attached:
            unet.pause()
        try:
            yield
        finally:
            for unet in attached:
                unet.resume()

    def set_params(
        self,
        cache_interval: int | None = None,
        cache_branch_id: int | None = None,
        skip_mode: Literal["uniform"] = "uniform",
    ) -> None:
        """Change the uniform schedule, before or while enabled; the call of `DeepCacheSDHelper`.

        Args:
            cache_interval: N of the paper's 1:N, at least 1; `None` leaves it as it is.
            cache_branch_id: The branch; `None` leaves it as it is.
            skip_mode: Only `"uniform"`.

        Raises:
            InvalidSettingError: If a value is out of range or `skip_mode` is another.
        """
        if skip_mode != "uniform":
            raise InvalidSettingError(
                f"skip_mode must be 'uniform', not {skip_mode!r}: for another strategy give "
                "DeepCacheHelper(pipe, schedule=...) a schedule"
            )
        now = self._schedule if isinstance(self._schedule, Uniform) else Uniform()
        self._schedule = self._checked(
            Uniform(
                interval=now.interval if cache_interval is None else cache_interval,
                branch=now.branch if cache_branch_id is None else cache_branch_id,
            )
        )
        for unet in self._attached:
            unet.follow(self._schedule)

    def reset(self) -> None:
        """Forget the current generation: the next U-Net call runs in full as a first step."""
        for unet in self._attached:
            unet.reset()

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        return f"DeepCacheHelper({type(self._pipe).__name__}, {self._schedule}, {state})"

    def _checked(self, schedule: Schedule) -> Schedule:
        if not isinstance(schedule, Schedule):
            raise InvalidSettingError(
                f"schedule must have a method plan(num_steps), which {schedule!r} has not"
            )
        for branch in getattr(schedule, "branches", ()):
            for anatomy in self._anatomies:
                anatomy.check_branch(branch)
        return schedule


class _AttachedUNet:
    """One U-Net with its tracker, its cache and the patch round its call.

    Holds the pipeline's scheduler through a weak reference only, so that the patch, which the U-Net
    holds, keeps no pipeline alive.
    """

    def __init__(
        self, unet: nn.Module, schedule: Schedule, scheduler_of: Callable[[], Any]
    ) -> None:
        self._unet = unet
        self._schedule = schedule
        self._scheduler_of = scheduler_of
        self._anatomy = dissect(_unwrapped(unet))
        self._tracker = StepTracker()
        self._cache = FeatureCache()
        self._stand_in = StandIn()
        self._recorders: dict[int, Recorder] = {}
        self._cuts: dict[tuple[int | None, tuple[int, ...]], Cut] = {}
        self._generation = -1
        self._plan: Sequence[PlanEntry] = ()
        self._pauses = 0
        self._warned = False
        self._generations = self._full_calls = self._shallow_calls = 0
        # A cut changes the U-Net for everybody, so calls take turns.
        self._lock = threading.RLock()
        original = vars(unet).get(_CALL) or unet._call_impl
        self._patch = Patch(unet, _CALL, original, self._call)

    @property
    def stats(self) -> Stats:
        return Stats(
            self._generations, self._full_calls, self._shallow_calls, self._cache.peak_nbytes
        )

    def attach(self) -> None:
        self._patch.install()

    def detach(self) -> None:
        with self._lock:
            self._patch.remove()
            self.reset()

    def pause(self) -> None:
        with self._lock:
            self._pauses += 1

    def resume(self) -> None:
        with self._lock:
            self._pauses -= 1
            self.reset()

    def follow(self, schedule: Schedule) -> None:
        with self._lock:
            self._schedule = schedule
            self.reset()

    def reset(self) -> None:
        with self._lock:
            self._tracker.reset()
            self._cache.clear()

    def _call(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._lock:
            arguments = self._anatomy.arguments(args, kwargs)
            if self._pauses or not arguments.keys() >= {"sample", "timestep"}:
                return original(*args, **kwargs)
            position = self._locate(arguments["timestep"])
            if position is None:
                self._full_calls += 1
                return original(*args, **kwargs)
            if position.generation != self._generation:
                self._start_generation(position)
            key = FeatureKey.of(arguments["sample"])
            branch, feature = self._branch_to_run(position, key)
            if branch is None:
                self._full_calls += 1
            else:
                self._shallow_calls += 1
                trimmed = self._anatomy.trimmed(branch, arguments)
                if trimmed is not None:
                    args, kwargs = (), trimmed
            with self._cut(branch, feature):
                output = original(*args, **kwargs)
            self._keep_recorded(position, key)
            return output

    def _locate(self, timestep: Any) -> Position | None:
        if torch.is_grad_enabled():
            self._warn("gradients are enabled: wrap the denoising loop in torch.no_grad()")
            return None
        timesteps = getattr(self._scheduler_of(), "timesteps", None)
        position = self._tracker.locate(
            timestep, timesteps if isinstance(timesteps, torch.Tensor) else None
        )
        if position is None:
            self._warn(
                f"the step cannot be told from the timestep {timestep!r}: pass an element of "
                "scheduler.timesteps, the same for the whole batch"
            )
        return position

    def _start_generation(self, position: Position) -> None:
        self._generation = position.generation
        self._generations += 1
        self._cache.clear()
        self._plan = ()
        if not self._anatomy.is_current:
            self._anatomy = dissect(_unwrapped(self._unet))
            self._cuts.clear()

    def _branch_to_run(
        self, position: Position, key: FeatureKey
    ) -> tuple[int | None, torch.Tensor | None]:
        """The branch and the feature to replay, or two `None` for a full call.

        Full is what the plan says is full, and whatever has no valid feature: the first step, a
        call of another shape or dtype than the one that recorded, more calls than the last full
        step had.
        """
        entry = self._planned(position)
        if entry == FULL:
            return None, None
        feature = self._cache.get(position.slot, entry, key)
        return (None, None) if feature is None else (entry, feature)

    def _planned(self, position: Position) -> PlanEntry:
        if position.step >= len(self._plan):
            # Without a list of timesteps nobody knows how many steps there will be.
            count = position.num_steps or max(64, 2 * position.step)
            self._plan = self._checked_plan(count)
            for branch in {entry for entry in self._plan if entry != FULL}:
                self._recorders.setdefault(branch, Recorder())
        return self._plan[position.step]

    def _checked_plan(self, num_steps: int) -> Sequence[PlanEntry]:
        plan = self._schedule.plan(num_steps)
        if len(plan) != num_steps:
            raise InvalidSettingError(
                f"the plan of {self._schedule!r} has {len(plan)} entries for {num_steps} steps"
            )
        for entry in plan:
            if entry != FULL:
                self._anatomy.check_branch(entry)
        return plan

    @contextmanager
    def _cut(self, branch: int | None, feature: torch.Tensor | None) -> Iterator[None]:
        """The U-Net as one call shall see it: shallow, or whole; with taps where it is recorded."""
        planned = {entry for entry in self._plan if entry != FULL}
        tapped = tuple(sorted(b for b in planned if branch is None or b < branch))
        if (branch, tapped) not in self._cuts:
            recorders = {b: self._recorders[b] for b in tapped}
            self._cuts[branch, tapped] = self._anatomy.cut(branch, self._stand_in, recorders)
        self._stand_in.feature = feature
        try:
            with self._cuts[branch, tapped].applied():
                yield
        except BaseException:
            for recorder in self._recorders.values():
                recorder.take()
            raise
        finally:
            self._stand_in.feature = None

    def _keep_recorded(self, position: Position, key: FeatureKey) -> None:
        last = position.num_steps is not None and position.step == position.num_steps - 1
        for branch, recorder in self._recorders.items():
            feature = recorder.take()
            if feature is not None and not last:
                self._cache.put(position.slot, branch, key, feature)
        if last:
            self._cache.drop(position.slot)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"a U-Net call runs in full: {reason}", DeepCacheWarning, stacklevel=2)


def _unwrapped(unet: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper."""
    return cast(nn.Module, getattr(unet, "_orig_mod", unet))


def _unets(pipe: Any) -> list[nn.Module]:
    """The U-Nets of a pipeline, or the bare U-Net itself.

    Raises:
        UnsupportedModelError: If there is none.
    """
    if isinstance(pipe, nn.Module):
        return [pipe]
    if not isinstance(pipe, DiffusionPipeline):
        raise UnsupportedModelError(
            f"DeepCacheHelper takes a diffusers pipeline or a U-Net, not {type(pipe).__name__}"
        )
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    unets = [module for module in modules if is_unet(_unwrapped(module))]
    if unets:
        return unets
    cure = ""
    if hasattr(pipe.components.get("transformer"), "enable_cache"):
        cure = (
            "; transformers have caches of their own in diffusers: "
            "see pipe.transformer.enable_cache(...)"
        )
    names = ", ".join(type(module).__name__ for module in modules) or "no modules"
    raise UnsupportedModelError(
        f"{type(pipe).__name__} has no U-Net that can be cut (it has {names}){cure}"
    )


def _scheduler_of(pipe: Any) -> Callable[[], Any]:
    """Gives the scheduler that the pipeline has now, without keeping the pipeline alive."""
    if isinstance(pipe, nn.Module):
        return lambda: None
    reference = weakref.ref(pipe)
    return lambda: getattr(reference(), "scheduler", None)
