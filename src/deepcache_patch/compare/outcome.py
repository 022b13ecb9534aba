"""What a comparison found: the results of both runs, their times, how alike they are and what ran;
as a table, a picture, JSON or a page. How it is made stands in `run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Literal

from PIL import Image

from ..measuring.environment import versions
from ..measuring.generation import Timing
from ..measuring.media import Kind, Result, kind_of
from ..measuring.writing import finite
from ..schedules.plans import Plan
from .about import sampler_of
from .contestant import (
    HELPER,
    Contestant,
    doubts,
    few_steps,
    figures_of,
    looks_lines,
    only_one_full,
    range_text,
    seconds_of,
    speed_text,
    times_text,
)
from .fewer import FewerSteps
from .grid import comparison_picture
from .measures import CLEAR
from .saving import Saved, files_of

#: What `Comparison.save_all` writes.
FILES: Final = files_of("comparison")

#: What to do where fewer steps are closer to the plain results than the helper: what helps most
#: comes first.
LOST: Final = (
    "let `deepcache-patch calibrate` find a plan (in Python `helper.calibrate(run, speedup=2)`), "
    "try another interval, or take fewer steps"
)

#: The mean over fewer results is often decided by one of them.
ENOUGH: Final = 16


@dataclass(frozen=True)
class Comparison(Contestant, Saved):
    """The same seeds without and with the helper.

    Attributes:
        plain: What the plain pipeline made, one result for each seed: a picture, the frames of a
            video, or a `Sound`.
        cached: The same with the helper.
        plain_times: One for each repeat, in order.
        times: One for each repeat, each taken right after its plain counterpart. Speeds are
            medians of the ratios of the two: see `measuring.speed.Speed`.
        full_calls: U-Net calls of one cached generation that ran whole.
        shallow_calls: Those that ran only what lies above the branch.
        cache_nbytes: Largest size of the feature cache, in bytes.
        about: Model, pipeline, scheduler, device, dtype, steps, guidance_scale (`None` if there
            is none), schedule, replay, seeds, repeats and the arguments of the call.
        plans: What ran in the last cached generation, for each U-Net by its name in the pipeline.
        work: The U-Net's work with the helper, in multiply-adds, as a share of the plain one's, 0
            to 1. `None` where it is not known: for several U-Nets, and for some that are not
            diffusers' own.
        fewer: The plain pipeline with fewer steps at equal work, or `None`.
        fewer_left_out: Why there is no `fewer`, if it was asked for.
        command: The command line that made it, if one did.
    """

    plain: tuple[Result, ...]
    cached: tuple[Result, ...]
    plain_times: tuple[Timing, ...]
    times: tuple[Timing, ...]
    full_calls: int
    shallow_calls: int
    cache_nbytes: int
    about: Mapping[str, Any]
    plans: Mapping[str, Plan] = field(default_factory=dict)
    work: float | None = None
    fewer: FewerSteps | None = None
    fewer_left_out: str | None = None
    command: str | None = None

    kind_of_result = "comparison"

    @property
    def kind(self) -> Kind:
        """What was made: "pictures", "videos" or "sounds"."""
        return kind_of(self.plain)

    @property
    def plan(self) -> Plan:
        """What ran, of the first U-Net: one entry for each step."""
        return next(iter(self.plans.values()), Plan())

    @property
    def verdict(self) -> str | None:
        """Fewer steps and the helper in one line, and who is closer; or why there are no fewer.

        Where the means differ by less than 1 dB, both are called equally close. Else, if the helper
        lost, it is said what to do. Where one is NaN, nobody is called closer.
        """
        fewer, reason = self.fewer, self.fewer_left_out
        if fewer is None:
            return None if reason is None else f"fewer steps at equal work: left out, {reason}"
        theirs, ours = fewer.measures[0], self.measures[0]
        steps = f"{fewer.steps} of {self.about['steps']}"
        said = f"fewer steps at equal work ({steps}): {theirs.text()}, helper: {ours.text()}"
        if math.isnan(theirs.mean) or math.isnan(ours.mean):
            return f"{said}: {self.kind} with NaN cannot be compared; try float32"
        if abs(theirs.mean - ours.mean) < CLEAR:
            return f"{said}: equally close, as they differ by less than {CLEAR:g} dB"
        if theirs.mean <= ours.mean:
            by = ours.mean - theirs.mean
            return f"{said}, {by:.1f} dB closer" if math.isfinite(by) else said
        count = len(self.plain)
        few = f"; the mean of {count} tells little, make {ENOUGH}" if count < ENOUGH else ""
        return f"{said}: {LOST}{few}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how far the figures are to be trusted; none where nothing speaks against it.

        That speeds are from one run; that half of them differ by more than 20 % of their median
        (of up to four, all); that one is above what the work allows; that only one step ran in
        full; that there are so few steps that pictures move far, if they did.
        """
        return (
            *doubts(self.contestants),
            *only_one_full({HELPER: self.plan}),
            *few_steps(self, self.plan),
        )

    @property
    def said(self) -> tuple[str, ...]:
        """All that there is to say in words: how the results look, `verdict` and `notes`."""
        verdict = [] if self.verdict is None else [self.verdict]
        return (*looks_lines(self.contestants), *verdict, *self.notes)

    @property
    def identical(self) -> int:
        """The number of results that the helper did not change."""
        return sum(value == float("inf") for value in self.measures[0].values)

    @property
    def title(self) -> str:
        """`model` and `setting` in one line."""
        return f"{self.model} · {self.setting}"

    @property
    def setting(self) -> str:
        """Steps, scheduler and schedule in one line."""
        about = self.about
        steps = "" if about["steps"] is None else f"{about['steps']} steps"
        schedule = about["schedule"]
        if schedule.startswith("Uniform("):
            schedule = f"interval {about['interval']}, branch {about['branch']}"
        if schedule.startswith("NoiseAware("):
            schedule = f"noise-aware, interval {about['interval']:g}, branch {about['branch']}"
        if about["replay"] == "Reuse()":  # the other one is the default
            schedule += ", reuse"
        return " · ".join(part for part in (steps, sampler_of(about), schedule) if part)

    @property
    def numbered(self) -> list[str]:
        """`headings` with the numbers by which the worst is named, "#4 seed 3"; of one, without."""
        if len(self.headings) == 1:
            return self.headings
        return [f"#{number} {heading}" for number, heading in enumerate(self.headings, 1)]

    def grid(self) -> Image.Image:
        """Draws a row for each contestant, and after each the amplified difference to plain.

        Differences are amplified 8 times in every comparison. Of a video there are three frames, of
        a sound the waveform, without a difference.
        """
        return comparison_picture(self)

    _drawn = grid

    def table(self) -> str:
        """Returns the figures as aligned text, without a newline at the end."""
        rows = (("", *self.columns), *self.rows())
        wide = max(13, *(2 + len(each) for _, _, *others in rows for each in others))
        lines = [
            f"{name:<15}{plain:>11}" + "".join(f"{each:>{wide}}" for each in others)
            for name, plain, *others in rows
        ]
        said = self.said
        lines += ["", *said, *([""] if self.plans else [])] if said else []
        for name, plan in self.plans.items():
            label = "plan" if len(self.plans) == 1 else f"plan of {name}"
            lines.append(f"{label:<15} {plan}")
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        steps, first = self.about["steps"], self.measures[0]
        parts = [] if steps is None else [f"{steps} steps"]
        parts.append(speed_text(self.speeds, self.work_speedup))
        line = f"{', '.join(parts)}, {first.name} {first.mean_text()}"
        if self.fewer is not None:
            line += f"; {self.fewer.name}: {self.fewer.measures[0].text()}"
        return f"<Comparison of {self.model}: {line}>"

    @property
    def contestants(self) -> dict[str, Contestant]:
        """What stands beside plain, by its name: "helper", and the fewer steps if there are."""
        return {HELPER: self, **({self.fewer.name: self.fewer} if self.fewer else {})}

    @property
    def columns(self) -> tuple[str, ...]:
        """The contestants: "plain", "helper", and the fewer steps if there are any."""
        return ("plain", *self.contestants)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the figures as text: what, and the value of each of `columns`."""
        others, plain = [*self.contestants.values()], self.plain_times
        works = [each.work for each in others if self.work is not None and each.work is not None]

        def timed(title: str, what: Literal["loop", "call"]) -> Iterator[tuple[str, ...]]:
            """Seconds, speedups and their ranges, of the loop or of the whole call."""
            rounds = [plain, *(each.times for each in others)]
            seconds = [[getattr(one, f"{what}_seconds") for one in each] for each in rounds]
            speeds = [each.speeds if what == "loop" else each.call_speeds for each in others]
            yield title, *(f"{median(each):.3f} s" for each in seconds)
            yield f"{what} speedup", "", *(times_text(each.median) for each in speeds)
            if len(plain) > 1:
                yield f"{what} range", "", *(range_text(each) for each in speeds)

        def by_work(
            title: str, of_plain: str, text: Callable[[float], str]
        ) -> Iterator[tuple[str, ...]]:
            """What follows from the work of the U-Net; nothing where that is not known."""
            if works:
                yield title, of_plain, *map(text, works)

        def likeness() -> Iterator[tuple[str, ...]]:
            for place, each in enumerate(zip(*(each.measures for each in others), strict=True)):
                yield each[0].name, "", *(one.text() for one in each)
                if place == 0 and len(each[0].values) > 1:
                    yield f"worst {each[0].name}", "", *(one.worst_text() for one in each)

        fewer = [] if self.fewer is None else [self.fewer.times[0].calls]
        full, shallow = str(self.full_calls), str(self.shallow_calls)
        return [
            *timed("denoising loop", "loop"),
            *by_work("by work at most", "", lambda work: times_text(1 / work)),
            *timed("whole call", "call"),
            *by_work("U-Net work", "100.0%", "{:.1%}".format),
            ("full calls", str(plain[0].calls), full, *(str(calls) for calls in fewer)),
            ("shallow calls", "0", shallow, *("0" for _ in fewer)),
            *likeness(),
            ("feature cache", "", f"{self.cache_nbytes / 2**20:.2f} MiB", *("" for _ in fewer)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the results themselves, ready for JSON.

        JSON has no infinity: the PSNR of identical pictures is `None`, and `identical` counts them.
        """
        fewer, third = self.fewer, None
        if fewer is not None:
            third = {"steps": fewer.steps, **figures_of(fewer), **seconds_of(fewer.times)}
        figures = {
            "kind": self.kind,
            **figures_of(self),
            "plain": seconds_of(self.plain_times),
            "cached": seconds_of(self.times),
            "full_calls": self.full_calls,
            "shallow_calls": self.shallow_calls,
            "cache_nbytes": self.cache_nbytes,
            "plans": {name: str(plan) for name, plan in self.plans.items()},
            "identical": self.identical,
            "fewer_steps": third,
            "fewer_steps_left_out": self.fewer_left_out,
            "notes": self.notes,
        }
        made_by = {} if self.command is None else {"command": self.command}
        return {**made_by, "versions": versions(), **self.about, "figures": finite(figures)}

    def to_html(self) -> str:
        """Returns one page that needs nothing else: the results under sliders, and the figures."""
        from .report import page  # only it needs jinja2

        return page(self)
