"""Where the command line begins: the arguments come in, an exit code goes out. The commands have
modules of their own; here one is found, and a mistake is answered: one line on stderr, exit code 2.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from ..errors import first_line, no_such
from .mistakes import BadInputError, FailedError, missing_package
from .names import COMPLETION_VARIABLE, PROGRAM
from .options import help_option
from .terminal import complain, phases_as_lines, say, warnings_in_a_line

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130

#: Each command, which is of this name in the module of this name, and what the help says of it.
COMMANDS: Final = {
    "compare": (
        "the same pictures without and with the helper (this package): time, PSNR, SSIM, a page to "
        "look at"
    ),
    "sweep": "many settings side by side: a curve of speed against quality, and which one to take",
    "calibrate": "learn the best schedule for a pipeline, and write it to a file",
    "branches": "the branches that a pipeline's U-Net has: place, cost, size",
    "plan": "which steps a schedule runs in full, as a strip",
    "ui": "a page in the browser: settings, both pictures, times, the plan",
    "completion": "let bash, zsh or fish complete what is typed",
}

_EXAMPLES = f"""\
\b
examples:
  {PROGRAM} compare stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a lighthouse"
  {PROGRAM} plan --steps 50 --interval 3
  {PROGRAM} COMMAND --help
"""


class _Commands(click.Group):
    """Imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if not ctx.resilient_parsing:  # where a shell asks, nothing is wrong yet
                ctx.fail(no_such("command", cmd_name, COMMANDS))
            return None
        found: click.Command = getattr(import_module(f".{cmd_name}", __package__), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])


def _show_version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    """Says what is installed, as the package index has it: torch need not be imported for that."""
    if not asked or context.resilient_parsing:
        return
    import platform
    from importlib import metadata

    from ..versions import __version__

    beside = []
    for name in ("torch", "diffusers"):
        try:
            beside.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            beside.append(f"{name} is not installed")
    say(f"{PROGRAM} {__version__} (Python {platform.python_version()}, {', '.join(beside)})")
    context.exit()


@click.group(cls=_Commands, epilog=_EXAMPLES, no_args_is_help=False)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions and exit.",
)
@help_option
def commands() -> None:
    """DeepCache for diffusers pipelines."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 for a failure, 2 for bad input."""
    if asked := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(commands, {}, PROGRAM, COMPLETION_VARIABLE, asked)

    argv = sys.argv[1:] if argv is None else list(argv)
    line = shlex.join([PROGRAM, *argv])
    where = " ".join([PROGRAM, *(name for name in argv[:1] if name in COMMANDS)])
    try:
        with (
            commands.make_context(PROGRAM, [*argv], obj=line) as context,
            phases_as_lines(),
            warnings_in_a_line(),
        ):
            commands.invoke(context)
        return 0
    except click.exceptions.Exit as stop:  # after --help and --version
        return stop.exit_code
    except click.UsageError as error:
        told = error.format_message().replace("\n\t", " ")  # click lists choices line by line
        message = f"{told.removesuffix('.')} (see --help)"
        code = EXIT_BAD_INPUT
    except BadInputError as error:
        message, code = str(error), EXIT_BAD_INPUT
    except FailedError as error:
        message, code = str(error), EXIT_FAILED
    except ModuleNotFoundError as error:
        message, code = missing_package(error) or first_line(error), EXIT_FAILED
    except (ImportError, OSError) as error:
        message, code = first_line(error), EXIT_FAILED
    except KeyboardInterrupt:
        message, code = "interrupted", EXIT_INTERRUPTED
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        what = f"unexpected {type(error).__name__}: {first_line(error)} (python -X dev shows where)"
        message, code = missing_package(error) or what, EXIT_FAILED
    complain(f"{where}: error: {message}")
    return code
