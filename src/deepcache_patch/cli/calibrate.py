"""The command `calibrate`: learns a schedule from full generations, and writes it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InvalidSettingError
from . import kinds, options
from .files import require_writable
from .mistakes import BadInputError, bad_input, reason_of, while_running
from .request import GenerationRequest, require_branch, require_within_reach
from .terminal import import_word, json_of, plan_as_dict, say

_EXAMPLES = """\
example:
  deepcache-patch calibrate stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --prompts prompts.txt --speedup 2.5 --output schedule.json

In Python: DeepCacheHelper(pipe, schedule=Calibrated.load("schedule.json")).
"""


@options.command(_EXAMPLES)
@options.model
@options.generation
@options.images(default="8, or more of several prompts")
@click.option(
    "--speedup",
    type=kinds.finite,
    metavar="X",
    help="goal: how many times as fast the denoising loop is; compare and plan mean work",
)
@click.option(
    "--full-steps", type=kinds.positive, metavar="N", help="goal: how many steps run in full"
)
@click.option(
    "--psnr",
    type=kinds.finite,
    metavar="DB",
    help="goal: how close to the plain pictures, on average",
)
@options.branch
@options.window
@options.loading
@options.output("FILE", help="JSON file to write; has to be given")
@options.as_json("what was reached")
def calibrate(
    *,
    speedup: float | None,
    full_steps: int | None,
    psnr: float | None,
    branch: int | None,
    first: float,
    last: float,
    output: Path | None,
    as_json: bool,
    **generation: Any,
) -> None:
    """Generates pictures to learn which steps to compute in full, and how to make the others.

    Give one goal: --speedup, --full-steps or --psnr. The pipeline runs about ten times, more often
    with --speedup, and about thirty times with --psnr; each run says which one it is.
    """
    lacking = []
    if sum(goal is not None for goal in (speedup, full_steps, psnr)) != 1:
        lacking.append("one of --speedup, --full-steps and --psnr, and only one")
    if output is None:
        lacking.append("--output FILE")
    if lacking or output is None:  # which is among what is lacking
        raise click.UsageError(f"Give {'; and '.join(lacking)}")

    from ..schedules.plans import OUTPUT

    asked, branch = GenerationRequest(**generation), OUTPUT if branch is None else branch
    asked.check()
    asked.check_full_steps(full_steps)
    import_word()
    from ..helper import DeepCacheHelper
    from ..learning.reached import ENOUGH
    from ..measuring.generation import batched_call, seeded_call
    from ..schedules.window import Window

    require_writable(output.parent, output)
    _require_replaceable(output)
    with bad_input():
        pipe = asked.load()
        seeds, call = asked.call_of(pipe, enough=ENOUGH, one_batch=True)
        require_branch(pipe, branch, model=asked.model)
        helper = DeepCacheHelper(pipe, first=first, last=last)
        arguments = batched_call(pipe, call, len(seeds))
        require_within_reach(
            pipe,
            call,
            speedup=speedup,
            full_steps=full_steps,
            branch=branch,
            window=Window(first, last),
        )
    with while_running(pipe):
        schedule = helper.calibrate(
            lambda: seeded_call(pipe, arguments, seeds),
            speedup=speedup,
            full_steps=full_steps,
            psnr=psnr,
            branch=branch,
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    schedule.save(output)
    plan = schedule.entries
    if as_json:
        reached = schedule.to_dict().get("reached")
        say(json_of({**plan_as_dict(plan), "reached": reached, "output": str(output)}))
        return
    reached = f"{schedule.reached or ''}"
    counted = f"{len(plan.full_steps)} of {len(plan)} steps in full{reached and ': '}{reached}"
    say(f"{plan}\n{counted}\nwritten to {output}")


def _require_replaceable(output: Path) -> None:
    """Refuses a file that holds something else than what would take its place."""
    from ..learning.calibrated_schedule import Calibrated

    try:
        if output.exists() and output.stat().st_size:
            Calibrated.load(output)
    except InvalidSettingError as error:
        raise BadInputError(
            f"--output {output} is there already, and is no file with one calibrated schedule: "
            "give another name, or remove it"
        ) from error
    except OSError as error:
        raise BadInputError(f"cannot read --output {output}: {reason_of(error)}") from error
