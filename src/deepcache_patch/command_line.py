"""The command line: arguments in, exit code out. What a command does stands in the library; here
is only how it is asked for, and how bad input is answered: one line on stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .command_input import BadInputError, finite, positive, prompts_of, require_writable, seed
from .terminal import first_line, one_line, say

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

_EXAMPLE = """\
example:
  %(prog)s stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --prompt "a lighthouse in a storm" --steps 50 --interval 3

Writes comparison.html, comparison.png and comparison.json into the output folder.
"""

_CALIBRATE_EXAMPLE = """\
example:
  %(prog)s stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --prompts prompts.txt --speedup 2.5 --out schedule.json

In Python: DeepCacheHelper(pipe, schedule=Calibrated.load("schedule.json")).
"""

#: Options that only some pipelines know, by the name of the argument that each one sets.
_CALL_OPTIONS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "guidance_scale": "--guidance-scale",
    "num_inference_steps": "--steps",
    "height": "--height",
    "width": "--width",
}


class FailedError(Exception):
    """Something went wrong on the way; the message says where."""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, one_line(f"{self.prog}: error: {message} (see --help)") + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 for a failure, 2 for bad input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options = build_parser().parse_args(argv)
    try:
        return int(options.run(options, shlex.join(["deepcache-patch", *argv])))
    except BadInputError as error:
        return _complain(options, str(error), EXIT_BAD_INPUT)
    except FailedError as error:
        return _complain(options, str(error), EXIT_FAILED)
    except (ImportError, OSError) as error:
        return _complain(options, first_line(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain(options, "interrupted", 130)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        what = f"unexpected {type(error).__name__}: {first_line(error)}"
        return _complain(options, f"{what} (python -X dev shows where)", EXIT_FAILED)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser with all commands."""
    parser = _Parser(prog="deepcache-patch", description="DeepCache for diffusers pipelines.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_compare(commands)
    _add_calibrate(commands)
    _add_branches(commands)
    return parser


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="the same pictures without and with DeepCache: time, PSNR, SSIM, a page to look at",
        description="Generates the same pictures without and with DeepCache, and compares them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # calibrate has --prompts, compare --prompt
    )
    add = parser.add_argument
    _add_pipeline(parser)
    add("--prompt", action="append", metavar="TEXT", help="may be given several times")
    add("--interval", type=positive, metavar="N", help="one full step in N (default: 3)")
    add("--branch", type=int, metavar="K", help="0, the default, is fastest")
    add(
        "--schedule",
        default="uniform",
        metavar="NAME|FILE",
        help="uniform (default), auto, or a file that `calibrate` wrote",
    )
    add("--replay", choices=("extrapolate", "reuse"), help="default: extrapolate")
    add("--seed", type=seed, default=0, metavar="N", help="of the first picture (default: 0)")
    add("--images", type=positive, metavar="N", help="default: 4, or one for each prompt")
    add("--repeats", type=positive, default=1, metavar="N", help="timed runs of each; medians")
    output = Path("deepcache-comparison")
    add("--output", type=Path, default=output, metavar="DIR", help=f"default: {output}")
    add("--json", action="store_true", help="print the figures as JSON, not as a table")
    parser.set_defaults(run=_compare, command="compare")


def _add_calibrate(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="learn the best schedule for a pipeline, and write it to a file",
        description="Generates pictures to learn which steps to compute in full, and how to make "
        "the others.",
        epilog=_CALIBRATE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # calibrate has --prompts, compare --prompt
    )
    add = parser.add_argument
    _add_pipeline(parser)
    add("--prompts", type=Path, metavar="FILE", help="text file, one prompt in a line")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--speedup", type=finite, metavar="X", help="of the denoising loop, at least")
    goal.add_argument("--full-steps", type=positive, metavar="N", help="steps that run in full")
    goal.add_argument("--psnr", type=finite, metavar="DB", help="to the plain pictures, on average")
    add("--branch", type=int, default=0, metavar="K", help="0, the default, is fastest")
    add("--seed", type=seed, default=0, metavar="N", help="of the first picture (default: 0)")
    add("--images", type=positive, metavar="N", help="default: 4, or one for each prompt")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON file to write")
    parser.set_defaults(run=_calibrate, command="calibrate")


def _add_branches(commands: Any) -> None:
    parser = commands.add_parser(
        "branches",
        help="the branches that a pipeline's U-Net has: place, cost, size",
        description="Prints what a shallow call leaves out at each branch, its share of the "
        "U-Net's work, and the size of what is held. Generates nothing.",
    )
    _add_model(parser)
    _add_dtype(parser)
    parser.set_defaults(run=_branches, command="branches")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a diffusers pipeline, or hub id")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    default = "float16 on a GPU, else float32"
    parser.add_argument(
        "--dtype", metavar="NAME", help=f"float32, float16, bfloat16 (default: {default})"
    )


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    """What the commands that generate ask about the pipeline and its call."""
    add = parser.add_argument
    _add_model(parser)
    add("--negative-prompt", metavar="TEXT")
    add("--guidance-scale", type=finite, metavar="X", help="default: the pipeline's own")
    add("--height", type=positive, metavar="PIXELS")
    add("--width", type=positive, metavar="PIXELS")
    add("--steps", type=positive, metavar="N", help="denoising steps (default: 50)")
    add("--scheduler", metavar="NAME", help="ddim, dpm-solver++, euler, … or a class of diffusers")
    add("--device", metavar="NAME", help="default: the best that there is")
    _add_dtype(parser)


