"""The command `sweep`: many settings side by side, to choose one."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import click

from . import kinds, options
from .files import require_writable
from .mistakes import bad_input, while_running
from .names import PROGRAM, SCHEDULES
from .request import GenerationRequest, require_branch, require_own_scheduler, schedule_given
from .terminal import complain, import_word, say

_EXAMPLES = """\
example:
  deepcache-patch sweep stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --prompt "a lighthouse in a storm" --interval 2,3,5 --schedule default,auto --steps 20,25

Everything is compared to the plain pipeline with the largest number of steps. Writes sweep.html,
sweep.png and sweep.json into the output folder, and keeps each setting there once it is made:
after Ctrl-C, the same command goes on.
"""

#: Options that take a list here, and what their help says.
_LISTS: Final = {
    "interval": "one full step in X; several with commas (default: 2, 3, 5 and the schedule's own)",
    "branch": "of the shallow steps, -1 or from 0; several with commas (default: the schedule's)",
    "schedule": f"{', '.join(SCHEDULES)}, or files that `calibrate` wrote; several with commas "
    "(default: default)",
    "steps": "denoising steps; several with commas (default: 50)",
}

#: What a command for one setting says otherwise, or does not say.
_OWN: Final = {*_LISTS, "repeats", "fewer_steps", "output", "as_json"}


def _lists(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets some of the shared options take several values."""
    for option in function.__click_params__:  # type: ignore[attr-defined]
        if option.name in _LISTS:
            option.type = kinds.ListOf(option.type)
            option.metavar, option.help = f"{option.metavar},…", _LISTS[option.name]
    return function


@options.command(
    _EXAMPLES, absent=dict.fromkeys(("--speedup", "--full-steps"), "give --interval 2,3,5")
)
@_lists
@options.comparing(
    "deepcache-sweep",
    repeats=3,
    about="rounds; speeds are medians, and have their range (default: 3)",
)
@click.pass_context
def sweep(
    context: click.Context,
    /,
    *,
    interval: list[float] | None,
    branch: list[int] | None,
    schedule: list[str],
    steps: list[int] | None,
    first: float,
    last: float,
    replay: Literal["extrapolate", "reuse"] | None,
    repeats: int,
    fewer_steps: bool,
    output: Path,
    as_json: bool,
    **generation: Any,
) -> None:
    """Generates the same pictures with many settings, to see which one to take.

    And with fewer steps at equal work beside each.
    """
    asked = GenerationRequest(**generation, steps=None if steps is None else max(steps))
    asked.check()
    import_word()
    # Here, so that --help and a mistyped option need not wait for torch.
    from ..helper import DeepCacheHelper
    from ..measuring.similarity import require_metrics
    from ..sweep.outcome import FILES
    from ..sweep.run import INTERVALS, SweepInterrupted
    from ..sweep.run import sweep as run
    from ..sweep.settings import settings_of

    require_metrics()
    require_writable(output, *(output / name for name in FILES))
    with bad_input():
        found = [schedule_given(name) for name in schedule]  # before a model is loaded
        settings: dict[str, Any] = {"schedule": schedule, "interval": interval or INTERVALS}
        settings_of(**settings, branch=branch, steps=steps)
        for name, made in zip(schedule, found, strict=True):
            asked.check_schedule(made, name)
        pipe = asked.load()
        seeds, call = asked.call_of(pipe)
        for each in branch or ():
            require_branch(pipe, each, model=asked.model)
        for name, made in zip(schedule, found, strict=True):
            require_own_scheduler(pipe, made, name)
        if steps is not None and "num_inference_steps" in call:
            call["num_inference_steps"] = steps
        helper = DeepCacheHelper(pipe, first=first, last=last, replay=replay)
    try:
        with while_running(pipe):
            outcome = run(
                helper,
                **settings,
                branch=branch,
                seeds=seeds,
                repeats=repeats,
                fewer_steps=fewer_steps,
                folder=output,
                compared_by=_command(context),
                **call,
            )
    except SweepInterrupted as stop:
        if stop.sweep is None:
            complain(f"{PROGRAM} sweep: broken off before the first setting was made")
        else:
            so_far = f"{stop.sweep.table()}\n\nreport so far: {output / FILES[-1]}"
            say(stop.sweep.to_json() if as_json else so_far)
            complain(f"{PROGRAM} sweep: the same command goes on with what is missing")
        raise
    if outcome.is_restored:
        complain(f"all of it is in {output} already: nothing was run")
    if as_json:
        say(outcome.to_json())
    else:
        say(f"{outcome.table()}\n\nreport: {output / FILES[-1]}\npicture: {output / FILES[0]}")


def _command(context: click.Context) -> str:
    """How the same pictures are compared with one setting: what was typed, but for the lists."""
    words = [PROGRAM, "compare"]
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not click.core.ParameterSource.COMMANDLINE or param.name in _OWN:
            continue
        value = context.params[param.name or ""]
        option = [] if isinstance(param, click.Argument) else [param.opts[0]]
        for each in value if param.multiple else [value]:
            words += [*option, str(each)]
    return shlex.join(words)
