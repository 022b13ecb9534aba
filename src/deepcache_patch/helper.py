"""`DeepCacheHelper`, the public face: settings, and when they are in force. How is known below."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline
from torch import nn

from .inspection.description import as_html, as_text
from .learning.calibrate import calibrate
from .learning.calibrated_schedule import Calibrated
from .running.attachment import SWITCHING, Attachment
from .running.locating.declared import declared_by
from .running.pipeline.components import compile_in_place
from .running.pipeline.owners import held_by, hold, release
from .running.stats import LOGGER, LastGeneration, Stats
from .schedules.guide import AnySchedule
from .schedules.plans import OUTPUT, Plan, schedule_text
from .schedules.replay import Replay
from .settings.adjustable import Adjustable
from .settings.by_name import ReplayName, ScheduleName
from .settings.changed import require_known
from .settings.fitting import anatomies_for
from .settings.preview import plan_of
from .versions import warn_of_untested

if TYPE_CHECKING:
    import os

    from diffusers import ModularPipeline
    from typing_extensions import Never

    from .compare.outcome import Comparison
    from .sweep.outcome import Sweep


class DeepCacheHelper(Adjustable):
    """Makes the U-Net of an existing pipeline skip its deep layers on most denoising steps.

    Example:
        >>> helper = DeepCacheHelper(pipe, interval=3).enable()  # doctest: +SKIP
        >>> images = pipe("a red circle").images  # doctest: +SKIP
        >>> print(helper)  # doctest: +SKIP
        >>> helper.disable()  # doctest: +SKIP

    Full steps and the disabled helper are bit-exact; shallow steps are approximate, which is where
    the speed comes from. The pipeline itself is not changed, its U-Net only for the length of a
    call, and `disable` leaves every module as it was. A helper that is deleted while enabled stays
    in force until another one of the same U-Net is enabled or disabled. After the U-Net was
    replaced, call `enable` again; after a ControlNet was, `disable` and `enable`.

    In a hand-written loop, declare each picture by `generation`; or call `reset` before it, unless
    `set_timesteps` makes new timesteps for it: else a loop that was broken off cannot be told from
    the start of the next.

    Args:
        pipe: A diffusers pipeline with a U-Net, modular ones included, or a bare U-Net for a
            hand-written loop.
        interval: One full step in so many, at least 1, a whole number or not (default 2.2). Which
            they are, the noise levels say: see `NoiseAware`.
        branch: Where shallow steps are cut: -1 (default), above the output, where nothing of the
            U-Net runs and its output is forecast, or from 0 up to a limit that depends on the
            U-Net; a higher one is slower, and its shallow steps are closer to full ones.
        speedup: In the place of `interval`: how many times less work the U-Net shall have, at
            least 1, in multiply-adds; for the default and "auto". A shallow step costs what
            `branches` says.
        schedule: Any `Schedule`, in the place of all these; or the name of one, which takes
            `interval` and `branch`: "default", which is "noise-aware", "uniform", which is the
            paper's, "centred", "adaptive", or "auto", which learns from the first generation.
        first: How many steps at the start of each generation run in full, whatever the schedule
            says: an integer of at least 0 (default), or a float from 0 to below 1, a share of the
            generation's steps, rounded up. Counted from the steps that run.
        last: How many at the end of each generation, given as `first` is.
        replay: What a shallow step gets: `"extrapolate"` (default), `"reuse"`, which is the
            paper's, or any `Replay`. Not for schedules with one of their own (`Auto`).
        unknown: Nothing. A mistyped setting is answered by the one that may be meant.

    Raises:
        UnsupportedModelError: If there is no U-Net here that can be cut.
        InvalidSettingError: If an argument is out of range; the message names the range.
    """

    __slots__ = ("_found", "_paused", "_was_kept")

    def __init__(
        self,
        pipe: "DiffusionPipeline | ModularPipeline | nn.Module",
        *,
        interval: float | None = None,
        branch: int | None = None,
        speedup: float | None = None,
        schedule: AnySchedule | ScheduleName | None = None,
        first: float = 0,
        last: float = 0,
        replay: Replay | ReplayName | None = None,
        **unknown: "Never",
    ) -> None:
        require_known(unknown)
        warn_of_untested()
        self._found: list[bool] = []  # by each `with` block that is open: enabled or not
        self._was_kept = False  # by the pipeline, when it was disabled: see `switches`
        self._paused = ContextVar("paused", default=False)  # of a thread or task
        attachment = Attachment(pipe, self._paused.get, weakref.ref(self))
        given = {
            "interval": interval,
            "branch": branch,
            "speedup": speedup,
            "schedule": schedule,
            "first": first,
            "last": last,
            "replay": replay,
        }
        super().__init__(pipe, attachment, given)

    @property
    def pipe(self) -> "DiffusionPipeline | ModularPipeline | nn.Module":
        """The pipeline, or the bare U-Net."""
        return self._pipe

    @property
    def enabled(self) -> bool:
        """Whether calls of the pipeline's U-Nets come to this helper (while it is paused, too).

        False again when the pipeline got another U-Net: call `enable` anew.
        """
        return self._attachment.holds

    @property
    def stats(self) -> Stats:
        """Counts since `enable`; those of the last time while disabled."""
        return self._attachment.stats

    @property
    def last_generations(self) -> dict[str, LastGeneration]:
        """How each U-Net's last generation went (that began last), by the component's name."""
        return self._attachment.last_generations

    @property
    def attached(self) -> dict[str, str]:
        """The classes of the U-Nets and ControlNets that are patched, by component's name."""
        return self._attachment.names if self.enabled else {}

    def plan(
        self, num_inference_steps: int | None = None, *, strength: float = 1, **timesteps: Any
    ) -> Plan:
        """The plan of a generation that has not been, by the pipeline's scheduler.

        Of several U-Nets, that of the first; of a bare one, that of a loop without a scheduler.

        Args:
            num_inference_steps: By default, as many as the pipeline makes by itself.
            strength: The `strength` of pipelines that begin with a picture, 0 to 1.
            timesteps: What the scheduler's `set_timesteps` takes beside, such as `timesteps=[…]`.

        Returns:
            What will run: `FULL`, or the branch, for each step. Printed, a strip. Of `Auto`, what
            runs once it has learned: the first generation in each setting runs in full.

        Raises:
            InvalidSettingError: If the schedule decides while the generation runs (`Adaptive`), has
                no plan for so many steps, or the scheduler refuses the arguments.
        """
        settings: Any = {"window": self._settings.window, "strength": strength, **timesteps}
        return plan_of(self._pipe, self.schedule, num_inference_steps, **settings)

    def enable(self) -> "DeepCacheHelper":
        """Patch the U-Net and return the helper. Harmless when already enabled.

        Waits for calls of the U-Net that are under way in other threads, as `disable` does; neither
        may be called from within one.

        Raises:
            AlreadyEnabledError: If another helper is enabled on the same U-Net.
            UnsupportedModelError: If the U-Net was replaced by one that cannot be cut.
            InvalidSettingError: If it was replaced by one without the schedule's branch.
        """
        with SWITCHING:
            attachment = self._attachment
            if not (attachment.holds and attachment.stands_outside):
                anatomies = anatomies_for(self._pipe, self.schedule)
                attachment.attach(anatomies, self._settings.guide_factory())
                LOGGER.info("%s, %s: enabled", type(self._pipe).__name__, self.schedule)
            if self._was_kept:
                hold(self._pipe, self)
            return self

    def disable(self) -> None:
        """Remove every trace from the U-Net and release the cache. Harmless when not enabled."""
        with SWITCHING:
            if self._attachment.detach():
                LOGGER.info("%s, %s: disabled", type(self._pipe).__name__, self.schedule)
            if held_by(self._pipe) is self:
                self._was_kept = True
                release(self._pipe)

    def __enter__(self) -> "DeepCacheHelper":
        with SWITCHING:
            enabled = self.enabled
            self.enable()
            self._found.append(enabled)
            return self

    def __exit__(self, *_: object) -> None:
        with SWITCHING:
            if not self._found.pop():
                self.disable()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The plain pipeline for the length of a `with` block, bit-exact.

        Only for what this thread or asyncio task calls in it, `asyncio.to_thread` included: a
        server may pause one request. Threads of a pool are not paused by who gives them work: enter
        the block in them. After a paused call, a generation goes on as if it were a new one.

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

    def generation(
        self,
        *,
        sigmas: Any = None,
        timesteps: Any = None,
        scheduler: Any = None,
        prediction_type: str | None = None,
    ) -> AbstractContextManager[None]:
        """Declare the one generation that a `with` block is: a loop of your own has no pipeline.

        For what this thread or asyncio task calls in it, `asyncio.to_thread` included. Of several
        tasks made in one block only the first to call is meant: enter a block in each. Entered in a
        generator, it is for what is called while that runs. Give one of the three; what is recorded
        is released when the block is left. What is returned may be entered again, for another
        picture, but not while it is open.

        Args:
            sigmas: The noise level of each call of the U-Net, falling, where the data's is 1; those
                that are equal are one step. A closing zero is left out. Steps are told apart by the
                order in which other timesteps come: give those that run, all of them and no others.
                That they were too few is seen at the call after the last of them, and that they
                were too many at the end; that they are timesteps only if they fall evenly.
            timesteps: One for each step, no noise levels. The loop may begin midway, and leave some
                out.
            scheduler: An object of diffusers, after its `set_timesteps`.
            prediction_type: Beside `sigmas`, if the U-Net gets x / sqrt(1 + sigma²): what its
                output means, "epsilon", "v_prediction" or "sample". Without, branch -1 stands for
                0.

        Raises:
            InvalidSettingError: If what is given is not that.
            RuntimeError: If the helper is not enabled, the block is open already or entered in an
                asynchronous generator, or left in another thread or task than it was entered in.
        """
        declared = declared_by(
            sigmas=sigmas,
            timesteps=timesteps,
            scheduler=scheduler,
            prediction_type=prediction_type,
        )
        return self._attachment.generation(declared)

    def calibrate(
        self,
        run: Callable[[], Any],
        *,
        speedup: float | None = None,
        full_steps: int | None = None,
        psnr: float | None = None,
        branch: int = OUTPUT,
    ) -> Calibrated:
        """Learn the best schedule for what `run` does, go by it, and return it, to be saved.

        `run` is called about ten times, two of them in full; more often if it is timed, or for a
        goal in dB. Use other prompts in it than those by which you judge the result, eight pictures
        or more: with one, what is nearest was up to 6 dB worse than the default for others. Give
        one of the three goals. The helper goes by what was found at once.

        With so many full steps five plans are tried, by how much early errors cost, and then three
        other ways to go on from full steps by the nearest plan: half of the trend that the default
        follows, and what was learned from the full run, damped little or much. What comes nearest
        to the plain pictures is taken. If `run` does not return the same pictures each time there
        is nothing to compare: then the default's plan and the learned weights are taken, with a
        warning.

        For `speedup`, the number of full steps follows from the work of a shallow call (the
        branch's `share`), which is the same each time. Then plain and accelerated runs are timed in
        turn: 3 times, or 9 where these vary or are too slow. Full steps are taken away only if the
        upper quartile is below the goal, at most half of them, and as if a shallow call cost at
        most twice its work, or a tenth of a full one if that is more; plans are tried anew then.
        Where half of the timings spread over more than 20 % of their median, or only their median
        is below the goal, the plan stays as it is, with a warning; so it does, with another, where
        the goal is still not reached. What was reached is in the schedule's `reached`: work, speed,
        its quartiles, and, if `run` makes the same pictures each time and returns them, their PSNR,
        that by the default's rule with as many full steps, and how many pictures there are.

        Args:
            run: Calls the pipeline once or more, always with the same steps, makes the same
                pictures each time (by seeded generators), and returns what the pipeline returned,
                or a list.
            speedup: How many times as fast the denoising loop shall be; 1 or more.
            full_steps: How many steps shall run in full, at least 1.
            psnr: How close the pictures shall be to the plain ones, in dB, on average over those
                that are not identical.
            branch: The branch of the shallow steps: -1, above the output, or at least 0, where only
                plans are compared.

        Raises:
            InvalidSettingError: If the goal or `run` is not what it has to be, or out of reach.
        """
        goals: Any = {"speedup": speedup, "full_steps": full_steps, "psnr": psnr}
        return calibrate(self, run, **goals, branch=branch)

    def compare(
        self,
        *,
        seeds: Sequence[int] | None = None,
        repeats: int = 1,
        fewer_steps: bool = True,
        **call: Any,
    ) -> "Comparison":
        """Generate the same without and with the helper, and see what differs and what it costs.

        With `schedule="auto"` the calibration comes first, from other seeds. The helper is left as
        it was found, its counts too; those of one that is enabled begin anew. Needs scikit-image,
        which the extra `compare` brings. The guidance scale is the pipeline's own unless it is
        given; the command `compare` takes that of the model's card before.

        Args:
            seeds: One for each result; prompts, or without any images, share them out evenly, in
                order. By default there is one for each.
            repeats: Timed runs of each kind, at least 1; speeds are medians of the ratios of runs
                that followed each other, and have their range.
            fewer_steps: Whether the plain pipeline is measured, too, with so few steps that the
                work of the U-Net is the same as with the helper, or barely more.
            call: Arguments of the pipeline's `__call__`, such as `prompt`.

        Returns:
            All results, times, PSNR, SSIM, what ran; `save("x.html")` writes a page.

        Raises:
            ImportError: scikit-image is not installed.
            TypeError, ValueError: An argument is not what the pipeline, or a comparison, takes.
        """
        from .compare.run import compare  # only it needs what the extra brings

        return compare(self, seeds=seeds, repeats=repeats, fewer_steps=fewer_steps, **call)

    def sweep(
        self,
        *,
        interval: float | Sequence[float | None] | None = (2, None, 3, 5),
        schedule: AnySchedule | str | Sequence[AnySchedule | str] = "default",
        branch: int | Sequence[int | None] | None = None,
        seeds: Sequence[int] | None = None,
        repeats: int = 3,
        fewer_steps: bool = True,
        folder: "str | os.PathLike[str] | None" = None,
        **call: Any,
    ) -> "Sweep":
        """Generate the same with many settings, to see which one to take for this model.

        All are compared to the plain pipeline with the largest number of steps: what one would do
        without a helper. They run in turn, in rounds: the first makes all results, further ones
        only time. Settings share the helper's `first`, `last` and `replay`, not its schedule. The
        helper is left as it was found, as by `compare`. Needs scikit-image, which the extra
        `compare` brings.

        Args:
            interval: One, or several to be tried with each schedule that has a name; `None` for
                the schedule's own.
            schedule: One or several: "default", other names, files that `calibrate` wrote, objects.
            branch: One or several; `None` for the schedule's own.
            seeds: One for each result; prompts, or without any images, share them out evenly, in
                order. By default there is one for each.
            repeats: Rounds, at least 1; speeds are medians of them, and have their range.
            fewer_steps: Whether the plain pipeline runs, too, with so few steps that the work of
                the U-Net is that of each setting, or barely more.
            folder: Where each row is kept once it is made, and the report is written. A second call
                makes only what is missing; Ctrl-C loses only the run that is under way.
            call: Arguments of the pipeline's `__call__`. `num_inference_steps` may be a list.

        Returns:
            A row for each setting; printed, a table with the setting at the knee;
            `save("x.html")` writes a page with the curve of speed against quality.

        Raises:
            ImportError: scikit-image is not installed.
            InvalidSettingError: A setting is out of range, does not fit the pipeline, or leaves
                nothing out; or the folder holds a sweep of another request, or could not tell a
                schedule of your own from another one.
            TypeError, ValueError: An argument is not what the pipeline, or a comparison, takes.
        """
        from .sweep.run import sweep  # only it needs what the extra brings

        return sweep(
            self,
            interval=interval,
            schedule=schedule,
            branch=branch,
            seeds=seeds,
            repeats=repeats,
            fewer_steps=fewer_steps,
            folder=folder,
            **call,
        )

    def compile(self, **options: Any) -> "DeepCacheHelper":
        """Compile the U-Nets and ControlNets of the pipeline in place, and return the helper.

        Each kind of call becomes one graph when it first happens: full, shallow at each branch of
        the schedule, and plain. `disable` leaves them compiled. `torch.compile` by your own hand
        before `enable` does the same, and so does `unet.compile()` at any time.

        Args:
            options: Those of `torch.compile`; `fullgraph` is `True` unless it is given, so that no
                graph breaks in silence.

        Raises:
            InvalidSettingError: If one of them is `torch.compile`'s already.
        """
        compile_in_place(self._pipe, **options)
        return self

    def reset(self) -> None:
        """Forget the current generation: the next U-Net call runs in full as a first step."""
        self._attachment.reset()

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        window = f", {self._settings.window}" if self._settings.window else ""
        schedule = schedule_text(self.schedule)
        return f"DeepCacheHelper({type(self._pipe).__name__}, {schedule}{window}, {state})"

    def __str__(self) -> str:
        return as_text(self, self._attachment.lost)

    def _repr_html_(self) -> str:
        return as_html(self, self._attachment.lost)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a DeepCacheHelper cannot be copied or pickled, because it belongs to its pipeline: "
            "copy the pipeline, and make a new helper for it"
        )
