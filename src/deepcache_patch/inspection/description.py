"""What `print(helper)` and a notebook show: rows of a name and a text. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import UnsupportedModelError
from ..running.pipeline.components import likeliest_scheduler
from ..running.protocol import Helper
from ..running.stats import LastGeneration
from ..schedules.context import Context
from ..schedules.guide import brings_replay, expected
from ..schedules.noise import timesteps_of
from ..schedules.plans import OUTPUT, Plan, place_of, schedule_text
from ..schedules.remarks import remarks_on
from ..schedules.tables import html_table
from ..schedules.window import Window
from .branches import BranchesOfEach, share_of

#: What the plan is shown for where neither a generation nor the scheduler tells how many steps.
_STEPS = 50
#: How many signs of a strip stand in a line, and how many at most.
_STRIP_WIDTH, _STRIP_LENGTH = 60, 240
#: For calls that are of no loop, as far as a helper knows.
_CURE = "for a loop of your own, use helper.generation(...)"

#: Why no output is forecast.
_NO_FORECAST = "no scheduler says what the U-Net's output means"

#: Of a generation after which settings were changed.
_OUTDATED = "with the previous settings"


def rows(helper: Helper, lost: Sequence[str]) -> list[tuple[str, str]]:
    """What there is to say of the helper, line by line; a continued line has no name.

    Args:
        helper: Of which it is said.
        lost: The names of U-Nets that were replaced since it was enabled.
    """
    stats, lasts = helper.stats, helper.last_generations
    several = len(lasts) > 1
    state = "enabled" if helper.enabled else "not enabled: calls run plainly and are not counted"
    if lost:
        names = " and ".join(lost)
        state = f"not enabled for {names}, replaced since enable(): enable() again, or disable()"
    found = [("pipeline", f"{type(helper.pipe).__name__}, {state}")]
    for name, module in helper.attached.items():
        found.append((name, f"{module}, patched"))
    found.append(("schedule", schedule_text(helper.schedule)))
    window = Window(helper.first, helper.last)
    if window:
        found.append(("in full", str(window)))
    found.append(("replay", _replay(helper)))
    for name, last in lasts.items():
        found += _strip(f"ran in {name}" if several else "ran", last.plan)
        if last.is_outdated:
            found.append(("", _OUTDATED))
    if any(last.is_outdated for last in lasts.values()) or not (lasts or stats.full_calls):
        steps = next((len(last.plan) + last.not_run for last in lasts.values()), None)
        found += _expected(helper, window, steps)
    generations = f"{stats.generations} generation{'s' * (stats.generations != 1)}"
    calls = f"{stats.full_calls} in full, {stats.shallow_calls} shallow, in {generations}"
    found.append(("calls", calls))
    if stats.unplaced_calls:
        found.append(("", f"{stats.unplaced_calls} of them in no known generation: {_CURE}"))
    found.append(("cache", f"{stats.cache_nbytes / 2**20:.2f} MiB at most"))
    for name, last in lasts.items():
        found.append((f"last of {name}" if several else "last", _speed(last)))
        found.append(("", _work(last, _share(helper, last.plan, name))))
        if not last.is_outdated:
            found += _stand_in(helper, last.plan)
        if not (last.is_outdated or last.not_run):
            remarks = remarks_on(helper.schedule, last.plan, is_past=True)
            found += [("", each) for each in remarks]
    return found


def as_text(helper: Helper, lost: Sequence[str]) -> str:
    """The rows as aligned text."""
    found = rows(helper, lost)
    width = max(len(name) for name, _ in found)
    return "\n".join([type(helper).__name__, *(f"  {n:<{width}}  {text}" for n, text in found)])


def as_html(helper: Helper, lost: Sequence[str]) -> str:
    """The rows as a table, for a notebook."""
    return html_table(type(helper).__name__, rows(helper, lost))


def _replay(helper: Helper) -> str:
    if brings_replay(helper.schedule):
        return f"that of {type(helper.schedule).__name__}"
    return str(helper.replay)


def _expected(helper: Helper, window: Window, steps: int | None) -> list[tuple[str, str]]:
    """The plan of a generation that has not been; of so many steps, if the scheduler has none."""
    scheduler = likeliest_scheduler(helper.pipe, "unet")
    timesteps = None
    if getattr(scheduler, "num_inference_steps", None):
        timesteps = timesteps_of(scheduler)
    try:
        if timesteps is None:
            plan = helper.plan(_STEPS if steps is None else steps)
        else:
            values = tuple(map(float, timesteps.tolist()))
            context = Context(len(values), values, scheduler, window=window)
            plan = expected(helper.schedule, context)
    except Exception:  # it looks at the generation, or is for another number of steps
        return [("plan", "depends on the generation")]
    found = _strip("plan", plan)
    name, text = found[-1]
    guess = ", for example" if timesteps is None and steps is None else ""
    remarks = [("", each) for each in remarks_on(helper.schedule, plan)]
    found[-1] = name, f"{text} (of {len(plan)} steps{guess})"
    if plan.branches:
        cost = _cost(len(plan.full_steps), len(plan), _share(helper, plan))
        found.append(("", f"{plan.counted}{cost}"))
    return [*found, *_stand_in(helper, plan), *remarks]


def _stand_in(helper: Helper, plan: Plan) -> list[tuple[str, str]]:
    """Why the branch that runs is not the schedule's."""
    if tuple(getattr(helper.schedule, "branches", ())) != (OUTPUT,) or plan.branches != (0,):
        return []
    cure = f"; {_CURE}" if isinstance(helper.pipe, nn.Module) else ""
    return [("", f"branch 0 stands for -1: {_NO_FORECAST}{cure}")]