def _compare(options: argparse.Namespace, command: str) -> int:
    # Here, so that --help and a mistyped option need not wait for torch.
    from . import DeepCacheHelper
    from .compared import FILES
    from .similarity import require_metrics

    require_metrics()
    require_writable("--output", options.output, *(options.output / name for name in FILES))
    with _bad_input():
        pipe = _load(options)
        seeds, call = _call(pipe, options)
        helper = DeepCacheHelper(pipe, **_schedule(options), replay=options.replay)
    with _bad_input(f"{type(pipe).__name__}: "), _failure(pipe):
        outcome = helper.compare(seeds=seeds, repeats=options.repeats, **call)

    options.output.mkdir(parents=True, exist_ok=True)
    picture, _, report = outcome.save_all(options.output, command=command)
    if options.json:
        say(outcome.to_json(command=command))
    else:
        say(f"{outcome.table()}\n\nreport: {report}\npicture: {picture}")
    return 0


def _calibrate(options: argparse.Namespace, command: str) -> int:
    from . import DeepCacheHelper
    from .generation import batched_call, seeded_call
    from .similarity import require_metrics

    if options.psnr is not None:
        require_metrics()
    require_writable("--out", options.out.parent, options.out)
    options.prompt = None if options.prompts is None else prompts_of(options.prompts)
    with _bad_input():
        pipe = _load(options)
        seeds, call = _call(pipe, options)
        helper = DeepCacheHelper(pipe)
        arguments = batched_call(pipe, call, len(seeds))
    with _bad_input(f"{type(pipe).__name__}: "), _failure(pipe):
        schedule = helper.calibrate(
            lambda: seeded_call(pipe, arguments, seeds),
            speedup=options.speedup,
            full_steps=options.full_steps,
            psnr=options.psnr,
            branch=options.branch,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    schedule.save(options.out)
    plan = schedule.solution.plan
    say(f"{plan}\n{len(plan.full_steps)} of {len(plan)} steps in full; written to {options.out}")
    return 0


def _branches(options: argparse.Namespace, command: str) -> int:
    from . import DeepCacheHelper
    from .loading import choose_device, choose_dtype, load_pipeline

    _quiet_loading()
    with _bad_input():
        dtype = choose_dtype(options.dtype, choose_device())
        # Nothing runs, so the weights need not go to the device.
        pipe = load_pipeline(options.model, choose_device("cpu"), dtype)
        branches = DeepCacheHelper(pipe).branches
    say(str(branches))
    return 0


def _load(options: argparse.Namespace) -> Any:
    from .loading import choose_device, choose_dtype, load_pipeline, use_scheduler

    _quiet_loading()
    device = choose_device(options.device)
    pipe = load_pipeline(options.model, device, choose_dtype(options.dtype, device))
    if options.scheduler is not None:
        use_scheduler(pipe, options.scheduler)
    return pipe


def _schedule(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `DeepCacheHelper`."""
    given = {"interval": options.interval, "branch": options.branch}
    if options.schedule == "uniform":
        return given
    if options.schedule == "auto":
        return {**given, "schedule": "auto"}
    from .calibrated import Calibrated

    if options.interval is not None or options.branch is not None:
        raise BadInputError("--interval and --branch stand in the file of --schedule already")
    try:
        return {"schedule": Calibrated.load(options.schedule)}
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"--schedule is uniform, auto or a file; cannot read {options.schedule}: {reason}"
        raise BadInputError(message) from error


@contextmanager
def _bad_input(where: str = "") -> Iterator[None]:
    """What the library refuses is the person's mistake: said in one line."""
    from .errors import DeepCacheError

    try:
        yield
    except (ValueError, DeepCacheError) as error:
        raise BadInputError(f"{where}{first_line(error)}") from error


@contextmanager
def _failure(pipe: Any) -> Iterator[None]:
    """Whatever else pipeline, scheduler and device raise together."""
    from .errors import DeepCacheError

    try:
        yield
    except (ValueError, DeepCacheError):
        raise
    except Exception as error:
        device, dtype = pipe.device, str(pipe.dtype).removeprefix("torch.")
        where = f"{type(pipe).__name__} on {device} in {dtype}"
        raise FailedError(f"{where} failed: {first_line(error)}") from error


def _call(pipe: Any, options: argparse.Namespace) -> tuple[range, dict[str, Any]]:
    """Returns the seeds and the arguments for this pipeline, and refuses what it does not know."""
    from .generation import accepted_arguments, batched_call

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

    prompts = call.get("prompt", [])
    if len(prompts) == 1:
        call["prompt"] = prompts[0]
    images = options.images or (len(prompts) if len(prompts) > 1 else 4)
    try:
        batched_call(pipe, call, images)
    except (TypeError, ValueError) as error:
        raise BadInputError(str(error)) from error
    return range(options.seed, options.seed + images), call


def _quiet_loading() -> None:
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


def _complain(options: argparse.Namespace, message: str, code: int) -> int:
    print(one_line(f"deepcache-patch {options.command}: error: {message}"), file=sys.stderr)
    return code
