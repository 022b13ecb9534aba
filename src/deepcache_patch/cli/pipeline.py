"""What the commands that load a pipeline share: the options that name it and its call, how both are
turned into objects, and how what is wrong with them is told. All that can be known before a picture
is made is checked here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..errors import first_line
from .input import BadInputError, finite, positive

#: Options that only some pipelines know, by the name of the argument that each one sets.
_CALL_OPTIONS: Final = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "guidance_scale": "--guidance-scale",
    "num_inference_steps": "--steps",
    "height": "--height",
    "width": "--width",
}

#: Multiply-adds are not seconds: a speedup is refused only if it is so far beyond what they allow.
_MARGIN: Final = 1.5


class FailedError(Exception):
    """Something went wrong on the way; the message says where."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the pipeline's place."""
    parser.add_argument("model", metavar="MODEL", help="folder of a diffusers pipeline, or hub id")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds what the weights are converted to."""
    default = "float16 on a GPU, else float32"
    parser.add_argument(
        "--dtype", metavar="NAME", help=f"float32, float16, bfloat16 (default: {default})"
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds all that `load` asks for, but for the model."""
    add = parser.add_argument
    add("--scheduler", metavar="NAME", help="ddim, dpm-solver++, euler, … or a class of diffusers")
    add("--device", metavar="NAME", help="default: the best that there is")
    add_dtype(parser)


