"""Every option that several commands share, defined once: its name, its type, its help, and how a
shell completes it. What only one command has stands with that command. Nothing here imports torch:
`--help` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from .arguments import argument
from .kinds import (
    ListOf,
    at_least_one,
    branch_number,
    finite,
    folder,
    num_steps,
    positive,
    random_seed,
    schedule_name,
    scheduler_name,
    share,
    steps_or_share,
)
from .loras import lora
from .names import DTYPES, SCHEDULERS, SCHEDULES
from .terminal import say

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"


def command(
    examples: str, *, absent: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a command of a function, whose docstring is the help; the examples end it.

    Args:
        examples: Each paragraph keeps its lines.
        absent: Options of other commands that it does not have -> what to do instead.
    """
    epilog = "\n\n".join(f"\b\n{paragraph}" for paragraph in examples.split("\n\n"))

    def made(function: Callable[..., Any]) -> click.Command:
        add = click.command(cls=_Command, epilog=epilog, absent=absent or {})
        return add(help_option(function))

    return made


class _Command(click.Command):
    """Refuses what click would drop: all values of an option but the last."""

    def __init__(self, *args: Any, absent: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._absent = absent

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            given, _, order = self.make_parser(ctx).parse_args(args=[*args])
        except click.NoSuchOption as error:
            named = error.option_name
            if named not in self._absent:
                raise
            told = f"{self.name} has no {named}: {self._absent[named]}"
            raise click.UsageError(told) from error
        if not ctx.resilient_parsing and not given.get("help"):
            for param in dict.fromkeys(order):
                once = getattr(param, "is_flag", True) or getattr(param, "multiple", True)
                if not once and order.count(param) > 1:
                    sweeps = _LISTS if param.name in _IN_SWEEPS else ""
                    raise click.UsageError(
                        f"{param.opts[0]} is given {order.count(param)} times: give it once{sweeps}"
                    )
                _refuse_list(param, given.get(param.name or ""))
        return super().parse_args(ctx, args)


def _refuse_list(param: click.Parameter, value: Any) -> None:
    """Says where a list may be given, in the place of what is wrong with it as one value."""
    if isinstance(param.type, ListOf) or not isinstance(value, str) or "," not in value:
        return
    is_file = param.name == "schedule" and not {*SCHEDULES} & {*value.split(",")}
    if param.name in _IN_SWEEPS and not is_file:
        raise click.UsageError(f"{param.opts[0]} {value} is a list: give one value{_LISTS}")


#: Options of which `sweep` takes several values, and what is said of these elsewhere.
_IN_SWEEPS: Final = ("interval", "branch", "steps", "schedule")
_LISTS: Final = ", or a list with commas to `deepcache-patch sweep`"


def _show_help(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        say(context.get_help())
        context.exit()


#: As click's own, but it says what the terminal can show.
help_option = click.help_option(
    "-h", "--help", callback=_show_help, help="Show this help and exit."
)


def completing(*names: str, places: str | None = None) -> Completer:
    """What a shell offers: these names, and files ("file") or folders ("dir") if `places` says so.

    The names are not all that may be given.
    """

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        # Places come first: bash forgets what came before them.
        found = [] if places is None else [CompletionItem(begun, type=places)]
        return found + [CompletionItem(name) for name in names if name.startswith(begun)]

    return complete


# --- the options ----------------------------------------------------------------------------------


def _together(*options: Decorator) -> Decorator:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def model(function: Callable[..., Any]) -> Callable[..., Any]:
    """The place of the pipeline; the help ends by saying what it may be."""
    function.__doc__ = (
        f"{function.__doc__}\n\n    MODEL: folder of a diffusers pipeline, or hub id."
    )
    return click.argument("model", metavar="MODEL", shell_complete=completing(places="dir"))(
        function
    )


def scheduler(about: str) -> Decorator:
    """The name of a scheduler, and what it is for."""
    return click.option(
        "--scheduler",
        type=scheduler_name,
        metavar="NAME",
        shell_complete=completing(*SCHEDULERS),
        help=about,
    )


#: Which files a model is loaded from, and as what.
weights: Decorator = _together(
    click.option(
        "--variant", metavar="NAME", help="of the weights' files, such as fp16 (default: none)"
    ),
    click.option("--revision", metavar="NAME", help="on the hub: a branch, a tag or a commit"),
    click.option(
        "--device",
        metavar="NAME",
        shell_complete=completing("cpu", "cuda", "mps", "xpu"),
        help="default: the best that there is",
    ),
    click.option(
        "--dtype",
        metavar="NAME",
        shell_complete=completing(*DTYPES),
        help=f"{', '.join(DTYPES)} (default: float16 on a GPU, else float32)",
    ),
)

#: What `request.PipelineRequest` holds, but for the model.
loading: Decorator = _together(
    scheduler("ddim, dpm-solver++, euler, … or a class of diffusers (default: the pipeline's own)"),
    weights,
    click.option(
        "--lora",
        type=lora,
        multiple=True,
        metavar="PATH[:SCALE]",
        shell_complete=completing(places="file"),
        help="file, folder or hub id of a LoRA; may be given several times (default scale: 1)",
    ),
    click.option(
        "--offload",
        type=click.Choice(["model", "sequential"]),
        help="keep models, or all layers, on the CPU until they run; sequential is slow",
    ),
)


def steps(*, default: str) -> Decorator:
    """The number of denoising steps, by its short name and by that of diffusers."""
    names = ("--steps", "--num-inference-steps")
    about = f"denoising steps (default: {default})"
    return click.option(*names, "steps", type=num_steps, metavar="N", help=about)


def images(*, default: str) -> Decorator:
    """How many pictures are made."""
    about = f"how many in total, shared out evenly to the prompts (default: {default})"
    return click.option("--images", type=positive, metavar="N", help=about)


def strength(about: str) -> Decorator:
    """How much of a picture may change, and what it is for."""
    return click.option("--strength", type=share, metavar="X", help=about)


def _file(name: str, about: str) -> Decorator:
    """A file that is read."""
    places = completing(places="file")
    return click.option(name, type=Path, metavar="FILE", shell_complete=places, help=about)


#: What `request.GenerationRequest` holds, but for model, `images` and `loading`.
generation: Decorator = _together(
    click.option("--prompt", multiple=True, metavar="TEXT", help="may be given several times"),
    _file("--prompts", "text file, one prompt in a line"),
    click.option("--negative-prompt", metavar="TEXT"),
    click.option(
        "--guidance-scale",
        type=finite,
        metavar="X",
        help="default: that of the model's card; if it names none, the pipeline's own",
    ),
    _file("--image", "picture to begin with: image-to-image, or what the pipeline takes"),
    strength("with --image: how much may change, 0 to 1"),
    click.option("--height", type=positive, metavar="PIXELS"),
    click.option("--width", type=positive, metavar="PIXELS"),
    steps(default="50"),
    click.option(
        "--seed",
        type=random_seed,
        default=0,
        metavar="N",
        help="of the first picture (default: 0)",
    ),
    click.option(
        "--call",
        "arguments",
        type=argument,
        multiple=True,
        metavar="KEY=VALUE",
        help="any other argument of the pipeline's call, as JSON, or else as text: clip_skip=2, or "
        "KEY='\"2\"' for a text that would be JSON; may be given several times",
    ),
)


schedule: Decorator = click.option(
    "--schedule",
    type=schedule_name,
    default=SCHEDULES[0],
    metavar="NAME|FILE",
    shell_complete=completing(*SCHEDULES, places="file"),
    help=f"default, which is {', '.join(SCHEDULES[1:])}, or a file that `calibrate` wrote",
)

interval: Decorator = click.option(
    "--interval",
    type=at_least_one,
    metavar="X",
    help="of X steps one runs in full; a whole number for uniform and centred (default: 2.2; "
    "for adaptive 1.5; for uniform and centred 3)",
)

speedup: Decorator = click.option(
    "--speedup",
    type=finite,
    metavar="X",
    help="instead of --interval: how many times less work the U-Net does; calibrate means time",
)

full_steps: Decorator = click.option(
    "--full-steps",
    type=positive,
    metavar="N",
    help="instead of --interval: how many steps run in full, with those of --first and --last",
)

branch: Decorator = click.option(
    "--branch",
    type=branch_number,
    metavar="K",
    help="how much of the U-Net the other steps run: -1 none, 0 the outermost layers, higher "
    "numbers more (default: -1; for uniform and centred 0)",
)


#: What always runs in full; they go with each schedule.
window: Decorator = _together(
    *(
        click.option(
            f"--{name}",
            type=steps_or_share,
            default=0,
            metavar="N|SHARE",
            help=f"{name} steps that always run in full: 2, or 0.1 of all (default: 0)",
        )
        for name in ("first", "last")
    )
)


def output(kind: str, **settings: Any) -> Decorator:
    """Where results go, "FILE" or "DIR"."""
    completer = completing(places=kind.lower())
    if kind == "DIR":
        settings["callback"] = lambda _context, _option, place: folder(place)
    return click.option("--output", type=Path, metavar=kind, shell_complete=completer, **settings)


def as_json(about: str) -> Decorator:
    """Whether to print JSON, and of what."""
    return click.option("--json", "as_json", is_flag=True, help=f"print {about} as JSON")


def comparing(folder: str, *more: Decorator, repeats: int, about: str) -> Decorator:
    """What is generated without the helper and with it, how often, and where it goes.

    Args:
        folder: For the results, unless another one is given.
        more: Options that stand beside the interval.
        repeats: Timed runs, unless another number is given.
        about: What they are for.
    """
    return _together(
        model,
        generation,
        images(default="4, or one for each"),
        interval,
        *more,
        branch,
        schedule,
        window,
        click.option(
            "--replay", type=click.Choice(["extrapolate", "reuse"]), help="default: extrapolate"
        ),
        loading,
        click.option("--repeats", type=positive, default=repeats, metavar="N", help=about),
        click.option(
            "--no-fewer-steps",
            "fewer_steps",
            flag_value=False,
            default=True,
            help="leave out the plain pipeline with fewer steps at equal work",
        ),
        output("DIR", default=Path(folder), help=f"folder for the report (default: {folder})"),
        as_json("the figures"),
    )
