"""From the options to objects, for the commands that load a pipeline: the pipeline, its call, the
schedule. All that can be known before a picture is made is checked here. The options themselves
are in `options`; fields here have their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import InvalidSettingError, first_line
from .files import prompts_in, require_file_name
from .mistakes import BadInputError, reason_of
from .names import SCHEDULES

#: Options that only some pipelines know, by the name of the argument that each one sets.
_CALL_OPTIONS: Final = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "guidance_scale": "--guidance-scale",
    "num_inference_steps": "--steps",
    "height": "--height",
    "width": "--width",
}

#: The share of a branch is known before a generation but for the text's length, which matters less.
_MARGIN: Final = 1.01


@dataclass(frozen=True, kw_only=True)
class PipelineRequest:
    """A pipeline, as the options `model` and `loading` ask for it."""

    model: str
    scheduler: str | None
    device: str | None
    dtype: str | None

    def load(self) -> Any:
        """Loads it."""
        from .loading import (
            choose_device,
            choose_dtype,
            load_pipeline,
            quiet_loading,
            use_scheduler,
        )

        quiet_loading()
        device = choose_device(self.device)
        pipe = load_pipeline(self.model, device, choose_dtype(self.dtype, device))
        if self.scheduler is not None:
            use_scheduler(pipe, self.scheduler)
        return pipe


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(PipelineRequest):
    """A pipeline and its call, as the option `generation` asks for them as well."""

    prompt: tuple[str, ...]
    prompts: Path | None
    negative_prompt: str | None
    guidance_scale: float | None
    height: int | None
    width: int | None
    steps: int | None
    seed: int
    images: int | None

    def prompts_given(self) -> list[str]:
        """Those of `--prompt`, then those in the file of `--prompts`."""
        return [*self.prompt, *([] if self.prompts is None else prompts_in(self.prompts))]

    def call_of(self, pipe: Any, prompts: list[str]) -> tuple[range, dict[str, Any]]:
        """Returns seeds and arguments for this pipeline, and refuses what it does not know."""
        from ..measuring.generation import accepted_arguments, batched_call

        name, accepted = type(pipe).__name__, accepted_arguments(pipe)
        given = {**vars(self), "prompt": prompts or None, "num_inference_steps": self.steps}
        call = {key: given[key] for key in _CALL_OPTIONS if given[key] is not None}
        for argument in call:
            if argument not in accepted:
                raise BadInputError(f"{name} does not know {_CALL_OPTIONS[argument]}: leave it out")
        if ("height" in call) != ("width" in call):
            raise BadInputError("give --height and --width together: diffusers ignores one alone")
        if "prompt" in accepted and not prompts:
            raise BadInputError(f"{name} draws what a text says: give it with --prompt")
        if "num_inference_steps" in accepted:
            call.setdefault("num_inference_steps", 50)

        if len(prompts) == 1:
            call["prompt"] = prompts[0]
        images = self.images or (len(prompts) if len(prompts) > 1 else 4)
        try:
            batched_call(pipe, call, images)
        except (TypeError, ValueError) as error:
            raise BadInputError(str(error)) from error
        return range(self.seed, self.seed + images), call


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


def require_same_steps(pipe: Any, call: dict[str, Any], file: str, calibrated: Any) -> None:
    """Refuses a calibrated schedule that was made for another number of steps."""
    from ..learning.calibrated_schedule import Calibrated
    from ..settings.preview import num_steps

    steps = num_steps(pipe, call.get("num_inference_steps"))
    if not isinstance(calibrated, Calibrated) or steps is None:
        return
    made = len(calibrated.setting.timesteps)
    if steps != made:
        raise BadInputError(
            f"--schedule {file} was calibrated for {made} steps, and here are {steps}: "
            "give the --steps that it was made with, or calibrate anew"
        )


def require_within_reach(
    pipe: Any,
    call: dict[str, Any],
    *,
    speedup: float | None,
    full_steps: int | None,
    branch: int,
) -> None:
    """Refuses the goal of a calibration that no schedule can have, as far as it is known."""
    from ..helper import DeepCacheHelper
    from ..inspection.branches import Branches, share_of
    from ..settings.preview import num_steps

    steps = num_steps(pipe, call.get("num_inference_steps"))
    if steps is None:
        return
    if (full_steps or 0) > steps:
        raise BadInputError(f"--full-steps {full_steps} is more than the generation has: {steps}")
    if speedup is not None:
        branches, share = DeepCacheHelper(pipe).branches, None
        # It is known for the U-Net's own size: smaller pictures have a smaller one.
        if isinstance(branches, Branches) and call.get("height") is None:
            share = share_of(branches, branch)
        share = share or 0
        most = steps / (1 + (steps - 1) * share)
        if speedup > min(steps, _MARGIN * most):
            raise BadInputError(
                f"--speedup {speedup:g} is out of reach: with 1 of {steps} steps in full "
                f"at branch {branch}, the U-Net's work is 1/{most:.1f} of all; ask for less"
            )


def calibrated_in(schedule: str | None) -> Any:
    """The schedule in the file of `--schedule`, or `None` where that names none."""
    from ..learning.calibrated_schedule import Calibrated

    if schedule is None or schedule in SCHEDULES:
        return None
    require_file_name(schedule, *SCHEDULES)
    try:
        return Calibrated.load(schedule)
    except OSError as error:
        known, reason = ", ".join(SCHEDULES), reason_of(error)
        message = f"--schedule is {known} or a file; cannot read {schedule}: {reason}"
        raise BadInputError(message) from error


def require_speedup_alone(schedule: str, *, interval: float | None, speedup: float | None) -> None:
    """Refuses `--speedup` beside what says as much, or where nothing goes by it."""
    if speedup is not None and schedule != SCHEDULES[0]:
        raise BadInputError(f"--speedup goes with --schedule {SCHEDULES[0]} only")
    if speedup is not None and interval is not None:
        raise BadInputError("give one of --interval and --speedup, not both")


def helper_arguments(
    schedule: str, *, interval: float | None, speedup: float | None, branch: int | None
) -> dict[str, Any]:
    """Arguments of `DeepCacheHelper`."""
    given = {"interval": interval, "branch": branch}
    require_speedup_alone(schedule, interval=interval, speedup=speedup)
    if schedule == SCHEDULES[0]:
        return {**given, "speedup": speedup}
    if schedule in SCHEDULES:
        return {**given, "schedule": schedule}
    if interval is not None or branch is not None:
        raise BadInputError("--interval and --branch stand in the file of --schedule already")
    return {"schedule": calibrated_in(schedule)}