def add_steps(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Adds the number of denoising steps, by its short name and by that of diffusers."""
    names = ("--num-inference-steps", "--steps")
    about = f"denoising steps (default: {default})"
    parser.add_argument(*names, dest="steps", type=positive, metavar="N", help=about)


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Adds what the commands that generate ask about the pipeline and its call."""
    add = parser.add_argument
    add_model(parser)
    add("--negative-prompt", metavar="TEXT")
    add("--guidance-scale", type=finite, metavar="X", help="default: the pipeline's own")
    add("--height", type=positive, metavar="PIXELS")
    add("--width", type=positive, metavar="PIXELS")
    add_steps(parser, default="50")
    add_loading(parser)


def load(options: argparse.Namespace) -> Any:
    """Loads the pipeline that `add_pipeline` or `add_loading` asked for."""
    from .loading import choose_device, choose_dtype, load_pipeline, use_scheduler

    quiet_loading()
    device = choose_device(options.device)
    pipe = load_pipeline(options.model, device, choose_dtype(options.dtype, device))
    if options.scheduler is not None:
        use_scheduler(pipe, options.scheduler)
    return pipe


def call_of(pipe: Any, options: argparse.Namespace) -> tuple[range, dict[str, Any]]:
    """Returns the seeds and the arguments for this pipeline, and refuses what it does not know."""
    from ..measuring.generation import accepted_arguments, batched_call

    name, accepted = type(pipe).__name__, accepted_arguments(pipe)
    given = {**vars(options), "num_inference_steps": options.steps}
    call = {key: given[key] for key in _CALL_OPTIONS if given[key] is not None}
    for argument in call:
        if argument not in accepted:
            raise BadInputError(f"{name} does not know {_CALL_OPTIONS[argument]}: leave it out")
    if ("height" in call) != ("width" in call):
        raise BadInputError("give --height and --width together: diffusers ignores one alone")
    if "prompt" in accepted and "prompt" not in call:
        how = "--prompt" if options.command == "compare" else "a file of --prompts"
        raise BadInputError(f"{name} draws what a text says: give it with {how}")
    if "num_inference_steps" in accepted:
        call.setdefault("num_inference_steps", 50)
    _check_helper(pipe, options, call)

    prompts = call.get("prompt", [])
    if len(prompts) == 1:
        call["prompt"] = prompts[0]
    images = options.images or (len(prompts) if len(prompts) > 1 else 4)
    try:
        batched_call(pipe, call, images)
    except (TypeError, ValueError) as error:
        raise BadInputError(str(error)) from error
    return range(options.seed, options.seed + images), call


def _check_helper(pipe: Any, options: argparse.Namespace, call: dict[str, Any]) -> None:
    """What the helper would find out only when it is made, or after the first picture."""
    from ..errors import InvalidSettingError
    from ..helper import DeepCacheHelper
    from ..settings.preview import num_steps

    if options.branch is not None:
        try:
            DeepCacheHelper(pipe, branch=options.branch)
        except InvalidSettingError as error:
            reason = first_line(error).partition(";")[0]
            where = f"deepcache-patch branches {options.model}"
            raise BadInputError(f"{reason}; `{where}` shows them") from error
    calibrated = calibrated_of(options)
    steps = num_steps(pipe, call.get("num_inference_steps"))
    if calibrated is not None and steps not in (None, made := len(calibrated.setting.timesteps)):
        raise BadInputError(
            f"--schedule {options.schedule} was calibrated for {made} steps, and here are {steps}: "
            "give the --steps that it was made with, or calibrate anew"
        )


def require_within_reach(pipe: Any, options: argparse.Namespace, call: dict[str, Any]) -> None:
    """Refuses the goal of a calibration that no schedule can have, as far as it is known."""
    from ..helper import DeepCacheHelper
    from ..inspection.branches import Branches
    from ..settings.preview import num_steps

    steps = num_steps(pipe, call.get("num_inference_steps"))
    if steps is None:
        return
    if (options.full_steps or 0) > steps:
        raise BadInputError(
            f"--full-steps {options.full_steps} is more than the generation has: {steps}"
        )
    if options.speedup is not None:
        branches = DeepCacheHelper(pipe).branches
        share = branches[options.branch].share if isinstance(branches, Branches) else None
        most = steps / (1 + (steps - 1) * (share or 0))
        if options.speedup > (most if share is None else min(steps, _MARGIN * most)):
            raise BadInputError(
                f"--speedup {options.speedup:g} is out of reach: with 1 of {steps} steps in full "
                f"at branch {options.branch}, the U-Net's work is 1/{most:.1f} of all; ask for less"
            )


def calibrated_of(options: argparse.Namespace) -> Any:
    """The schedule in the file of `--schedule`, or `None` where that names none."""
    from ..learning.learned import Calibrated

    given = getattr(options, "schedule", None)
    if given in (None, "uniform", "auto"):
        return None
    try:
        return Calibrated.load(given)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"--schedule is uniform, auto or a file; cannot read {given}: {reason}"
        raise BadInputError(message) from error


def schedule_of(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `DeepCacheHelper`."""
    given = {"interval": options.interval, "branch": options.branch}
    if options.schedule == "uniform":
        return given
    if options.schedule == "auto":
        return {**given, "schedule": "auto"}
    if options.interval is not None or options.branch is not None:
        raise BadInputError("--interval and --branch stand in the file of --schedule already")
    return {"schedule": calibrated_of(options)}


@contextmanager
def bad_input(where: str = "") -> Iterator[None]:
    """What the library refuses is the person's mistake: said in one line."""
    from ..errors import DeepCacheError

    try:
        yield
    except (ValueError, DeepCacheError) as error:
        raise BadInputError(f"{where}{first_line(error)}") from error


@contextmanager
def failure(pipe: Any) -> Iterator[None]:
    """Whatever else pipeline, scheduler and device raise together."""
    from ..errors import DeepCacheError

    try:
        yield
    except (ValueError, DeepCacheError):
        raise
    except Exception as error:
        device, dtype = pipe.device, str(pipe.dtype).removeprefix("torch.")
        where = f"{type(pipe).__name__} on {device} in {dtype}"
        raise FailedError(f"{where} failed: {first_line(error)}") from error


def quiet_loading() -> None:
    """Keeps stderr to the two generations, or to the one line that says what is wrong."""
    import diffusers

    libraries: list[Any] = [diffusers.utils.logging]
    try:
        import transformers

        libraries.append(transformers.utils.logging)
    except ImportError:  # pixel pipelines do without
        pass
    for library in libraries:
        library.set_verbosity_error()
        if not sys.stderr.isatty():
            library.disable_progress_bar()
