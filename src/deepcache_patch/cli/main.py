"""The command line: arguments in, exit code out. What a command does stands in the library; here
is only how it is asked for, and how bad input is answered: one line on stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from ..errors import first_line
from . import plan as command_plan
from . import ui as command_ui
from .input import BadInputError, finite, positive, prompts_of, require_writable, seed
from .pipeline import (
    FailedError,
    add_dtype,
    add_model,
    add_pipeline,
    bad_input,
    call_of,
    failure,
    load,
    quiet_loading,
    require_within_reach,
    schedule_of,
)
from .terminal import one_line, say

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

_EXAMPLES = """\
examples:
  %(prog)s compare stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a lighthouse"
  %(prog)s plan --steps 50 --interval 3
  %(prog)s COMMAND --help
"""

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

_BRANCHES_EXAMPLE = """\
example:
  %(prog)s stable-diffusion-v1-5/stable-diffusion-v1-5
"""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, one_line(f"{self.prog}: error: {message} (see --help)") + "\n")


class _Version(argparse.Action):
    """Says what is installed, as the package index has it: torch need not be imported for that."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..versions import __version__

        beside = ", ".join(f"{name} {_installed(name)}" for name in ("torch", "diffusers"))
        python = platform.python_version()
        say(f"{parser.prog} {__version__} (Python {python}, {beside})")
        parser.exit()


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


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
    parser = _Parser(
        prog="deepcache-patch",
        description="DeepCache for diffusers pipelines.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_compare(commands)
    _add_calibrate(commands)
    _add_branches(commands)
    command_plan.add(commands)
    command_ui.add(commands)
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
    add_pipeline(parser)
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
    add_pipeline(parser)
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
        epilog=_BRANCHES_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    add_dtype(parser)
    parser.set_defaults(run=_branches, command="branches")


def _compare(options: argparse.Namespace, command: str) -> int:
    # Here, so that --help and a mistyped option need not wait for torch.
    from ..compare.outcome import FILES
    from ..helper import DeepCacheHelper
    from ..measuring.similarity import require_metrics

    require_metrics()
    require_writable("--output", options.output, *(options.output / name for name in FILES))
    with bad_input():
        pipe = load(options)
        seeds, call = call_of(pipe, options)
        helper = DeepCacheHelper(pipe, **schedule_of(options), replay=options.replay)
    with bad_input(f"{type(pipe).__name__}: "), failure(pipe):
        outcome = helper.compare(seeds=seeds, repeats=options.repeats, **call)

    options.output.mkdir(parents=True, exist_ok=True)
    picture, _, report = outcome.save_all(options.output, command=command)
    if options.json:
        say(outcome.to_json(command=command))
    else:
        say(f"{outcome.table()}\n\nreport: {report}\npicture: {picture}")
    return 0


def _calibrate(options: argparse.Namespace, command: str) -> int:
    from ..helper import DeepCacheHelper
    from ..measuring.generation import batched_call, seeded_call
    from ..measuring.similarity import require_metrics

    if options.psnr is not None:
        require_metrics()
    require_writable("--out", options.out.parent, options.out)
    options.prompt = None if options.prompts is None else prompts_of(options.prompts)
    with bad_input():
        pipe = load(options)
        seeds, call = call_of(pipe, options)
        helper = DeepCacheHelper(pipe)
        arguments = batched_call(pipe, call, len(seeds))
        require_within_reach(pipe, options, call)
    with bad_input(f"{type(pipe).__name__}: "), failure(pipe):
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
    from ..helper import DeepCacheHelper
    from .loading import choose_device, choose_dtype, load_pipeline

    quiet_loading()
    with bad_input():
        dtype = choose_dtype(options.dtype, choose_device())
        # Nothing runs, so the weights need not go to the device.
        pipe = load_pipeline(options.model, choose_device("cpu"), dtype)
        branches = DeepCacheHelper(pipe).branches
    say(str(branches))
    return 0


def _complain(options: argparse.Namespace, message: str, code: int) -> int:
    print(one_line(f"deepcache-patch {options.command}: error: {message}"), file=sys.stderr)
    return code
