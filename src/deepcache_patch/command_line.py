"""The command line: arguments in, exit code out. What a command does stands in the library; here
is only how it is asked for, and how bad input is answered: one line on stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

_EXAMPLE = """\
example:
  %(prog)s stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --prompt "a lighthouse in a storm" --steps 50 --interval 3

Writes comparison.png and comparison.json into the output folder.
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


#: Bytes of a file of prompts, all of which make one batch.
_LARGEST_PROMPTS = 2**20
#: Of pictures, pixels, steps: beyond, memory runs out before anything can be said.
_LARGEST_COUNT = 100_000


class BadInputError(Exception):
    """What the person typed cannot be done; the message says why and what can."""


class FailedError(Exception):
    """Something went wrong on the way; the message says where."""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, _one_line(f"{self.prog}: error: {message} (see --help)") + "\n")


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
        return _complain(options, _first_line(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain(options, "interrupted", 130)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        what = f"unexpected {type(error).__name__}: {_first_line(error)}"
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
        help="the same pictures without and with DeepCache: time, PSNR, SSIM, a picture of both",
        description="Generates the same pictures without and with DeepCache, and compares them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    _add_pipeline(parser)
    add("--prompt", action="append", metavar="TEXT", help="may be given several times")
    add("--interval", type=_positive, metavar="N", help="one full step in N (default: 3)")
    add("--branch", type=int, metavar="K", help="0, the default, is fastest")
    add(
        "--schedule",
        default="uniform",
        metavar="NAME|FILE",
        help="uniform (default), auto, or a file that `calibrate` wrote",
    )
    add("--replay", choices=("extrapolate", "reuse"), help="default: extrapolate")
    add("--seed", type=_seed, default=0, metavar="N", help="of the first picture (default: 0)")
    add("--images", type=_positive, metavar="N", help="default: 4, or one for each prompt")
    add("--repeats", type=_positive, default=1, metavar="N", help="timed runs of each; medians")
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
    )
    add = parser.add_argument
    _add_pipeline(parser)
    add("--prompts", type=Path, metavar="FILE", help="text file, one prompt in a line")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--speedup", type=_finite, metavar="X", help="of the denoising loop, at least"
    )
    goal.add_argument("--full-steps", type=_positive, metavar="N", help="steps that run in full")
    goal.add_argument(
        "--psnr", type=_finite, metavar="DB", help="to the plain pictures, on average"
    )
    add("--branch", type=int, default=0, metavar="K", help="0, the default, is fastest")
    add("--seed", type=_seed, default=0, metavar="N", help="of the first picture (default: 0)")
    add("--images", type=_positive, metavar="N", help="default: 4, or one for each prompt")
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
    add("--guidance-scale", type=_finite, metavar="X", help="default: the pipeline's own")
    add("--height", type=_positive, metavar="PIXELS")
    add("--width", type=_positive, metavar="PIXELS")
    add("--steps", type=_positive, metavar="N", help="denoising steps (default: 50)")
    add("--scheduler", metavar="NAME", help="ddim, dpm-solver++, euler, … or a class of diffusers")
    add("--device", metavar="NAME", help="default: the best that there is")
    _add_dtype(parser)


def _compare(options: argparse.Namespace, command: str) -> int:
    # Here, so that --help and a mistyped option need not wait for torch.
    from . import DeepCacheHelper
    from .comparison import FILES, compare
    from .similarity import require_metrics

    require_metrics()
    _require_writable("--output", options.output, *(options.output / name for name in FILES))
    with _bad_input():
        pipe = _load(options)
        seeds, call = _call(pipe, options)
        helper = DeepCacheHelper(pipe, **_schedule(options), replay=options.replay)
    with _bad_input(f"{type(pipe).__name__}: "), _failure(pipe):
        outcome = compare(pipe, helper, seeds=seeds, repeats=options.repeats, **call)

    options.output.mkdir(parents=True, exist_ok=True)
    picture = outcome.save_both(options.output, command=command)
    if options.json:
        _print(outcome.to_json(command=command))
    else:
        _print(f"{outcome.table()}\n\npicture: {picture}")
    return 0


def _calibrate(options: argparse.Namespace, command: str) -> int:
    from . import DeepCacheHelper
    from .generation import batched_call, seeded_call
    from .similarity import require_metrics

    if options.psnr is not None:
        require_metrics()
    _require_writable("--out", options.out.parent, options.out)
    options.prompt = None if options.prompts is None else _lines(options.prompts)
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
    _print(f"{plan}\n{len(plan.full_steps)} of {len(plan)} steps in full; written to {options.out}")
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
    _print(str(branches))
    return 0


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_PROMPTS + 1)
        if len(content) > _LARGEST_PROMPTS:
            raise BadInputError(f"--prompts {path} has more than {_LARGEST_PROMPTS} bytes")
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"cannot read --prompts {path}: {reason}") from error
    except ValueError as error:  # also of a path that cannot be one
        message = f"cannot read --prompts {path}: {error}; save it as text in UTF-8"
        raise BadInputError(message) from error
    # Only these end a line. `splitlines` also splits at what stands within pasted text, U+2028.
    prompts = [line.strip() for line in re.split("\r\n|\r|\n", text) if line.strip()]
    if not prompts:
        raise BadInputError(f"--prompts {path} holds no prompt: write one in each line")
    if "\0" in text:
        raise BadInputError(f"--prompts {path} holds NUL characters: save it as text in UTF-8")
    return prompts


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
        raise BadInputError(f"{where}{_first_line(error)}") from error


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
        raise FailedError(f"{where} failed: {_first_line(error)}") from error


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
        raise BadInputError(f"{name} draws what a text says: give it with --prompt")
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


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small: 1 is the least")
    if number > _LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text} is too large: {_LARGEST_COUNT} is the most")
    return number


def _seed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not -(2**63) <= number < 2**63:  # torch's, with room for those of further pictures
        raise argparse.ArgumentTypeError(f"{text} is out of range: at most 63 bits")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return number


def _require_writable(option: str, folder: Path, *files: Path) -> None:
    """Finds out before minutes of work; the folder itself is made only when there is a result."""
    from .writing import require_replaceable

    place = folder
    try:
        whole = folder.absolute()
        present = next(each for each in (whole, *whole.parents) if each.exists())
        with tempfile.TemporaryFile(dir=present):
            pass
        for place in files:
            require_replaceable(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"cannot write into {option} {place}: {reason}") from error


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
    print(_one_line(f"deepcache-patch {options.command}: error: {message}"), file=sys.stderr)
    return code


def _first_line(error: BaseException) -> str:
    from .loading import first_line

    return first_line(error)


def _one_line(text: str) -> str:
    """What a person typed, or a file holds, may be long, and may steer the terminal."""
    shown = text if len(text) <= 1000 else f"{text[:1000]}…"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in shown)


def _print(text: str) -> None:
    """Prints also what the terminal's encoding does not know, or is no text: names of files."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    try:
        sys.stdout.flush()
    except OSError:
        # Else Python would try again at its exit, and complain in its own words.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
