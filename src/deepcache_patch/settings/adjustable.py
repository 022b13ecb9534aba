"""The settings of a helper, and how they are changed. When they are in force is the helper's own
matter; what becomes of them when some are given anew stands in `changed`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from diffusers import DiffusionPipeline
from torch import nn

from ..inspection.branches import Branches, BranchesOfEach, branches_of_pipeline, share_of
from ..running.attachment import SWITCHING, Attachment
from ..schedules.guide import AnySchedule
from ..schedules.noise_aware import NoiseAware
from ..schedules.replay import Replay
from .by_name import ReplayName, ScheduleName, branch_of
from .changed import DEFAULT, Settings, SettingsGiven, require_known
from .fitting import anatomies_for

if TYPE_CHECKING:
    from typing_extensions import Never, Self

#: What `set` takes.
_SETTINGS: Final = tuple(SettingsGiven.__annotations__)


class Adjustable:
    """What `DeepCacheHelper` goes by, to be read and changed at any time.

    Args:
        pipe: The pipeline, or a bare U-Net.
        attachment: To whose guides a change is told.
        given: The arguments of the constructor by name; `None` where one is not given.
    """

    # So that a misspelt setting (`helper.intervall = 5`) is an error and not a silence.
    __slots__ = ("__weakref__", "_attachment", "_pipe", "_settings")

    def __init__(
        self,
        pipe: DiffusionPipeline | nn.Module,
        attachment: Attachment,
        given: Mapping[str, Any],
    ) -> None:
        self._pipe = pipe
        self._attachment = attachment
        self._settings = self._fitting(DEFAULT, given)

    @property
    def schedule(self) -> AnySchedule:
        """What decides which steps run in full, and at which branch the others run."""
        return self._settings.schedule

    @property
    def interval(self) -> float | None:
        """One full step in so many; `None` where the schedule has no interval."""
        interval: float | None = getattr(self.schedule, "interval", None)
        return interval

    @property
    def branch(self) -> int | None:
        """Where all shallow steps are cut; `None` where the schedule names no branch, or several.

        That of the default schedule is where they are cut if a forecast is possible.
        """
        return branch_of(self.schedule)

    @property
    def first(self) -> float:
        """How many steps at the start always run in full: an `int`, or a share as a `float`."""
        return self._settings.window.first

    @property
    def last(self) -> float:
        """How many steps at the end always run in full: an `int`, or a share as a `float`."""
        return self._settings.window.last

    @property
    def replay(self) -> Replay:
        """What a shallow step gets for the deep feature; a schedule with its own does without."""
        return self._settings.replay

    @property
    def branches(self) -> Branches | BranchesOfEach:
        """What each branch leaves out, what it costs and what it holds; printed, a table.

        A sequence of `Branch`; of several U-Nets, one for each component's name. Costs and sizes
        are of a call of the last generation, or else of one for one picture of the U-Net's size.

        Raises:
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
        """
        return branches_of_pipeline(self._pipe, self._attachment.examples)

    def set(
        self,
        *,
        interval: float | None = None,
        branch: int | None = None,
        speedup: float | None = None,
        schedule: AnySchedule | ScheduleName | None = None,
        first: float | None = None,
        last: float | None = None,
        replay: Replay | ReplayName | None = None,
        **unknown: "Never",
    ) -> "Self":
        """Change settings, before or while enabled, and return the helper.

        The arguments are those of `DeepCacheHelper`. What is not given stays as it is. `interval`,
        `branch` and `speedup` change the schedule that is in force; its kind stays. A `schedule` by
        its name takes over the interval (or the speedup, if it has one) and the branch that were
        given before, but not those of an object. A schedule that is an object is taken as it is.
        `set(schedule="default", interval=2.2, branch=-1, replay="extrapolate")` gives the settings
        of a new helper. If anything is refused, nothing changes. `Auto` keeps what it
        has learned until another interval or branch is given.

        The branch stays. A branch of 0 or more needs more steps left out than -1 for the same
        speed, because its shallow steps cost work. `set(speedup=2, branch=-1)` takes the default's
        branch again.

        `unknown` is there to answer a mistyped setting by the one that may be meant.

        A generation that is under way goes on as if it were a new one, with a full step.

        Raises:
            InvalidSettingError: If an argument is no setting, is out of range, is not of this
                schedule, or does not fit a U-Net; or if the schedule brings a replay of its own
                (`Auto`) where another than the default is in force: `replay="extrapolate"` with it
                gives that up.
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.

        Example:
            >>> helper = DeepCacheHelper(pipe, interval=3).enable()  # doctest: +SKIP
            >>> helper.set(branch=0, first=2)  # interval=3 stays  # doctest: +SKIP
        """
        require_known(unknown)
        given = {
            "interval": interval,
            "branch": branch,
            "speedup": speedup,
            "schedule": schedule,
            "first": first,
            "last": last,
            "replay": replay,
        }
        if any(value is not None for value in given.values()):
            with SWITCHING:
                self._go_by(self._fitting(self._settings, given))
        return self

    def follow(self, schedule: AnySchedule | ScheduleName) -> None:
        """Go by another schedule, or by the one of that name as it is by default.

        Before or while enabled; `first`, `last` and `replay` stay. A generation that is under way
        goes on as if it were a new one, with a full step.

        Raises:
            InvalidSettingError: If it names a branch that a U-Net does not have, or does not fit.
            UnsupportedModelError: If the pipeline's U-Net was replaced by one that cannot be cut.
        """
        with SWITCHING:
            found = self._settings.follows(schedule)
            anatomies_for(self._pipe, found.schedule)  # or it is refused
            self._go_by(found)

    def _fitting(self, settings: Settings, given: Mapping[str, Any]) -> Settings:
        """The settings with what is given; seen to fit the U-Nets, or refused."""
        given = {name: value for name, value in given.items() if value is not None}
        found = settings.changed(given, self._share_of)
        anatomies_for(self._pipe, found.schedule)
        return found

    def _go_by(self, settings: Settings) -> None:
        try:
            is_change = settings != self._settings
        except Exception:  # schedules of somebody's own that cannot be compared
            is_change = True
        self._settings = settings
        self._attachment.follow(settings.guide_factory(), is_change=is_change)

    def _share_of(self, schedule: NoiseAware) -> float | None:
        """What a shallow call costs, as a part of a full one; of the U-Net where it is most."""
        anatomies_for(self._pipe, schedule)
        # Without a scheduler no output can be forecast: there branch 0 stands in.
        bare = isinstance(self._pipe, nn.Module)
        return share_of(self.branches, max(schedule.branch, 0) if bare else schedule.branch)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTINGS:
            raise AttributeError(
                f"{name} cannot be assigned to: call helper.set({name}={value!r}) to change it"
            )
        super().__setattr__(name, value)
