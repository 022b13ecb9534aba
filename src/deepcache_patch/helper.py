"""`DeepCacheHelper`, the public face: settings, and when a pipeline's U-Nets are patched."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from diffusers import DiffusionPipeline
from torch import nn

from .cutting.anatomy import Anatomy, dissect
from .errors import AlreadyEnabledError, InvalidSettingError, UnsupportedModelError
from .inspection.branches import Branches, BranchesOfEach, branches_of
from .inspection.description import as_html, as_text
from .inspection.outline import Outline
from .learning.learned import Calibrated
from .patching.call import CallPatch, call_patch_of, whole
from .patching.wrappers import is_compiled_wrapper, layers_of, unwrapped
from .running.controlnet import AttachedCompanion
from .running.pipelines import (
    controlnets_of,
    is_sharded,
    modules_later,
    modules_of,
    schedulers_of,
    unets_of,
)
from .running.stats import LOGGER, LastGeneration, Stats
from .running.unet import AttachedUNet
from .schedules.guide import AnySchedule, Context, Guide, GuidingSchedule, PlannedGuide
from .schedules.plans import Schedule, Uniform
from .schedules.replay import Replay
from .settings.arguments import replay_of, schedule_of
from .versions import warn_of_untested

if TYPE_CHECKING:
    from .compare.outcome import Comparison

#: Held by whoever installs or removes patches: two threads must not find the same U-Net free, and
#: before it is patched it has no lock of its own.
_SWITCHING: Final = threading.RLock()


class DeepCacheHelper:
    """Makes the U-Net of an existing pipeline skip its deep layers on most denoising steps.

    Full steps and the disabled helper are bit-exact; shallow steps are approximate, which is where
    the speed comes from. The pipeline itself is not changed, its U-Net only for the length of a
    call, and `disable` leaves every module as it was. A helper that is deleted while enabled stays
    in force until another one of the same U-Net is enabled or disabled, which releases its cache.
    After the U-Net was replaced, call `enable` again; after a ControlNet was, `disable` and
    `enable`, or the new one runs whole.

    In a hand-written loop, call `reset` before each picture, unless the loop gets new timesteps
    from `set_timesteps`: from the timesteps alone, a loop that was broken off, or a call to warm
    up, cannot be told from the beginning of the next loop.

    Args:
        pipe: A diffusers pipeline with a U-Net, or a bare U-Net for a hand-written loop.
        interval: N of the paper's 1:N, at least 1 (default 3): steps 0, N, 2N, … run in full.
        branch: Where shallow steps are cut (default 0, the shallowest and fastest), from 0 up to a
            limit that depends on the U-Net; a higher one is slower and closer to the plain picture.
        schedule: Any `Schedule`, in the place of `interval` and `branch`; or `"auto"`, which learns
            from the first generation: `Auto(interval, branch)`.
        replay: What a shallow step gets for the deep feature: `"extrapolate"` (default), `"reuse"`,
            which is the paper's, or any `Replay`. Not for schedules that bring their own, such as
            `Auto`.

    Raises:
        UnsupportedModelError: If there is no U-Net here that can be cut.
        InvalidSettingError: If an argument is out of range; the message names the range.

    Example:
        >>> helper = DeepCacheHelper(pipe, interval=3).enable()  # doctest: +SKIP
        >>> images = pipe("a red circle").images  # doctest: +SKIP
        >>> helper.disable()  # doctest: +SKIP
    """

    # So that a misspelt setting (`helper.interval = 5`) is an error and not a silence.
    __slots__ = (
        "__weakref__",
        "_attached",
        "_companions",
        "_entered",
        "_examples",
        "_last",
        "_paused",
        "_pipe",
        "_replay",
        "_schedule",
        "_stats",
    )

    def __init__(
        self,
        pipe: DiffusionPipeline | nn.Module,
        *,
        interval: int | None = None,
        branch: int | None = None,
        schedule: AnySchedule | Literal["auto"] | None = None,
        replay: Replay | Literal["extrapolate", "reuse"] | None = None,
    ) -> None:
        warn_of_untested()
        self._pipe = pipe
        self._attached: tuple[AttachedUNet, ...] = ()
        self._companions: tuple[AttachedCompanion, ...] = ()
        self._examples: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        self._stats = Stats()
        self._last: dict[str, LastGeneration] = {}
        self._entered: list[bool] = []
        self._paused = ContextVar("paused", default=False)
        self._schedule: AnySchedule = schedule_of(schedule, interval, branch)
        self._check(self._schedule)
        self._replay = replay_of(replay, self._schedule)

    @property
    def pipe(self) -> DiffusionPipeline | nn.Module:
        """The pipeline, or the bare U-Net."""
        return self._pipe

    @property
    def schedule(self) -> AnySchedule:
        """What decides which steps run in full, and at which branch the others run."""
        return self._schedule

    @property
    def replay(self) -> Replay:
        """What a shallow step gets for the deep feature; a schedule with its own does without."""
        return self._replay

    @property
    def enabled(self) -> bool:
        """Whether calls of the pipeline's U-Nets come to this helper (while it is paused, too).

        False again when the pipeline got another U-Net; `enable` then attaches anew.
        """
        # What was compiled since calls what it was.
        parts = {each for part in modules_of(self._pipe).values() for each in layers_of(part)}
        attached = self._attached
        return bool(attached) and all(each.installed and each.unet in parts for each in attached)

    @property
    def stats(self) -> Stats:
        """Counts since `enable`; those of the last time while disabled."""
        return sum((attached.stats for attached in self._attached), self._stats)

    @property
    def last_generations(self) -> dict[str, LastGeneration]:
        """How the last generation of each U-Net went, by the name of the component.

        Of those since `enable`; the last ones while disabled. For a U-Net that several threads
        share, it is the generation that began last.
        """
        return self._last | _last_of(self._attached)

    @property
    def attached(self) -> dict[str, str]:
        """The classes of the U-Nets and ControlNets that are patched, by component's name."""
        if not self.enabled:
            return {}
        patched = {each.unet for each in self._attached}
        patched |= {each.controlnet for each in self._companions}
        return {
            name: type(unwrapped(module)).__name__
            for name, module in modules_of(self._pipe).items()
            if module in patched
        }

    @property
    def branches(self) -> Branches | BranchesOfEach:
        """What each branch leaves out, what it costs and what it holds; printed, a table.

        A sequence of `Branch`; with several U-Nets, one of them for each component's name. Costs
        and sizes are those of a call of the last generation, or else of a call for one picture of
        the U-Net's own size, where what that needs is known.

        Raises:
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
        """
        for each in self._attached:
            self._keep_example(each)
        unets, outlines = unets_of(self._pipe), {}
        for unet in unets.values():
            with whole(unet):
                outlines[unet] = Outline(unwrapped(unet))
        tables = {
            name: branches_of(outlines[unet], self._examples.get(unwrapped(unet)))
            for name, unet in unets.items()
        }
        return BranchesOfEach(tables) if len(tables) > 1 else next(iter(tables.values()))

    def enable(self) -> "DeepCacheHelper":
        """Patch the U-Net and return the helper. Harmless when already enabled.

        Waits for calls of the U-Net that are under way in other threads, as `disable` does; neither
        may be called from within one.

        Raises:
            AlreadyEnabledError: If another helper is enabled on the same U-Net.
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
            InvalidSettingError: If it was replaced by one without the schedule's branch.
        """
        with _SWITCHING:
            if self.enabled and self._stands_outside():
                return self
            anatomies = self._check(self._schedule)
            names = {unet: name for name, unet in unets_of(self._pipe).items()}
            for unet in anatomies:
                for module in layers_of(unet):
                    self._refuse_another(module)
            self.disable()  # what is left of an earlier enable, or of a helper that was deleted
            attached = tuple(
                AttachedUNet(
                    names[unet],
                    self._patch_of(unet),
                    anatomy,
                    self._begin(),
                    schedulers_of(self._pipe, names[unet]),
                    self._paused.get,
                )
                for unet, anatomy in anatomies.items()
            )
            companions = self._attach_companions(attached)
            with ExitStack() as undo:
                for each in attached:
                    undo.callback(each.detach)
                    each.attach()
                for companion in companions:
                    undo.callback(companion.detach)
                    companion.attach()
                undo.pop_all()
            self._stats, self._attached, self._companions = Stats(), attached, companions
            self._last = {}
            LOGGER.info("%s, %s: enabled", type(self._pipe).__name__, self._schedule)
            return self

    def disable(self) -> None:
        """Remove every trace from the U-Net and release the cache. Harmless when not enabled."""
        with _SWITCHING:
            attached, self._attached = self._attached, ()
            companions, self._companions = self._companions, ()
            for companion in companions:
                companion.detach()
            for each in attached:
                self._keep_example(each)
                each.detach()
            self._stats = sum((each.stats for each in attached), self._stats)
            self._last |= _last_of(attached)
            for module in (*_unets_if_any(self._pipe), *controlnets_of(self._pipe)):
                for patched in layers_of(module):
                    patch = call_patch_of(patched)
                    if patch is not None and patch.tag() is None:  # of a helper that was deleted
                        patch.remove()
            if attached:
                LOGGER.info("%s, %s: disabled", type(self._pipe).__name__, self._schedule)

    def __enter__(self) -> "DeepCacheHelper":
        with _SWITCHING:
            enabled = self.enabled
            self.enable()
            self._entered.append(enabled)
            return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _SWITCHING:
            if not self._entered.pop():
                self.disable()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The plain pipeline for the length of a `with` block, bit-exact.

        Only for what this thread calls in it, or this asyncio task, `asyncio.to_thread` included: a
        server may pause one request while others are served. Threads of a pool are not paused by
        who gives them work: enter the block in them. A generation that is under way goes on, after
        a paused call, as if it were a new one.

        Raises:
            RuntimeError: If the block is left in another thread or task than it was entered in.
        """
        before = self._paused.set(True)
        try:
            yield
        finally:
            try:
                self._paused.reset(before)
            except ValueError as error:
                raise RuntimeError(
                    "paused() was entered in another thread or asyncio task: leave it there, too"
                ) from error

    def set_params(
        self,
        cache_interval: int | None = None,
        cache_branch_id: int | None = None,
        skip_mode: Literal["uniform"] = "uniform",
    ) -> None:
        """Change the uniform schedule, before or while enabled; the call of `DeepCacheSDHelper`.

        A generation that is under way goes on as if it were a new one, with a full step.

        Args:
            cache_interval: N of the paper's 1:N, at least 1; `None` leaves it as it is.
            cache_branch_id: The branch; `None` leaves it as it is.
            skip_mode: Only `"uniform"`.

        Raises:
            InvalidSettingError: If a value is out of range, if `skip_mode` is another, or if one of
                the two is `None` while the schedule is not uniform.
        """
        if skip_mode != "uniform":
            raise InvalidSettingError(
                f"skip_mode must be 'uniform', not {skip_mode!r}: for another strategy give "
                "DeepCacheHelper(pipe, schedule=...) a schedule"
            )
        if isinstance(self._schedule, Uniform):
            if cache_interval is None:
                cache_interval = self._schedule.interval
            if cache_branch_id is None:
                cache_branch_id = self._schedule.branch
        if cache_interval is None or cache_branch_id is None:
            raise InvalidSettingError(
                f"the schedule is {self._schedule!r}: to replace it by a uniform one, give both "
                "cache_interval and cache_branch_id"
            )
        self.follow(Uniform(cache_interval, cache_branch_id))

    def follow(self, schedule: AnySchedule) -> None:
        """Go by another schedule, before or while enabled.

        A generation that is under way goes on as if it were a new one, with a full step.

        Raises:
            InvalidSettingError: If it names a branch that a U-Net does not have, or does not fit.
        """
        with _SWITCHING:
            self._check(schedule)
            self._schedule = schedule
            for attached in self._attached:
                attached.follow(self._begin())

    def calibrate(
        self,
        run: Callable[[], Any],
        *,
        speedup: float | None = None,
        full_steps: int | None = None,
        psnr: float | None = None,
        branch: int = 0,
    ) -> Calibrated:
        """Learn the best schedule for what `run` does, and go by it.

        `run` is called several times: at first in full, to record, and then to measure. Use other
        prompts in it than those by which you judge the result.

        Args:
            run: Calls the pipeline once or more, always with the same steps. For `psnr` it makes
                the same pictures each time and returns what the pipeline returned, or a list of
                that.
            speedup: How many times as fast the denoising loop shall be, at least; 1 or more.
            full_steps: How many steps shall run in full, at least 1.
            psnr: How close the pictures shall be to those of the plain pipeline, in dB on average;
                the fastest schedule that reaches it on these pictures is taken.
            branch: Of the shallow steps, at least 0.

        Returns:
            The schedule, to be saved and loaded elsewhere. The helper goes by it already.

        Raises:
            InvalidSettingError: If not exactly one of the three is given, one is out of range or
                out of reach, or `run` is not what it has to be.
        """
        from .learning.calibrate import calibrate  # it sits on top of this module

        return calibrate(
            self, run, speedup=speedup, full_steps=full_steps, psnr=psnr, branch=branch
        )

    def compare(
        self, *, seeds: Sequence[int] | None = None, repeats: int = 1, **call: Any
    ) -> "Comparison":
        """Generate the same without and with the helper, and see what differs and what it costs.

        After a short warm-up. With `schedule="auto"` the calibration comes first, from other seeds.
        The helper is left enabled or disabled as it was found. Needs scikit-image, which the extra
        `compare` brings.

        Args:
            seeds: One for each picture, video or sound; several prompts share them out evenly. By
                default 0, or 0, 1, 2, … for as many prompts.
            repeats: Timed runs of each kind, at least 1; the figures are their medians.
            call: Arguments of the pipeline's `__call__`, such as `prompt`.

        Returns:
            Both sets of results, times, PSNR, SSIM, the plan that ran; `grid()` is a picture of it,
            and `save("x.html")` writes a page.

        Raises:
            ImportError: scikit-image is not installed.
            TypeError: An argument that the pipeline does not know, or one that it lacks; or it
                returns nothing that can be compared, or is a bare U-Net.
            ValueError: No seeds, `repeats` below 1, or seeds that the prompts do not share evenly.

        Example:
            >>> outcome = helper.compare(prompt="a fox", seeds=[0, 1])  # doctest: +SKIP
            >>> print(outcome.table())  # doctest: +SKIP
            >>> outcome.save("fox.html")  # doctest: +SKIP
        """
        from .compare.run import compare  # it sits on top of this module

        return compare(self._pipe, self, seeds=seeds, repeats=repeats, **call)

    def compile(self, **options: Any) -> "DeepCacheHelper":
        """Compile the U-Nets and ControlNets of the pipeline in place, and return the helper.

        Each kind of call becomes one graph when it first happens: full and shallow, for each branch
        of the schedule, and plain when the helper is paused or disabled. `torch.compile` by your
        own hand before `enable` does the same, and so does `unet.compile()` at any time. `disable`
        leaves them compiled.

        Args:
            options: Those of `torch.compile`, such as `mode="reduce-overhead"` for CUDA graphs.
                `fullgraph` is `True` unless it is given, so that no graph breaks in silence.

        Raises:
            InvalidSettingError: If one of them is `torch.compile`'s already.
        """
        unets = unets_of(self._pipe).values()
        modules = list(dict.fromkeys([*unets, *controlnets_of(self._pipe)]))
        for module in modules:
            if any(map(is_compiled_wrapper, layers_of(module))):
                raise InvalidSettingError(
                    f"{type(unwrapped(module)).__name__} is wrapped by torch.compile already: "
                    "leave out one of the two"
                )
        for module in modules:
            module.compile(**{"fullgraph": True, **options})
        return self

    def reset(self) -> None:
        """Forget the current generation: the next U-Net call runs in full as a first step."""
        for attached in self._attached:
            attached.reset()

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        return f"DeepCacheHelper({type(self._pipe).__name__}, {self._schedule}, {state})"

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a DeepCacheHelper cannot be copied or pickled, because it belongs to its pipeline: "
            "copy the pipeline, and make a new helper for it"
        )

    def _begin(self) -> Callable[[Context], Guide]:
        """What gives each generation its guide; nothing that keeps the pipeline alive."""
        schedule, replay = self._schedule, self._replay
        if isinstance(schedule, GuidingSchedule):
            return lambda context: schedule.begin(context, replay)
        return lambda context: PlannedGuide(schedule, replay, context)

    def _check(self, schedule: AnySchedule) -> dict[nn.Module, Anatomy]:
        """The pipeline's U-Nets as it calls them, each with its anatomy, if the schedule fits."""
        unets, anatomies = unets_of(self._pipe), {}
        for unet in unets.values():
            with whole(unet):
                anatomies[unet] = dissect(unwrapped(unet))
        if isinstance(schedule, type) or not isinstance(schedule, Schedule | GuidingSchedule):
            raise InvalidSettingError(
                "schedule must be 'auto', what Calibrated.load(file) gives, or an object with a "
                f"method plan(num_steps), not {schedule!r}"
            )
        if not isinstance(schedule, Schedule) and any(map(is_sharded, unets.values())):
            raise InvalidSettingError(
                f"{type(schedule).__name__} may decide otherwise in each process, but the U-Net is "
                "sharded, and all processes must call the same layers: take Uniform, or a schedule "
                "that was calibrated before"
            )
        for branch in getattr(schedule, "branches", ()):
            for anatomy in anatomies.values():
                anatomy.check_branch(branch)
        if isinstance(schedule, Calibrated):
            for name, unet in unets.items():
                schedulers = schedulers_of(self._pipe, name)()
                schedule.check(unwrapped(unet), schedulers[0] if schedulers else None)
        return anatomies

    def _patch_of(self, module: nn.Module) -> CallPatch:
        """One to be installed round the module's calls, tagged with this helper."""
        return CallPatch(module, modules_later(self._pipe), tag=weakref.ref(self))

    def _attach_companions(
        self, attached: tuple[AttachedUNet, ...]
    ) -> tuple[AttachedCompanion, ...]:
        """One for each ControlNet that can be cut along with the pipeline's only U-Net."""
        found: list[AttachedCompanion] = []
        for controlnet in controlnets_of(self._pipe) if len(attached) == 1 else ():
            # One that another pipeline has, too, is cut for the first of the two.
            if call_patch_of(controlnet) is None:
                with suppress(UnsupportedModelError):  # then it runs whole
                    found.append(AttachedCompanion(self._patch_of(controlnet), attached[0]))
        return tuple(found)

    def _stands_outside(self) -> bool:
        """Whether nothing was compiled round what this is attached to."""
        attached = {each.unet for each in self._attached}
        attached |= {each.controlnet for each in self._companions}
        return attached <= set(modules_of(self._pipe).values())

    def _keep_example(self, attached: AttachedUNet) -> None:
        if attached.example is not None:
            self._examples[unwrapped(attached.unet)] = attached.example

    def _refuse_another(self, unet: nn.Module) -> None:
        """Check that no other helper that still exists is enabled.

        Raises:
            AlreadyEnabledError: If one is.
        """
        patch = call_patch_of(unet)
        if patch is not None and patch.tag() not in (None, self):
            raise AlreadyEnabledError(
                f"another DeepCacheHelper is enabled on this {type(unwrapped(unet)).__name__}: "
                "call its disable() first, or change it with its set_params()"
            )


def _last_of(attached: Iterable[AttachedUNet]) -> dict[str, LastGeneration]:
    found = {each.name: each.last_generation for each in attached}
    return {name: last for name, last in found.items() if last is not None}


def _unets_if_any(pipe: Any) -> list[nn.Module]:
    try:
        return list(dict.fromkeys(unets_of(pipe).values()))
    except UnsupportedModelError:
        return []
