"""The figures of a sweep: its table's cells and its sentences for people, and what JSON has of
each row. What is said of any row stands in `compare.contestant`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..compare.contestant import (
    doubts,
    few_steps,
    figures_of,
    only_one_full,
    seconds_of,
    speed_text,
    times_text,
)
from ..compare.measures import CLEAR, SHAPES
from ..learning.auto import Auto
from .knee import BY_WORK, MEASURED, why_none

if TYPE_CHECKING:
    from .outcome import Row, Sweep


def columns_of(sweep: Sweep) -> list[str]:
    """What each cell of a row is called."""
    first, *others = [each.name for each in sweep.plain.measures]
    looks = ["verdict"] if sweep.plain.looks else []
    names = [f"{first} mean", f"{first} worst", *others, *looks]
    return ["setting", "steps", MEASURED, BY_WORK, *names, "fewer steps at equal work"]


def rows_of(sweep: Sweep) -> list[list[str]]:
    """The cells of each row as text: its mark, and one for each of `columns_of`."""
    plain = ["", "plain", _steps(sweep.plain), times_text(1), times_text(1), "reference"]
    rows = [[*plain, *[""] * (1 + len(columns_of(sweep)) - len(plain))]]
    for row in sweep.rows:
        first, *others = row.measures
        by_work = "" if row.work_speedup is None else times_text(row.work_speedup)
        cells = [mark_of(sweep, row), row.name, _steps(row), speed_text(row.speeds), by_work]
        cells += [first.text(), first.worst_text(), *(each.text() for each in others)]
        cells += [row.looks] if row.looks else []
        rows.append([*cells, fewer_text(sweep, row)])
    return rows


def mark_of(sweep: Sweep, row: Row) -> str:
    """The number by which a setting is called in table and figure; nothing for fewer steps."""
    return next((str(number) for number, each in enumerate(sweep.settings, 1) if each is row), "")


def fewer_text(sweep: Sweep, row: Row) -> str:
    """What fewer steps at equal work come to, or why that is not known."""
    found = None if row.fewer is None else sweep.fewer_of.get(row.fewer)
    if found is not None:
        better = ", better" if sweep.beaten_by(row) else ""
        return f"{row.fewer} steps: {found.measures[0].text()}{better}"
    return f"left out: {row.fewer_left_out}" if row.fewer_left_out else ""


def reading_of(sweep: Sweep) -> list[str]:
    """Sentences that say how to read the table."""
    plain, seeds = sweep.plain, len(sweep.about["seeds"])
    steps = f" with {plain.steps} steps" if plain.steps else ""
    rounds = max(len(row.times) for row in sweep.rows)
    times = "once" if rounds == 1 else f"{rounds} times in turn: median and range"
    notes = [
        f"Speeds and likeness are against the plain pipeline{steps}. The {MEASURED} is that of the "
        f"denoising loop, timed {times}. The {BY_WORK} is the most that the U-Net's saved "
        "multiply-adds allow.",
    ]
    if seeds > 1:
        notes.append(f"Likeness is over {seeds} results; #1 is the first of them.")
    return notes


def cautions_of(sweep: Sweep) -> list[str]:
    """What speaks against the figures or against a setting, in words without a full stop."""
    beaten = [row.title for row in sweep.settings if sweep.beaten_by(row)]
    found = doubts({row.title: row for row in sweep.rows})
    found += only_one_full({row.title: row.plan for row in sweep.settings})
    found += dict.fromkeys(said for row in sweep.settings for said in few_steps(row, row.plan))
    found += [
        f"{row.title}: {remark}"
        for row in sweep.settings
        if row.setting is not None
        and isinstance(schedule := row.setting.made(), Auto)
        and (remark := schedule.remark_on(row.plan, is_past=True))
    ]
    if beaten:
        by = f"by {CLEAR:g} dB or more"
        found.append(f"fewer steps at equal work are better, {by}, than: {'; '.join(beaten)}")
    if sweep.missing:
        found.append(f"broken off: {sweep.missing} of {sweep.about['settings']} are not there yet")
    return found


def knee_text(sweep: Sweep) -> str:
    """The setting at the knee in a sentence, or what to take where there is none, and why."""
    knee = sweep.knee
    if knee is None:
        why = f"There is no knee: {why_none(sweep.points, sweep.speed_name)}."
        return f"{_instead(sweep)} {why}".lstrip()
    text = f"The knee is {_told(sweep, knee)}."
    better = sweep.beaten_by(knee)
    return text if better is None else f"{text} But {better.steps} plain steps are better."


def _instead(sweep: Sweep) -> str:
    """What to take without a knee.

    Nothing is said of no setting, nor where there is none to take and for some no reason against.
    """
    if not sweep.settings:
        return ""
    found = sweep.fastest_unbeaten
    if found is not None:
        verdict = " with this verdict" if found.looks else ""
        rule = f"the fastest setting{verdict} that fewer steps at equal work do not beat"
        return f"Take {_told(sweep, found)}, {rule}."
    if all(sweep.beaten_by(row) for row in sweep.settings):
        return "Take none of them: fewer steps at equal work are better than every setting."
    if sweep.fewer and all(sweep.beaten_by(row) or row.looks == SHAPES for row in sweep.settings):
        return (
            "Take none of them: shapes differ, or fewer steps at equal work are better. "
            "A smaller interval comes closer."
        )
    return ""


def _told(sweep: Sweep, row: Row) -> str:
    """A setting with its steps, speed, quality, verdict and number."""
    by = "by work" if sweep.by_work else "measured"
    measure = row.measures[0]
    steps = f" with {row.steps} steps" if row.steps else ""
    looks = f", {row.looks}" if row.looks else ""
    return (
        f"{row.name}{steps}: {times_text(sweep.speed_of(row))} {by}, {measure.name} "
        f"{measure.text()}{looks} ({mark_of(sweep, row)} in the figure)"
    )


def said_of(sweep: Sweep) -> list[str]:
    """The knee, and what is to be cautious of, in sentences."""
    return [knee_text(sweep), *(f"{each[0].upper()}{each[1:]}." for each in cautions_of(sweep))]


def row_figures(sweep: Sweep, row: Row) -> dict[str, Any]:
    """The figures of one row, for JSON."""
    setting = row.setting
    found: dict[str, Any] = {"name": row.name, "steps": row.steps}
    if setting is not None:
        given = {name: getattr(setting, name) for name in ("schedule", "interval", "branch")}
        found |= {**given, "plan": str(row.plan), "python": sweep.python(row)}
        found |= {"fewer_steps": row.fewer, "fewer_steps_left_out": row.fewer_left_out}
        found["fewer_steps_are_better"] = sweep.beaten_by(row) is not None
    return {
        **found,
        **figures_of(row),
        **seconds_of(row.times),
        "plain": seconds_of(row.plain_times),
        "full_calls": row.full_calls,
        "shallow_calls": row.shallow_calls,
    }


def _steps(row: Row) -> str:
    return "own" if row.steps is None else str(row.steps)
