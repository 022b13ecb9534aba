"""`Calibrated`, a plan and how to go by it, learned for one U-Net, one scheduler and one list of
timesteps. The file that it is kept in is described in `schedule_file`.
"""

import json
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from torch import nn

from ..errors import InvalidSettingError, warn
from ..schedules.context import Context
from ..schedules.forecast import Weights
from ..schedules.guide import PlannedGuide
from ..schedules.plans import Explicit, Plan
from ..schedules.replay import Replay
from ..schedules.tables import html_table
from . import schedule_file
from .fingerprint import Fingerprint
from .reached import Reached
from .schedule_file import checked, short

#: Digits of the weights in a file.
_DIGITS: Final = 5


@dataclass(frozen=True)
class ValidFor:
    """What a calibration is valid for.

    Attributes:
        unet: Class name and config of the U-Net; its weights are no part of it.
        scheduler: Class name and config of the scheduler.
        timesteps: The timesteps of the steps that a generation runs.
    """

    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, context: Context) -> "ValidFor":
        """The setting of a generation whose timesteps are known."""
        return cls(described(context.unet), described(context.scheduler), context.timesteps or ())

    @property
    def short(self) -> str:
        """The setting in a few words."""
        return f"{len(self.timesteps)} steps with {self.scheduler['class']}"

    def difference(self, other: "ValidFor") -> str | None:
        """Says in what the other differs, or `None`."""
        for part in ("unet", "scheduler"):
            mine, its = getattr(self, part), getattr(other, part)
            names = [name for name in {**mine, **its} if mine.get(name) != its.get(name)]
            if "class" in names:
                return f"{part} is a {its['class']}, not a {mine['class']}"
            if names:
                name = names[0]
                return f"{part} has {name}={short(its.get(name))}, not {short(mine.get(name))}"
        if len(self.timesteps) != len(other.timesteps):
            return f"the generation has {len(other.timesteps)} steps, not {len(self.timesteps)}"
        if self.timesteps != other.timesteps:
            pairs = enumerate(zip(self.timesteps, other.timesteps, strict=True))
            step, (mine, its) = next((s, pair) for s, pair in pairs if pair[0] != pair[1])
            return f"step {step} has timestep {its:g}, not {mine:g}"
        return None


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
    kind = type(part)
    if any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        kind = kind.__bases__[-1]  # `fully_shard` has made a class of the part's own
    return {"class": kind.__name__, **public}