def _strip(name: str, plan: Plan) -> list[tuple[str, str]]:
    strip = str(plan)
    if len(strip) > _STRIP_LENGTH:
        strip = f"{strip[: _STRIP_LENGTH - 1]}…"
    parts = [strip[at : at + _STRIP_WIDTH] for at in range(0, len(strip), _STRIP_WIDTH)]
    return [(name if not at else "", part) for at, part in enumerate(parts)]


def _speed(last: LastGeneration) -> str:
    steps = len(last.plan)
    rate = f", {steps / last.seconds:.3g} steps/s" if last.seconds else ""
    outdated = f", {_OUTDATED}" if last.is_outdated else ""
    count = f"{steps} step{'s' * (steps != 1)}"
    left = ""
    if last.not_run:
        count = f"{steps} of {steps + last.not_run} steps"
        left = f"; the other {last.not_run} have not run"
    return f"{count} in {last.seconds:.3g} s{rate}{outdated}{left}"


def _work(last: LastGeneration, share: float | None) -> str:
    """What part of the U-Net's work ran; counted in calls where that is not known."""
    calls = last.full_calls + last.shallow_calls
    text = f"{last.full_calls} of {calls} call{'s' * (calls != 1)} in full"
    if last.calibration is not None:
        return f"{text}: the calibration for {last.calibration}"
    if not last.shallow_calls:
        return text
    if last.plan.branches != (OUTPUT,):
        text += f", the others {' and '.join(map(place_of, last.plan.branches))}"
    return text + _cost(last.full_calls, calls, share)


def _cost(full: int, count: int, share: float | None) -> str:
    """What part of the U-Net's work that is, if a shallow call has this share of a full one's."""
    if share is None:
        return ""
    work = (full + (count - full) * share) / count
    return f": {work:.0%} of the U-Net's work, at most {1 / work:.2f}×"


def _share(helper: Helper, plan: Plan, name: str | None = None) -> float | None:
    """The share of a plan's shallow calls; `None` where they differ, or it is not known.

    Of the U-Net of that name, or of the one where it is largest.
    """
    if plan.branches == (OUTPUT,):
        return 0.0
    if len(plan.branches) != 1:
        return None
    try:
        tables = helper.branches
        of_one = isinstance(tables, BranchesOfEach) and name is not None
        return share_of(tables[name] if of_one else tables, plan.branches[0])
    except (LookupError, UnsupportedModelError):  # the U-Net was replaced, and has not as many
        return None
