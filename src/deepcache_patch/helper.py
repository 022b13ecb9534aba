"""`DeepCacheHelper`, the public face: settings, and when they are in force. How is known below."""

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from diffusers import DiffusionPipeline
from torch import nn

from .inspection.branches import Branches, BranchesOfEach, branches_of_pipeline
from .inspection.description import as_html, as_text
from .learning.calibrate import calibrate
from .running.attachment import SWITCHING, Attachment, refuse_another, release_left_behind
from .running.compiling import compile_in_place
from .running.pause import Pause
from .running.stats import LOGGER, LastGeneration, Stats
from .schedules.guide import AnySchedule, guides_of
from .schedules.replay import Replay
from .settings.by_name import replay_of, schedule_of, uniform_of
from .settings.fitting import anatomies_for
from .versions import warn_of_untested

if TYPE_CHECKING:
    from .compare.outcome import Comparison


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
            which is the paper's, or any `Replay`. Not for schedules with one of their own (`Auto`).

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
        *("__weakref__", "_attachment", "_entered", "_examples", "_last"),
        *("_pause", "_pipe", "_replay", "_schedule", "_stats"),
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
        self._attachment: Attachment | None = None
        # What is left of an attachment that is no more.
        self._examples: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        self._stats, self._last = Stats(), dict[str, LastGeneration]()
        self._entered: list[bool] = []
        self._pause = Pause()
        self._schedule: AnySchedule = schedule_of(schedule, interval, branch)
        anatomies_for(pipe, self._schedule)
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
        return self._attachment is not None and self._attachment.holds(self._pipe)

    @property
    def stats(self) -> Stats:
        """Counts since `enable`; those of the last time while disabled."""
        return self._stats if self._attachment is None else self._attachment.stats

    @property
    def last_generations(self) -> dict[str, LastGeneration]:
        """How the last generation of each U-Net went since `enable`, by the component's name.

        The last ones while disabled. If several threads share a U-Net: the one that began last.
        """
        return self._last if self._attachment is None else self._attachment.last_generations

    @property
    def attached(self) -> dict[str, str]:
        """The classes of the U-Nets and ControlNets that are patched, by component's name."""
        return self._attachment.names(self._pipe) if self._attachment and self.enabled else {}

    @property
    def branches(self) -> Branches | BranchesOfEach:
        """What each branch leaves out, what it costs and what it holds; printed, a table.

        A sequence of `Branch`; with several U-Nets, one of them for each component's name. Costs
        and sizes are those of a call of the last generation, or else of a call for one picture of
        the U-Net's own size, where what that needs is known.

        Raises:
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
        """
        if self._attachment is not None:
            self._examples.update(self._attachment.examples)
        return branches_of_pipeline(self._pipe, self._examples)

    def enable(self) -> "DeepCacheHelper":
        """Patch the U-Net and return the helper. Harmless when already enabled.

        Waits for calls of the U-Net that are under way in other threads, as `disable` does; neither
        may be called from within one.

        Raises:
            AlreadyEnabledError: If another helper is enabled on the same U-Net.
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
            InvalidSettingError: If it was replaced by one without the schedule's branch.
        """
        with SWITCHING:
            before, pipe = self._attachment, self._pipe
            if before is not None and before.holds(pipe) and before.stands_outside(pipe):
                return self
            anatomies = anatomies_for(pipe, self._schedule)
            refuse_another(pipe, self)
            self.disable()  # what is left of an earlier enable, or of a helper that was deleted
            guides = guides_of(self._schedule, self._replay)
            found = Attachment(pipe, anatomies, guides, self._pause.is_on, weakref.ref(self))
            found.attach()
            self._attachment = found
            LOGGER.info("%s, %s: enabled", type(pipe).__name__, self._schedule)
            return self

    def disable(self) -> None:
        """Remove every trace from the U-Net and release the cache. Harmless when not enabled."""
        with SWITCHING:
            found = self._attachment
            if found is not None:
                found.detach()
                self._examples.update(found.examples)
                self._stats, self._last = found.stats, found.last_generations
                self._attachment = None
                LOGGER.info("%s, %s: disabled", type(self._pipe).__name__, self._schedule)
            release_left_behind(self._pipe)

    def __enter__(self) -> "DeepCacheHelper":
        with SWITCHING:
            enabled = self.enabled
            self.enable()
            self._entered.append(enabled)
            return self

    def __exit__(self, *_: object) -> None:
        with SWITCHING:
            if not self._entered.pop():
                self.disable()

    def paused(self) -> AbstractContextManager[None]:
        """The plain pipeline for the length of a `with` block, bit-exact.

        Only for what this thread calls in it, or this asyncio task, `asyncio.to_thread` included: a
        server may pause one request while others are served. Threads of a pool are not paused by
        who gives them work: enter the block in them. A generation that is under way goes on, after
        a paused call, as if it were a new one.

        Raises:
            RuntimeError: If the block is left in another thread or task than it was entered in.
        """
        return self._pause.block()

    def set_params(
        self,
        cache_interval: int | None = None,
        cache_branch_id: int | None = None,
        skip_mode: Literal["uniform"] = "uniform",
    ) -> None:
        """Change the uniform schedule as `follow` does; the call of `DeepCacheSDHelper`.

        Args:
            cache_interval: N of the paper's 1:N, at least 1; `None` leaves it as it is.
            cache_branch_id: The branch; `None` leaves it as it is.
            skip_mode: Only `"uniform"`.

        Raises:
            InvalidSettingError: If a value is out of range, if `skip_mode` is another, or if one of
                the two is `None` while the schedule is not uniform.
        """
        self.follow(uniform_of(self._schedule, cache_interval, cache_branch_id, skip_mode))

    def follow(self, schedule: AnySchedule) -> None:
        """Go by another schedule, before or while enabled.

        A generation that is under way goes on as if it were a new one, with a full step.

        Raises:
            InvalidSettingError: If it names a branch that a U-Net does not have, or does not fit.
        """
        with SWITCHING:
            anatomies_for(self._pipe, schedule)  # or it is refused
            self._schedule = schedule
            if self._attachment is not None:
                self._attachment.follow(guides_of(schedule, self._replay))

    calibrate = calibrate

    def compare(
        self, *, seeds: Sequence[int] | None = None, repeats: int = 1, **call: Any
    ) -> "Comparison":
        """Generate the same without and with the helper, and see what differs and what it costs.

        Needs scikit-image, which the extra `compare` brings. `compare.run.compare` tells all.

        Args:
            seeds: One for each result; prompts share them out evenly. By default one a prompt.
            repeats: Timed runs of each kind, at least 1; the figures are their medians.
            call: Arguments of the pipeline's `__call__`, such as `prompt`.

        Example:
            >>> outcome = helper.compare(prompt="a fox", seeds=[0, 1])  # doctest: +SKIP
            >>> outcome.save("fox.html")  # doctest: +SKIP
        """
        from .compare.run import compare  # only it needs what the extra brings

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
        compile_in_place(self._pipe, **options)
        return self

    def reset(self) -> None:
        """Forget the current generation: the next U-Net call runs in full as a first step."""
        if self._attachment is not None:
            self._attachment.reset()

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
