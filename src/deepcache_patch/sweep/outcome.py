"""What a sweep found: one row for each setting and for each number of steps of the plain pipeline,
as a table, a picture, JSON or a page. How it is made stands in `run`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from ..compare.about import sampler_of
from ..compare.contestant import Contestant, speed_text
from ..compare.measures import CLEAR, DETAILS, SAME
from ..compare.saving import Saved, files_of
from ..compare.script import python_of
from ..learning.auto import Auto
from ..learning.calibrated_schedule import Calibrated
from ..measuring.environment import versions
from ..measuring.generation import Timing
from ..measuring.media import Result, kind_of
from ..measuring.writing import finite
from ..schedules.plans import Plan
from ..schedules.tables import aligned
from . import figures
from .knee import BY_WORK, MEASURED, SpeedQuality, knee_of, rule_of
from .settings import SweepSetting

#: What `Sweep.save_all` writes.
FILES: Final = files_of("sweep")

#: The command that compares one setting, with words for what to fill in.
COMPARE: Final = "deepcache-patch compare MODEL --prompt TEXT"

#: In dB: a smaller gain is not worth a calibration.
_HARDLY: Final = 0.1


@dataclass(frozen=True)
class Row(Contestant):
    """One contestant: a setting of the helper, or the plain pipeline with so many steps.

    It is measured against the reference.

    Attributes:
        setting: The setting of the helper; `None` for the plain pipeline.
        steps: How many there are; `None` where that is not known.
        results: One for each seed: a picture, the frames of a video, or a `Sound`.
        times: One for each round that it ran in.
        plain_times: Those of the reference in the same rounds.
        worth: The U-Net's work, as the number of full calls that cost as much; `None` where it is
            not known.
        reference_calls: U-Net calls of the reference.
        full_calls: U-Net calls that ran whole.
        shallow_calls: Those that did not.
        plan: What ran, of the first U-Net: one entry for each step.
        fewer: With how many steps the plain pipeline does as much work, or barely more.
        fewer_left_out: Why that is not known.
    """

    setting: SweepSetting | None
    steps: int | None
    results: tuple[Result, ...]
    times: tuple[Timing, ...]
    plain_times: tuple[Timing, ...]
    worth: float | None
    reference_calls: int
    full_calls: int = 0
    shallow_calls: int = 0
    plan: Plan = field(default_factory=Plan)
    fewer: int | None = None
    fewer_left_out: str | None = None

    @property
    def name(self) -> str:
        """The setting, without its steps; "plain" without the helper."""
        return "plain" if self.setting is None else self.setting.name

    @property
    def title(self) -> str:
        """The name, and the steps."""
        return self.name if self.steps is None else f"{self.name}, {self.steps} steps"

    @property
    def work(self) -> float | None:
        """The U-Net's work, in multiply-adds, as a share of that of the reference."""
        return None if self.worth is None else self.worth / self.reference_calls

    @property
    def time(self) -> Timing:
        """The timing of the first round."""
        return self.times[0]

    @property
    def quality(self) -> float:
        """The mean of the first measure: PSNR, or SNR of sounds. Infinite if all is identical.

        NaN where something that was made has NaN.
        """
        return self.measures[0].mean

    def __repr__(self) -> str:
        measure = self.measures[0]
        speed = speed_text(self.speeds)
        return f"Row({self.title}: {speed}, {measure.name} {measure.text()})"


