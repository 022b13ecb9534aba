"""`Calibrated`, a plan and a replay learned for one U-Net, one scheduler and one list of timesteps.
The file that it is kept in is described in `schedule_file`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import nn

from ..cutting.features import Recorded
from ..errors import InvalidSettingError
from ..schedules.guide import Context, Guide
from ..schedules.plans import Explicit, Plan, PlanEntry
from ..schedules.transfer import sent
from . import schedule_file
from .reached import Reached
from .schedule_file import checked
from .solver import Blend, Solution

#: Digits of the coefficients in a file: more than a feature in half precision has.
_DIGITS: Final = 5


@dataclass(frozen=True)
class Setting:
    """What a calibration is valid for.

    Attributes:
        unet: Class name and config of the U-Net; its weights do not count.
        scheduler: Class name and config of the scheduler.
        timesteps: Of the steps that a generation runs.
    """

    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, context: Context) -> "Setting":
        """The setting of a generation whose timesteps are known."""
        return cls(described(context.unet), described(context.scheduler), context.timesteps or ())

    @property
    def short(self) -> str:
        """In a few words."""
        return f"{len(self.timesteps)} steps with {self.scheduler['class']}"

    def difference(self, other: "Setting") -> str | None:
        """Says in what the other differs, or `None`."""
        for part in ("unet", "scheduler"):
            mine, its = getattr(self, part), getattr(other, part)
            names = [name for name in {**mine, **its} if mine.get(name) != its.get(name)]
            if "class" in names:
                return f"{part} is a {its['class']}, not a {mine['class']}"
            if names:
                name = names[0]
                return f"{part} has {name}={_short(its.get(name))}, not {_short(mine.get(name))}"
        if len(self.timesteps) != len(other.timesteps):
            return f"the generation has {len(other.timesteps)} steps, not {len(self.timesteps)}"
        if self.timesteps != other.timesteps:
            pairs = enumerate(zip(self.timesteps, other.timesteps, strict=True))
            step, (mine, its) = next((s, pair) for s, pair in pairs if pair[0] != pair[1])
            return f"step {step} has timestep {its:g}, not {mine:g}"
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def described(part: Any) -> dict[str, Any]:
    """Class and config as JSON knows them, without what diffusers notes for itself."""
    config = dict(getattr(part, "config", {}))
    plain = json.loads(json.dumps(config, default=str))
    # DPMSolverSinglestepScheduler changes this one itself, by the number of steps.
    ignored = "lower_order_final"
    public = {
        key: value
        for key, value in sorted(plain.items())
        if not key.startswith("_") and key != ignored
    }
    return {"class": type(part).__name__, **public}


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A learned schedule with its own replay: see `DeepCacheHelper.calibrate`.

    Attributes:
        setting: What it is valid for. A generation in another setting is refused.
        solution: What was learned.
        interval: The budget that `Auto` had; `None` if the calibration was asked for otherwise.
        reached: Speed, work and PSNR that `calibrate` found; `None` from `Auto`, and from files
            that were written before there was such a thing.

    Example:
        >>> schedule = helper.calibrate(run, speedup=2.5)  # doctest: +SKIP
        >>> schedule.save("schedule.json")  # doctest: +SKIP
        >>> helper = DeepCacheHelper(pipe, schedule=Calibrated.load("schedule.json"))
        ... # doctest: +SKIP
    """

    own_replay: ClassVar = True

    setting: Setting
    solution: Solution
    interval: int | None = None
    reached: Reached | None = None

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that the plan names."""
        return self.solution.plan.branches

    def plan(self, num_steps: int) -> Plan:
        """The learned plan.

        Raises:
            InvalidSettingError: If it was learned for another number of steps.
        """
        if num_steps != len(self.solution.plan):
            raise InvalidSettingError(
                f"this schedule was calibrated for {len(self.solution.plan)} steps, the generation "
                f"has {num_steps}: calibrate it with {num_steps}"
            )
        return self.solution.plan

    def check(self, unet: nn.Module, scheduler: Any) -> None:
        """Check, before anything is patched, what can be known then.

        Raises:
            InvalidSettingError: If the U-Net or the scheduler is another than in the calibration.
        """
        here = Setting(described(unet), described(scheduler), self.setting.timesteps)
        self._refuse(here)

    def begin(self, context: Context, replay: Any) -> "SolutionGuide":
        """Lead through a generation.

        Raises:
            InvalidSettingError: If its setting is another than in the calibration.
        """
        self._refuse(Setting.of(context))
        return SolutionGuide(self.solution)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, in one go: whoever reads it meanwhile sees the old one or the new.

        Raises:
            OSError: If it cannot be written. What was there is there still.
        """
        save_all(path, [self])

    @classmethod
    def load(cls, path: str | Path) -> "Calibrated":
        """Read what `save` wrote.

        Raises:
            InvalidSettingError: If the file is none of this version, damaged, or larger than
                64 MiB.
            OSError: If it cannot be read.
        """
        schedules = load_all(path)
        if len(schedules) != 1:
            raise InvalidSettingError(
                f"{path} holds {len(schedules)} calibrated schedules, not one: give it to "
                "Auto(file=...)"
            )
        return schedules[0]

    def to_dict(self) -> dict[str, Any]:
        """Of JSON's types."""
        solution = self.solution
        return {
            "unet": dict(self.setting.unet),
            "scheduler": dict(self.setting.scheduler),
            "timesteps": list(self.setting.timesteps),
            "interval": self.interval,
            "seen": solution.seen,
            "plan": list(solution.plan),
            "error": float(f"{solution.error:.{_DIGITS}g}"),
            "blends": {
                str(step): {
                    "a": blend.a,
                    "b": blend.b,
                    **{
                        name: [float(f"{value:.{_DIGITS}g}") for value in getattr(blend, name)]
                        for name in ("gain", "trend", "offset")
                    },
                }
                for step, blend in solution.blends.items()
            },
            **({} if self.reached is None else {"reached": self.reached.to_dict(_DIGITS)}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibrated":
        """What `to_dict` gave.

        Raises:
            InvalidSettingError: If it is anything else.
        """
        return _from_checked(checked(data))

    def __repr__(self) -> str:
        reached = "" if self.reached is None else self.reached.short
        return f"Calibrated({self.solution.plan}{reached and ': '}{reached})"

    def _refuse(self, here: Setting) -> None:
        difference = self.setting.difference(here)
        if difference:
            raise InvalidSettingError(
                f"this calibrated schedule does not fit: {difference}; calibrate it anew"
            )


class SolutionGuide(Guide):
    """Goes by a solution.

    Args:
        solution: What was learned.
        beyond: Called when the generation goes further than the solution was learned from.
    """

    def __init__(self, solution: Solution, beyond: Callable[[], None] | None = None) -> None:
        super().__init__(len(solution.plan), solution.plan.branches, keep=2)
        self._solution = solution
        self._beyond = beyond
        self._coefficients: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._rows = {step: row for row, step in enumerate(solution.blends)}

    def entry(self, step: int) -> PlanEntry:
        """The plan's."""
        if step == self._solution.seen and self._beyond is not None:
            self._beyond()
        return self._solution.plan[step]

    def feature(self, step: int, branch: int, recorded: Sequence[Recorded]) -> torch.Tensor:
        """The step's blend; the newest feature if other steps were recorded than it was made for.

        That happens where a call ran in full out of turn.
        """
        blend, newest = self._solution.blends[step], recorded[0]
        steps = tuple(each.step for each in recorded)
        expected = (blend.a, blend.b) if blend.b < blend.a else (blend.a,)
        if steps != expected or newest.feature.shape[1] != len(blend.gain):
            return newest.feature
        gain, trend, offset = self._on(newest.feature)[self._rows[step]].unbind(0)
        feature = torch.addcmul(newest.feature + offset, newest.feature, gain)
        if len(recorded) > 1:
            feature = torch.addcmul(feature, newest.feature - recorded[1].feature, trend)
        return feature

    def _on(self, feature: torch.Tensor) -> torch.Tensor:
        """All coefficients, sent to the feature's device once: `(steps, 3, 1, channels, 1, …)`."""
        place = (feature.device, feature.dtype)
        if place not in self._coefficients:
            blends = self._solution.blends.values()
            stacked = np.stack([[each.gain, each.trend, each.offset] for each in blends])
            shape = (*stacked.shape[:2], 1, -1, *(1,) * (feature.ndim - 2))
            coefficients = torch.from_numpy(stacked).reshape(shape).to(feature.dtype)
            self._coefficients[place] = sent(coefficients, feature.device)
        return self._coefficients[place]


def load_all(path: str | Path) -> list[Calibrated]:
    """Every schedule in a file.

    Raises:
        InvalidSettingError: If the file is none of this version, damaged, or larger than 64 MiB.
        OSError: If it cannot be read.
    """
    return [_from_checked(each) for each in schedule_file.read(Path(path))]


def save_all(path: str | Path, schedules: Iterable[Calibrated]) -> None:
    """Write several schedules into one file, for `load_all`.

    The first are left out where all would be more than 64 MiB.
    """
    schedule_file.write(Path(path), [each.to_dict() for each in schedules])


def _from_checked(data: Mapping[str, Any]) -> Calibrated:
    setting = Setting(
        dict(data["unet"]), dict(data["scheduler"]), tuple(map(float, data["timesteps"]))
    )
    blends = {
        int(step): Blend(
            blend["a"],
            blend["b"],
            *(np.asarray(blend[name], dtype=float) for name in ("gain", "trend", "offset")),
        )
        for step, blend in data["blends"].items()
    }
    plan = Explicit(data["plan"]).entries
    solution = Solution(data["seen"], plan, blends, float(data["error"]))
    reached = Reached.from_dict(data["reached"]) if "reached" in data else None
    return Calibrated(setting, solution, data["interval"], reached)