@dataclass(frozen=True)
class Calibrated:
    """A learned schedule with its own replay: see `DeepCacheHelper.calibrate`.

    Two are equal if they do the same, whatever they reached.

    Attributes:
        setting: What it is valid for. A generation in another setting is refused.
        entries: The plan.
        weights: How its steps above the output go on from full ones; where there are none, they do
            as by default.
        reached: Speed, work and PSNR that `calibrate` found; `None` from `Auto`.
        fingerprint: A few weights of the U-Net that it was learned with. For others it is used all
            the same, with one warning. `None` where they were not known, as in older files.

    Example:
        >>> schedule = helper.calibrate(run, speedup=2.5)  # doctest: +SKIP
        >>> schedule.save("schedule.json")  # doctest: +SKIP
        >>> helper = DeepCacheHelper(pipe, schedule=Calibrated.load("schedule.json"))
        ... # doctest: +SKIP
    """

    own_replay: ClassVar = True

    # Whatever has a mapping in it has no hash.
    setting: ValidFor = field(hash=False)
    entries: Plan
    weights: Weights = field(default_factory=dict, hash=False)
    reached: Reached | None = field(default=None, compare=False)
    fingerprint: Fingerprint | None = field(default=None, hash=False)
    #: Whose weights were compared.
    _compared: "weakref.WeakSet[nn.Module]" = field(
        default_factory=weakref.WeakSet, init=False, repr=False, compare=False
    )

    @property
    def branches(self) -> tuple[int, ...]:
        """The branches that the plan names."""
        return self.entries.branches

    def plan(self, num_steps: int) -> Plan:
        """The learned plan.

        Raises:
            InvalidSettingError: If it was learned for another number of steps.
        """
        if num_steps != len(self.entries):
            raise InvalidSettingError(
                f"this schedule was calibrated for {len(self.entries)} steps, the generation "
                f"has {num_steps}: calibrate it with {num_steps}"
            )
        return self.entries

    def check(self, unet: nn.Module, scheduler: Any) -> None:
        """Check, before anything is patched, what can be known then.

        Raises:
            InvalidSettingError: If the U-Net or the scheduler is another than in the calibration.
        """
        here = ValidFor(described(unet), described(scheduler), self.setting.timesteps)
        self._refuse(here)

    def begin(self, context: Context, replay: Replay) -> PlannedGuide:
        """Lead through a generation; warns if its U-Net has other weights.

        Raises:
            InvalidSettingError: If its setting is another than in the calibration.
        """
        self._refuse(ValidFor.of(context))
        self.compare_weights(context.unet, "this calibrated schedule", "calibrate it anew")
        return PlannedGuide(self, replay, context, weights=self.weights)

    def compare_weights(self, unet: nn.Module, name: str, cure: str) -> None:
        """Warn if a U-Net has other weights than the calibration was of; looked at once for each.

        Args:
            unet: One of the right class and config; some of its weights are read from the device.
            name: How to call this schedule.
            cure: What to do for one that is of these weights.
        """
        if self.fingerprint is None or unet in self._compared:
            return
        self._compared.add(unet)
        difference = self.fingerprint.difference(unet)
        if difference:
            warn(
                f"{name} was learned with other weights of {type(unet).__name__}: {difference}; it "
                f"is used all the same, and may lose more than one of these weights: {cure}"
            )

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
        """The schedule in JSON's types."""
        more: dict[str, Any] = {}
        if self.reached is not None:
            more["reached"] = self.reached.to_dict(_DIGITS)
        if self.fingerprint is not None:
            more["fingerprint"] = self.fingerprint.to_dict()
        return {
            "unet": dict(self.setting.unet),
            "scheduler": dict(self.setting.scheduler),
            "timesteps": list(self.setting.timesteps),
            "plan": list(self.entries),
            "weights": [
                {
                    "steps": list(steps),
                    "weights": [float(f"{weight:.{_DIGITS}g}") for weight in weights],
                }
                for steps, weights in self.weights.items()
            ],
            **more,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibrated":
        """What `to_dict` gave.

        Raises:
            InvalidSettingError: If it is anything else.
        """
        return _from_checked(checked(data))

    def __getstate__(self) -> dict[str, Any]:
        """Without the U-Nets that were looked at, or a copy would copy them."""
        return {name: value for name, value in vars(self).items() if name != "_compared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _compared=weakref.WeakSet())

    def __repr__(self) -> str:
        reached = "" if self.reached is None else self.reached.short
        return f"Calibrated({self.entries}{reached and ': '}{reached})"

    def _repr_html_(self) -> str:
        rows = [("steps", str(self.entries)), ("", self.entries.counted)]
        if self.reached is not None:
            rows += self.reached.rows
        for name, part in (("U-Net", self.setting.unet), ("scheduler", self.setting.scheduler)):
            rows.append((name, str(part.get("class", ""))))
        return html_table("Calibrated", rows)

    def _refuse(self, here: ValidFor) -> None:
        difference = self.setting.difference(here)
        if difference:
            raise InvalidSettingError(
                f"this calibrated schedule does not fit: {difference}; {self._cure(here)}"
            )

    def _cure(self, here: ValidFor) -> str:
        """What to do: where the scheduler alone differs, take the one of the calibration."""
        anew = "calibrate it anew, or give schedule='default'"
        other = here.scheduler != self.setting.scheduler
        if here.unet != self.setting.unet or not other or here.scheduler["class"] == "NoneType":
            return anew
        kind = self.setting.scheduler["class"]
        return (
            f"set the scheduler first: pipe.scheduler = {kind}.from_config("
            f"schedule.setting.scheduler), where schedule is this one; or {anew}"
        )


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
    setting = ValidFor(
        dict(data["unet"]), dict(data["scheduler"]), tuple(map(float, data["timesteps"]))
    )
    plan = Explicit(data["plan"]).entries
    weights = {tuple(each["steps"]): tuple(map(float, each["weights"])) for each in data["weights"]}
    reached = Reached.from_dict(data["reached"]) if "reached" in data else None
    fingerprint = Fingerprint.from_dict(data["fingerprint"]) if "fingerprint" in data else None
    return Calibrated(setting, plan, weights, reached, fingerprint)