@dataclass(frozen=True)
class Sweep(Saved):
    """The same seeds with many settings, and with fewer steps.

    Attributes:
        plain: The reference: the plain pipeline with the largest number of steps.
        settings: One row for each setting of the helper that was made, in the order asked for.
        fewer: The plain pipeline with fewer steps, the most steps first.
        about: Model, pipeline, scheduler, device, dtype, steps, guidance_scale, seeds, repeats,
            the arguments of the call, and how many settings were asked for.
        is_restored: Whether all of it was in the folder already, so that nothing was run.
        compared_by: The command that compares one setting, without the setting's options.
    """

    plain: Row
    settings: tuple[Row, ...]
    fewer: tuple[Row, ...]
    about: Mapping[str, Any]
    is_restored: bool = False
    compared_by: str = COMPARE

    kind_of_result = "sweep"

    @property
    def rows(self) -> tuple[Row, ...]:
        """All but the reference: the settings, then fewer steps."""
        return self.settings + self.fewer

    @property
    def by_work(self) -> bool:
        """Whether the figure goes by work, which is exact; else, where it is not known, by time."""
        return all(row.worth is not None for row in self.rows)

    @property
    def speed_name(self) -> str:
        """By which speed figure and knee go: "speed by work" or "measured speed"."""
        return BY_WORK if self.by_work else MEASURED

    def speed_of(self, row: Row) -> float:
        """How fast a row is as the figure has it: `work_speedup`, or the measured `speedup`."""
        by_work = row.work_speedup if self.by_work else None
        return row.speedup if by_work is None else by_work

    @property
    def knee(self) -> Row | None:
        """The setting at the knee, or `None` where there is none.

        Of the settings that no other one beats in both speed and quality, it is the one that lies
        highest above the straight line from the slowest of them to the fastest, in the figure's
        scales. There is none if these are fewer than three, or if none lies above the line. Speed
        is `speed_of`: by work, or measured where the work is not known.
        """
        found = knee_of(self.points)
        return None if found is None else self._apart[found]

    @property
    def fastest_unbeaten(self) -> Row | None:
        """The fastest of the settings with the best verdict that fewer steps do not beat.

        Each of them is at least as good as fewer steps at equal work. `None` where each setting is
        beaten by them, or they were not made, or shapes differ with each that is not beaten. Of two
        that are as fast, the learned one is taken only if it is closer by more than 0.1 dB.
        """
        known = [row for row in self.settings if row.fewer in self.fewer_of]
        unbeaten = [row for row in known if self.beaten_by(row) is None]
        for looks in (SAME, DETAILS, None):  # sounds have no verdict
            alike = [row for row in unbeaten if row.looks == looks]
            if alike:
                return max(alike, key=lambda row: (self.speed_of(row), _worth(row)))
        return None

    @property
    def points(self) -> list[SpeedQuality]:
        """Speed and quality of each setting of a finite quality, not identical to plain."""
        return [(self.speed_of(row), row.quality) for row in self._apart]

    @property
    def _apart(self) -> list[Row]:
        return [row for row in self.settings if math.isfinite(row.quality)]

    def beaten_by(self, row: Row) -> Row | None:
        """The plain pipeline with fewer steps at equal work, where it is closer than a setting.

        By 1 dB or more: a smaller difference means nothing, as in a comparison.
        """
        found = None if row.fewer is None else self.fewer_of.get(row.fewer)
        return found if found is not None and found.quality - row.quality >= CLEAR else None

    @property
    def fewer_of(self) -> Mapping[int, Row]:
        """The rows of fewer steps, by their number of steps."""
        return {row.steps: row for row in self.fewer if row.steps is not None}

    @property
    def missing(self) -> int:
        """How many settings were asked for, and are not there: the sweep was broken off."""
        return int(self.about["settings"]) - len(self.settings)

    @property
    def title(self) -> str:
        """Model, scheduler and reference in one line."""
        return " · ".join(part for part in (self.model, sampler_of(self.about)) if part)

    def table(self) -> str:
        """Returns the figures as aligned text, and the knee, without a newline at the end."""
        lines = aligned([["", *figures.columns_of(self)], *figures.rows_of(self)], 1)
        knee, *said = figures.said_of(self)
        knee += f" {rule_of(self.speed_name)}" if self.knee else ""
        return "\n".join([*lines, "", *figures.reading_of(self), knee, *said])

    def __repr__(self) -> str:
        knee = f", knee at {self.knee.name}" if self.knee else ""
        return f"Sweep({self.title}: {len(self.settings)} settings{knee})"

    def python(self, row: Row) -> str:
        """Returns a script that makes the results of a row again, to be pasted."""
        setting, about = row.setting, dict(self.about)
        steps = row.steps if setting is None else setting.steps
        counted = {} if steps is None else {"num_inference_steps": steps}
        about["call"] = {**about["call"], **counted}
        if setting is not None:
            about["schedule"] = str(setting.made())
            about |= {} if setting.file is None else {"schedule_file": setting.file}
        return python_of(about, plan=row.plan, saves=kind_of(row.results) == "pictures")

    def command(self, row: Row) -> str | None:
        """Returns a command that compares the setting of a row, to be pasted.

        Where the sweep was not made on the command line, it has words for what to fill in. `None`
        where the command line has no options for the setting.
        """
        options = None if row.setting is None else row.setting.options()
        return None if options is None else f"{self.compared_by} {shlex.join(options)}"

    def picture(self) -> Image.Image:
        """Draws the curve, and beneath it a row of results for each row of the table."""
        from .picture import sweep_picture

        return sweep_picture(self)

    _drawn = picture

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the results themselves, ready for JSON.

        JSON has no infinity: the PSNR of identical pictures is `None`.
        """
        found = {
            "versions": versions(),
            **self.about,
            "figure_by": "work" if self.by_work else "time",
            "knee": _named(self.knee),
            "knee_rule": rule_of(self.speed_name),
            "fastest_unbeaten": _named(self.fastest_unbeaten),
            "notes": figures.cautions_of(self),
            "plain": figures.row_figures(self, self.plain),
            "settings": [figures.row_figures(self, row) for row in self.settings],
            "fewer_steps": [figures.row_figures(self, row) for row in self.fewer],
        }
        return finite(found)  # type: ignore[no-any-return]

    def to_html(self) -> str:
        """Returns one page that needs nothing else: the curve, the table, results, settings."""
        from .report import page  # only it needs jinja2

        return page(self)


def _worth(row: Row) -> float:
    """Its quality, less what a calibration has to gain at least."""
    schedule = None if row.setting is None else row.setting.made()
    return row.quality - _HARDLY * isinstance(schedule, Auto | Calibrated)


def _named(row: Row | None) -> dict[str, Any] | None:
    """A setting as JSON names it."""
    return None if row is None else {"name": row.name, "steps": row.steps}
