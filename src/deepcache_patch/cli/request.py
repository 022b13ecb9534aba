"""From the options to objects, for the commands that load a pipeline: the pipeline, its call, the
schedule. All that can be known before a picture is made is checked here. The options themselves
are in `options`; fields here have their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidSettingError, first_line
from .arguments import CALL_OPTIONS, Argument, as_call
from .files import model_folder, picture_in, prompts_in, scheduler_in
from .loras import Lora, add_loras
from .mistakes import BadInputError, bad_input, reason_of, require_package
from .names import ONE_TIMESTEP, SCHEDULER_OPTIONS, SCHEDULERS, SCHEDULES, name_of_scheduler
from .terminal import complain, phase, shows_bars

if TYPE_CHECKING:
    from ..schedules.window import Window

#: The share of a branch is known before a generation but for the text's length, which matters less.
_MARGIN: Final = 1.01


@dataclass(frozen=True, kw_only=True)
class PipelineRequest:
    """A pipeline, as the options `model` and `loading` ask for it."""

    model: str
    variant: str | None
    revision: str | None
    lora: tuple[Lora, ...]
    scheduler: str | None
    device: str | None
    dtype: str | None
    offload: str | None

    def check(self) -> None:
        """Refuses what can be seen to be wrong before torch is imported."""
        with bad_input():
            model_folder(self.model, self.revision)
            for lora in self.lora:
                lora.check()
            if self.lora:
                require_package("peft", "--lora")
            if self.offload is not None:
                require_package("accelerate", "--offload")

    def check_schedule(self, schedule: Any, file: str) -> None:
        """Refuses a schedule that was calibrated with another scheduler than `--scheduler`."""
        from ..learning.calibrated_schedule import Calibrated
        from . import loading

        if self.scheduler is None or not isinstance(schedule, Calibrated):
            return
        made, kind = schedule.setting.scheduler, loading.scheduler_class(self.scheduler).__name__
        here = {"class": kind, **SCHEDULER_OPTIONS.get(self.scheduler.lower(), {})}
        differs = any(made.get(name) != value for name, value in here.items())
        if differs and made["class"] in SCHEDULERS.values():  # which can be asked for
            raise _another_scheduler(file, made, here)

    def load(self) -> Any:
        """Loads it."""
        from . import loading

        loading.quiet_loading()
        if self.scheduler is not None:
            loading.scheduler_class(self.scheduler)
        device = loading.choose_device(self.device)
        dtype = loading.choose_dtype(self.dtype, device)
        place = device if self.offload is None else loading.cpu_before(device)
        phase(f"loading {self.model}")
        pipe = loading.load_pipeline(
            self.model, place, dtype, variant=self.variant, revision=self.revision
        )
        add_loras(pipe, self.lora, **loading.safely())
        pipe = self._fitted(pipe)
        if self.scheduler is not None:
            loading.use_scheduler(pipe, self.scheduler)
        if self.offload is not None:
            loading.offload_models(pipe, device, self.offload)
        if not shows_bars():
            loading.without_bars(pipe)
        return pipe

    def _fitted(self, pipe: Any) -> Any:
        """The pipeline that is meant, made of the parts of the one that was loaded."""
        return pipe


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(PipelineRequest):
    """A pipeline and its call, as the option `generation` asks for them as well."""

    prompt: tuple[str, ...]
    prompts: Path | None
    negative_prompt: str | None
    guidance_scale: float | None
    image: Path | None
    strength: float | None
    height: int | None
    width: int | None
    steps: int | None
    seed: int
    images: int | None
    arguments: tuple[Argument, ...]

    def check(self) -> None:
        """Refuses what can be seen to be wrong before torch is imported."""
        super().check()
        self._prompts()
        if self.image is not None:
            picture_in(self.image)

    def check_full_steps(self, full_steps: int | None) -> None:
        """Refuses more of them than `--steps`, before torch is imported.

        Only where each step has one timestep: Heun's method runs up to 49 in full with 25 steps.
        """
        if full_steps is None or self.steps is None or full_steps <= self.steps:
            return
        kind = SCHEDULERS.get(self.scheduler or "", self.scheduler)
        if kind is None and (folder := model_folder(self.model, self.revision)) is not None:
            kind = scheduler_in(folder)
        if kind in ONE_TIMESTEP:
            raise BadInputError(
                f"--full-steps {full_steps} is more than --steps {self.steps}: give {self.steps} "
                "or fewer, or more --steps"
            )

    def check_steps(self, schedule: Any, file: str) -> None:
        """Refuses a calibrated schedule of other steps than `--steps`, before the model is loaded.

        Only where each step of its scheduler, the only one that it fits, has one timestep, and
        nothing else says how many steps run.
        """
        from ..compare.call_steps import BEGINS, STEP_ARGUMENTS, require_so_many
        from ..learning.calibrated_schedule import Calibrated

        given = {each.name for each in self.arguments}
        told = self.steps is not None and self.image is None
        if not isinstance(schedule, Calibrated) or not told or given & {*BEGINS, *STEP_ARGUMENTS}:
            return
        if schedule.setting.scheduler["class"] in ONE_TIMESTEP:
            require_so_many(schedule, self.steps, f"--schedule {file}")

    def _fitted(self, pipe: Any) -> Any:
        from .loading import image_to_image

        return pipe if self.image is None else image_to_image(pipe)

    def _prompts(self) -> list[str]:
        """The prompts of `--prompt`, then those in the file of `--prompts`."""
        return [*self.prompt, *([] if self.prompts is None else prompts_in(self.prompts))]

    def call_of(
        self, pipe: Any, *, enough: int | None = None, one_batch: bool = False
    ) -> tuple[range, dict[str, Any]]:
        """Returns seeds and arguments for this pipeline, and refuses what it does not know.

        Without `--images` there are `enough` results or more, as many of each prompt; by default 4
        of a single prompt, one of each of several.

        Args:
            pipe: The pipeline.
            enough: How many results are enough.
            one_batch: Whether one call makes all of them; else one makes each video or sound.
        """
        from ..compare.call_steps import LISTS
        from ..measuring.generation import accepted_arguments, batched_call, calls_of
        from ..page.card import card_of

        name, accepted, prompts = type(pipe).__name__, accepted_arguments(pipe), self._prompts()
        given = {**vars(self), "prompt": prompts or None, "num_inference_steps": self.steps}
        call = {key: given[key] for key in CALL_OPTIONS if given[key] is not None}
        sized = "height" in accepted or self.image is not None
        if sized and ("height" in call) != ("width" in call):
            raise BadInputError("give --height and --width together: diffusers ignores one alone")
        if self.image is not None:
            call["image"] = self._picture(call, accepted)
        for argument in call:
            if argument not in accepted:
                cure = "it is for --image" if argument == "strength" else "leave it out"
                raise BadInputError(f"{name} does not know {CALL_OPTIONS[argument]}: {cure}")
        if "prompt" in accepted and not prompts:
            raise BadInputError(f"{name} draws what a text says: give it with --prompt")
        if {"image", "strength"} <= accepted.keys() and self.image is None:
            raise BadInputError(f"{name} begins with a picture: give it with --image")
        call |= as_call(self.arguments, accepted, name)
        if "num_inference_steps" in accepted and not {*LISTS} & call.keys():
            call.setdefault("num_inference_steps", 50)
        scale = card_of(pipe).defaults.get("guidance_scale")
        if scale is not None and "guidance_scale" in accepted.keys() - call.keys():
            call["guidance_scale"] = scale
            complain(f"guidance scale {scale:g}, as the model's card says (--guidance-scale)")

        if len(prompts) == 1:
            call["prompt"] = prompts[0]
        several = max(1, len(prompts))
        enough = enough or (4 if several == 1 else several)
        images = self.images or several * ceil(enough / several)
        try:
            if one_batch:
                batched_call(pipe, call, images)
            else:
                calls_of(pipe, call, range(images))
        except (TypeError, ValueError) as error:
            # "One seed" is what Python is to give.
            raise BadInputError(str(error).replace("one seed", "--images 1")) from error
        return range(self.seed, self.seed + images), call

    def _picture(self, call: dict[str, Any], accepted: Mapping[str, Any]) -> Any:
        """The picture of `--image`: one for each prompt, where they make one batch.

        A pipeline that has no size of its own makes pictures of the size of this one, so `height`
        and `width` are taken out of the call, and become the picture's.
        """
        from ..compare.about import PICTURE_FILE, PictureFile

        picture, size = picture_in(self.image or Path()), None
        if "height" in call and "height" not in accepted:
            size = call.pop("width"), call.pop("height")
            picture = picture.resize(size)
        setattr(picture, PICTURE_FILE, PictureFile(str(self.image), size))
        batch = "num_images_per_prompt" in accepted and len(call.get("prompt", ())) > 1
        return [picture] * len(call["prompt"]) if batch else picture


def require_branch(pipe: Any, branch: int | None, *, model: str) -> None:
    """Refuses a branch that the U-Net does not have, and says where they are listed."""
    from ..helper import DeepCacheHelper

    if branch is None:
        return
    try:
        DeepCacheHelper(pipe, branch=branch)
    except InvalidSettingError as error:
        reason = first_line(error).partition(";")[0]
        shown = f"`deepcache-patch branches {model}` shows them"
        raise BadInputError(f"{reason}; {shown}") from error


def require_within_reach(
    pipe: Any,
    call: dict[str, Any],
    *,
    speedup: float | None,
    full_steps: int | None,
    branch: int,
    window: Window,
) -> None:
    """Refuses the goal of a calibration that no schedule can have, as far as it is known."""
    from ..compare.call_steps import timesteps_that_run
    from ..helper import DeepCacheHelper
    from ..inspection.branches import Branches, share_of

    steps = timesteps_that_run(pipe, call)
    if steps is None:
        return
    if full_steps is not None:
        _require_so_many(full_steps, steps, window)
    if speedup is not None:
        branches, share = DeepCacheHelper(pipe).branches, None
        # It is known for the U-Net's own size: smaller pictures have a smaller one.
        if isinstance(branches, Branches) and call.get("height") is None:
            share = share_of(branches, branch)
        share, always = share or 0, _always_full(steps, window)
        most = steps / (always + (steps - always) * share)
        if speedup > min(steps / always, _MARGIN * most):
            raise BadInputError(
                f"--speedup {speedup:g} is out of reach: with {always} of {steps} steps in full "
                f"at branch {branch}, the U-Net's work is 1/{most:.1f} of all; ask for less"
            )


def _require_so_many(full_steps: int, steps: int, window: Window) -> None:
    if full_steps > steps:
        raise BadInputError(
            f"--full-steps {full_steps} is more than the generation has: {steps}; give {steps} or "
            "fewer, or more --steps"
        )
    always = _always_full(steps, window)
    if full_steps < always:
        raise BadInputError(
            f"--full-steps {full_steps} is fewer than run in full in any case, by --first and "
            f"--last: {always}"
        )


def _always_full(steps: int, window: Window) -> int:
    """How many of so many steps are full in any plan: the first, and protected ones."""
    return len(window.steps(steps) | {0})


def read_schedule(file: str, *, several: bool = False) -> Any:
    """What the file of `--schedule` holds: the one schedule, or all of them."""
    from ..learning.calibrated_schedule import Calibrated, load_all

    try:
        return load_all(file) if several else Calibrated.load(file)
    except OSError as error:
        raise BadInputError(f"cannot read --schedule {file}: {reason_of(error)}") from error


def schedule_given(name: str) -> Any:
    """The schedule that `--schedule` means: its name, or what the file holds."""
    return name if name in SCHEDULES else read_schedule(name)


def require_one_amount(
    schedule: str, *, interval: float | None, speedup: float | None, full_steps: int | None
) -> None:
    """Refuses what says in two ways how much runs in full, or where nothing goes by it."""
    from ..settings.by_name import TAKE_SPEEDUP

    given = {"--interval": interval, "--speedup": speedup, "--full-steps": full_steps}
    names = [name for name, value in given.items() if value is not None]
    for name in names:
        if name != "--interval" and schedule not in TAKE_SPEEDUP:
            raise BadInputError(f"{name} goes with --schedule default or auto")
    if len(names) > 1:
        raise BadInputError(f"give one of {names[0]} and {names[1]}, not both")


def interval_leaving(full_steps: int, steps: int, window: Window) -> float:
    """The interval by which so many of a generation's steps run in full.

    Args:
        full_steps: Those that the window protects are among them.
        steps: How many steps the generation has.
        window: What runs in full in any case.
    """
    from ..schedules.placing import FEW_STEPS

    _require_so_many(full_steps, steps, window)
    if full_steps < steps <= FEW_STEPS:
        raise BadInputError(
            f"--full-steps {full_steps} of {steps} steps: with {FEW_STEPS} or fewer all run in "
            "full; take more --steps, or --schedule uniform with --interval"
        )
    protected = window.steps(steps)
    others, left = steps - len(protected), full_steps - len(protected)
    if left == 0:
        return others + 1  # so long that none comes beside them
    # Rounded down, so that it is the same where it is written with six digits.
    scale = 10.0 ** (5 - int(log10(others / left)))
    return floor(scale * others / left) / scale


def interval_for_call(pipe: Any, call: Mapping[str, Any], full_steps: int, window: Window) -> float:
    """The same, by the steps that a call has, as far as it is known."""
    from ..compare.call_steps import STEP_ARGUMENTS, timesteps_that_run

    steps = timesteps_that_run(pipe, call)
    if steps is None:
        told = [
            each for each in STEP_ARGUMENTS if each != "strength" and call.get(each) is not None
        ]
        because = f"with --call {told[0]}" if told else f"of a {type(pipe).__name__}"
        raise BadInputError(
            f"--full-steps needs the number of steps, which is not known {because}: give --interval"
        )
    return interval_leaving(full_steps, steps, window)


def require_own_scheduler(pipe: Any, schedule: Any, file: str) -> None:
    """Refuses a calibrated schedule of another scheduler, where `--scheduler` is the cure."""
    from ..learning.calibrated_schedule import Calibrated, described
    from ..patching.wrappers import unwrapped
    from ..running.pipeline.components import likeliest_scheduler, unets_of

    if not isinstance(schedule, Calibrated):
        return
    for name, unet in unets_of(pipe).items():
        if described(unwrapped(unet)) != dict(schedule.setting.unet):
            return  # no scheduler would make it fit
        own, made = likeliest_scheduler(pipe, name), schedule.setting.scheduler
        here, wanted = described(own), name_of_scheduler(made)
        if name_of_scheduler(here) != wanted and _is_built_by(wanted, own, schedule):
            raise _another_scheduler(file, made, here)


def _another_scheduler(
    file: str, made: Mapping[str, Any], here: Mapping[str, Any]
) -> BadInputError:
    """The refusal of a schedule that was calibrated with another scheduler than is here."""
    wanted = name_of_scheduler(made)
    return BadInputError(
        f"--schedule {file} was calibrated with {wanted}, and here is {name_of_scheduler(here)}: "
        f"give --scheduler {wanted}, or calibrate anew"
    )


def _is_built_by(name: str, own: Any, schedule: Any) -> bool:
    """Whether `--scheduler name` gives the scheduler of a calibrated schedule."""
    from ..learning.calibrated_schedule import described
    from .loading import scheduler_of

    try:
        return described(scheduler_of(name, own.config)) == dict(schedule.setting.scheduler)
    except ValueError:  # not of diffusers
        return False
