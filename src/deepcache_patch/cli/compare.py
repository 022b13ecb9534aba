"""The command `compare`: the same pictures without and with the helper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from . import options
from .files import require_writable
from .mistakes import BadInputError, bad_input, while_running
from .names import SCHEDULES
from .request import (
    GenerationRequest,
    interval_for_call,
    require_branch,
    require_one_amount,
    require_own_scheduler,
    schedule_given,
)
from .terminal import import_word, phase, say

_EXAMPLES = """\
examples:
  deepcache-patch compare stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --prompt "a lighthouse in a storm" --steps 30 --speedup 2

  deepcache-patch compare stabilityai/stable-diffusion-xl-base-1.0 --variant fp16 \\
      --lora style.safetensors:0.8 --offload model --scheduler euler \\
      --prompt "a fox" --call prompt_2="oil on canvas" --call guidance_rescale=0.7

  deepcache-patch compare stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --image sketch.png --strength 0.6 --prompt "a castle"

Writes comparison.html, comparison.png and comparison.json into the output folder.
"""


@options.command(_EXAMPLES)
@options.comparing(
    "deepcache-comparison",
    options.speedup,
    options.full_steps,
    repeats=1,
    about="timed runs of each; medians (default: 1)",
)
@click.pass_obj
def compare(
    line: str,
    /,
    *,
    interval: float | None,
    speedup: float | None,
    full_steps: int | None,
    branch: int | None,
    schedule: str,
    first: float,
    last: float,
    replay: Literal["extrapolate", "reuse"] | None,
    repeats: int,
    fewer_steps: bool,
    output: Path,
    as_json: bool,
    **generation: Any,
) -> None:
    """Generates the same pictures without and with the helper, and compares them.

    And once more without it, with fewer steps at equal work.
    """
    asked = GenerationRequest(**generation)
    asked.check()
    asked.check_full_steps(full_steps)
    import_word()
    # Here, so that --help and a mistyped option need not wait for torch.
    from ..compare.call_steps import require_same_steps
    from ..compare.outcome import FILES
    from ..helper import DeepCacheHelper
    from ..measuring.similarity import require_metrics
    from ..schedules.window import Window

    require_metrics()
    require_writable(output, *(output / name for name in FILES))
    with bad_input():
        require_one_amount(schedule, interval=interval, speedup=speedup, full_steps=full_steps)
        if schedule not in SCHEDULES and (interval, branch) != (None, None):
            raise BadInputError("--interval and --branch stand in the file of --schedule already")
        settings: dict[str, Any] = {"interval": interval, "speedup": speedup, "branch": branch}
        settings["schedule"] = schedule_given(schedule)
        window = Window(first, last)
        asked.check_schedule(settings["schedule"], schedule)
        asked.check_steps(settings["schedule"], schedule)
        pipe = asked.load()
        seeds, call = asked.call_of(pipe)
        require_branch(pipe, branch, model=asked.model)
        require_own_scheduler(pipe, settings["schedule"], schedule)
        require_same_steps(pipe, call, settings["schedule"], f"--schedule {schedule}")
        if full_steps is not None:
            settings["interval"] = interval_for_call(pipe, call, full_steps, window)
        helper = DeepCacheHelper(pipe, **settings, first=first, last=last, replay=replay)
    with while_running(pipe):
        outcome = helper.compare(seeds=seeds, repeats=repeats, fewer_steps=fewer_steps, **call)

    if schedule not in SCHEDULES:
        outcome = replace(outcome, about={**outcome.about, "schedule_file": schedule})
    outcome = replace(outcome, command=line)
    phase("writing the report")
    output.mkdir(parents=True, exist_ok=True)
    picture, _, report = outcome.save_all(output)
    if as_json:
        say(outcome.to_json())
    else:
        say(f"{outcome.table()}\n\nreport: {report}\npicture: {picture}")
