"""The rival of every cache: the plain pipeline with fewer steps, at equal work. What it has made is
held here, and how many steps it gets is decided here; how it is run stands in `contest`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from ..errors import first_line
from ..inspection.branches import Branch
from ..measuring.generation import Timing, accepted_arguments
from ..measuring.media import Result
from ..running.pipeline.components import unets_of
from ..running.stats import Stats
from ..schedules.plans import FULL, OUTPUT, Plan
from ..settings.preview import num_steps
from .call_steps import LISTS, strength_of
from .contestant import Contestant

if TYPE_CHECKING:
    from .contest import Contest

#: What stands before its progress bar.
LABEL: Final = "fewer steps"


class LeftOutError(Exception):
    """No number of steps is of equal work; the message says why."""


class _Timed(Protocol):
    @property
    def time(self) -> Timing: ...


_Run = TypeVar("_Run", bound=_Timed)


class FewerStepsRival(Generic[_Run]):
    """The runs with fewer steps; how many steps is known once plain and cached have run.

    Args:
        contest: The contest that both take part in.
        run: Runs the plain pipeline with a number of steps; what it returns has a `time`.

    Attributes:
        runs: Those that were not left out, in order.
        steps: How many steps they have; `None` before the first.
        left_out: Why there are none.
        failed: Whether that was an error of the run, which another run need not have.
    """

    def __init__(self, contest: Contest, run: Callable[[int, str], _Run]) -> None:
        self.runs: list[_Run] = []
        self.steps: int | None = None
        self.left_out: str | None = None
        self.failed = False
        self._contest, self._run = contest, run

    def follow(self, plain: Timing, work: float | None) -> None:
        """Run once with fewer steps.

        Args:
            plain: The timing of the plain run just before.
            work: What the helper's run cost, in full U-Net calls.
        """
        if self.left_out is not None:
            return
        contest, all_steps = self._contest, self._contest.steps
        try:
            if self.steps is None:
                self.steps = steps_of_equal_work(contest, calls=plain.calls, work=work)
            fewer = self._run(self.steps, LABEL)
            # How `strength` and its like round is the pipeline's own business.
            while not self.runs and work is not None and fewer.time.calls < work:
                self.steps += 1
                if self.steps >= all_steps:
                    raise nothing_saved(all_steps)
                fewer = self._run(self.steps, LABEL)
        except LeftOutError as reason:
            self.left_out = str(reason)
        except Exception as error:  # as many steps may be what a sampler refuses
            self.left_out = f"{self.steps} steps failed: {first_line(error)}"
            self.failed = True
            self.runs.clear()
        else:
            self.runs.append(fewer)


@dataclass(frozen=True)
class FewerSteps(Contestant):
    """What the plain pipeline made with fewer steps, from the same seeds.

    It is measured against the plain results of all steps.

    Attributes:
        steps: `num_inference_steps`: the least at which the work is not less than that of the
            generation with the helper.
        results: One for each seed, as `Comparison.plain`.
        times: One for each repeat, each taken right after its cached counterpart.
        plain_times: Those of all steps in the same repeats.
        work: The U-Net's work, as a share of that of the plain pipeline, 0 to 1.
    """

    steps: int
    results: tuple[Result, ...]
    times: tuple[Timing, ...]
    plain_times: tuple[Timing, ...]
    work: float

    @property
    def name(self) -> str:
        """What it is called beside "plain" and "helper"."""
        return f"{self.steps} step{'' if self.steps == 1 else 's'}"


def full_calls_worth(stats: Stats, plan: Plan, branches: Iterable[Branch]) -> float | None:
    """Returns the work of what ran with the helper, as the number of full calls that cost as much.

    Args:
        stats: What ran.
        plan: That of the last generation. Where several ran, each with a plan of its own, its mix
            of branches stands for all of them.
        branches: The U-Net's branches.

    Returns:
        `None` where the share of a branch is not known.
    """
    if stats.shallow_calls == 0:
        return float(stats.full_calls)
    shares = {OUTPUT: 0.0, **{branch.number: branch.share for branch in branches}}
    used = [shares.get(entry) for entry in plan if entry != FULL]
    known = [share for share in used if share is not None]
    if not known or len(known) < len(used):
        return None
    return stats.full_calls + stats.shallow_calls * sum(known) / len(known)


def steps_of_equal_work(contest: Contest, *, calls: int, work: float | None) -> int:
    """Returns the least number of steps at which the plain pipeline does no less than `work`.

    Args:
        contest: Whose plain pipeline it is.
        calls: U-Net calls that it made with all steps.
        work: In full calls of the U-Net; `None` where it is not known.

    Raises:
        LeftOutError: It cannot be told, or there is none below `steps`.
    """
    pipe, call, steps = contest.pipe, contest.call, contest.steps
    for name in LISTS:
        if call.get(name) is not None:
            raise LeftOutError(f"{name}= says which steps there are")
    if "num_inference_steps" not in accepted_arguments(pipe) or not isinstance(steps, int):
        raise LeftOutError(f"{type(pipe).__name__} is not told a number of steps")
    if len(unets_of(pipe)) > 1:
        raise LeftOutError(f"{type(pipe).__name__} has several U-Nets")
    if work is None:
        raise LeftOutError("the work of a shallow call is not known")
    strength = strength_of(pipe, call)

    def timesteps(number: int) -> int:
        # Samplers of second order have more timesteps than steps.
        ran = int(number * strength)  # as the pipelines round it
        return (num_steps(pipe, ran) or ran) if ran else 0

    of_all = timesteps(steps) or steps
    found = 1 + bisect_left(range(1, steps), work, key=lambda n: timesteps(n) * calls / of_all)
    if found >= steps:
        raise nothing_saved(steps)
    return found


def nothing_saved(steps: int) -> LeftOutError:
    """What to raise where only as many steps are of equal work."""
    return LeftOutError(f"it would take all {steps}, since so little work is saved")
