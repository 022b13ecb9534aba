"""The figures of a sweep: aligned text and lines for people, a dictionary for JSON, and each
setting as it is written in Python and on the command line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..compare.figures import times_text
from ..compare.paste import arguments_of
from ..measuring.environment import versions
from ..measuring.finite import finite
from .knee import RULE

if TYPE_CHECKING:
    from .outcome import Row, Sweep

#: What stands before a setting's options where no command is known.
_COMMAND: Final = "deepcache-patch compare MODEL --prompt TEXT"

#: Above it, a row's rounds differ by too much to go by: their range over their median; and so much
#: faster than the work allows is none.
_WIDEST: Final = 0.2


def table_of(sweep: Sweep) -> str:
    """See `Sweep.table`."""
    columns = columns_of(sweep)
    lines = _aligned([["", *columns], *rows_of(sweep)])
    return "\n".join([*lines, "", *notes_of(sweep)])


def columns_of(sweep: Sweep) -> list[str]:
    """What each cell of a row is called."""
    measures = _measured(sweep)
    first, *others = measures
    names = [f"{first} mean", f"{first} worst", *others]
    return ["setting", "steps", "speed", "by work", *names, "fewer steps at equal work"]


def rows_of(sweep: Sweep) -> list[list[str]]:
    """The cells of each row as text: its mark, and one for each of `columns_of`."""
    width = 1 + len(_measured(sweep))
    plain = ["plain", _steps(sweep.plain), times_text(1), times_text(1)]
    rows = [["", *plain, "reference", *[""] * width]]
    for row in sweep.rows:
        first, *others = row.measures
        worst = f"{first.text(min(first.values))}, #{row.worst + 1}"
        by_work = "" if row.work_speed is None else times_text(row.work_speed)
        cells = [mark_of(sweep, row), row.name, _steps(row), speed_text(row), by_work]
        rows.append([*cells, first.text(), worst, *(each.text() for each in others)])
        rows[-1].append("" if row.setting is None else fewer_text(sweep, row))
    return rows


def mark_of(sweep: Sweep, row: Row) -> str:
    """What a row is called in the figure: its number, or the steps of the plain pipeline."""
    if row.setting is None:
        return ""
    return str(sweep.settings.index(row) + 1)


def speed_text(row: Row) -> str:
    """The median of the rounds, and their range if there are several: "2.61× (2.50–2.70)"."""
    ratios = row.speeds.ratios
    if len(ratios) == 1:
        return times_text(row.speed)
    return f"{times_text(row.speed)} ({min(ratios):.2f}–{max(ratios):.2f})"


def fewer_text(sweep: Sweep, row: Row) -> str:
    """What fewer steps at equal work come to, or why that is not known."""
    found = None if row.fewer is None else sweep.fewer_of.get(row.fewer)
    if found is not None:
        return f"{row.fewer} steps: {found.measures[0].text()}"
    return f"left out: {row.fewer_left_out}" if row.fewer_left_out else ""


def notes_of(sweep: Sweep) -> list[str]:
    """Sentences that say how to read the table, and what to take."""
    plain, seeds = sweep.plain, len(sweep.about["seeds"])
    steps = f" with {plain.steps} steps" if plain.steps else ""
    rounds = max(len(row.times) for row in sweep.rows)
    times = "once" if rounds == 1 else f"{rounds} times in turn: median and range"
    notes = [
        f"Speed and likeness are against the plain pipeline{steps}. Speed is that of the denoising "
        f"loop, timed {times}. By work: the most that the U-Net's saved multiply-adds allow.",
    ]
    if seeds > 1:
        notes.append(f"Likeness is over {seeds} results; #1 is the first of them.")
    unsteady = [row for row in sweep.rows if _is_unsteady(row)]
    if unsteady:
        names = "; ".join(f"{row.name}, {_steps(row)} steps" for row in unsteady)
        notes.append(
            "Timings differ by more than 20 %, or are better by as much than the work allows; go "
            f"by work for {names}."
        )
    notes.append(f"{knee_text(sweep)} {RULE}" if sweep.knee else knee_text(sweep))
    if sweep.missing:
        notes.append(f"Broken off: {sweep.missing} of {sweep.about['settings']} are not there yet.")
    return notes


def knee_text(sweep: Sweep) -> str:
    """The setting at the knee in one sentence, or that there is none."""
    knee = sweep.knee
    if knee is None:
        return "There is no knee: the curve has fewer than three settings, or does not bend down."
    by = "by work" if sweep.by_work else "in time"
    text = f"The knee is {knee.name}"
    text += f" with {knee.steps} steps" if knee.steps else ""
    measure = knee.measures[0]
    text += f": {times_text(sweep.speed_of(knee))} {by}, {measure.name} {measure.text()}"
    return f"{text} ({mark_of(sweep, knee)} in the figure)."


def python_of(sweep: Sweep, row: Row) -> str:
    """See `Sweep.python`."""
    about = sweep.about
    steps = {} if row.steps is None else {"num_inference_steps": row.steps}
    call = f"result = pipe({arguments_of({**about['call'], **steps})})"
    if row.setting is None:
        return call
    beside = {name: repr(about[name]) for name in ("first", "last") if about[name]}
    if about["replay"]:
        beside["replay"] = '"reuse"' if about["replay"] == "Reuse()" else about["replay"]
    return f"{row.setting.python(beside)}\n{call}"


def command_of(row: Row, command: str | None) -> str | None:
    """See `Sweep.command`."""
    options = None if row.setting is None else row.setting.options()
    return None if options is None else f"{command or _COMMAND} {shlex.join(options)}"


def figures_of(sweep: Sweep) -> dict[str, Any]:
    """See `Sweep.to_dict`."""
    knee = sweep.knee
    found = {
        "versions": versions(),
        **sweep.about,
        "figure_by": "work" if sweep.by_work else "time",
        "knee": None if knee is None else {"name": knee.name, "steps": knee.steps},
        "knee_rule": RULE,
        "plain": _figures(sweep, sweep.plain),
        "settings": [_figures(sweep, row) for row in sweep.settings],
        "fewer_steps": [_figures(sweep, row) for row in sweep.fewer],
    }
    return finite(found)  # type: ignore[no-any-return]


def _figures(sweep: Sweep, row: Row) -> dict[str, Any]:
    setting = row.setting
    found: dict[str, Any] = {"name": row.name, "steps": row.steps}
    if setting is not None:
        given = {name: getattr(setting, name) for name in ("schedule", "interval", "branch")}
        found |= {**given, "plan": row.plan, "python": python_of(sweep, row)}
        found |= {"fewer_steps": row.fewer, "fewer_steps_left_out": row.fewer_left_out}
    ratios = row.speeds.ratios
    return {
        **found,
        "loop_speedup": row.speed,
        "loop_speedup_range": [min(ratios), max(ratios)],
        "call_speedup": row.call_speed,
        "work": row.work,
        "work_speedup": row.work_speed,
        "full_calls": row.full_calls,
        "shallow_calls": row.shallow_calls,
        "loop_seconds_each": [time.loop_seconds for time in row.times],
        "call_seconds_each": [time.call_seconds for time in row.times],
        "plain_loop_seconds_each": [time.loop_seconds for time in row.plain_times],
        "plain_call_seconds_each": [time.call_seconds for time in row.plain_times],
        **{each.name.lower(): each.mean for each in row.measures},
        **{f"{each.name.lower()}_each": each.values for each in row.measures},
    }


def _measured(sweep: Sweep) -> list[str]:
    return [each.name for each in sweep.rows[0].measures]


def _steps(row: Row) -> str:
    return "own" if row.steps is None else str(row.steps)


def _is_unsteady(row: Row) -> bool:
    ratios = row.speeds.ratios
    most = row.work_speed or row.speed
    return max(ratios) - min(ratios) > _WIDEST * row.speed or row.speed > (1 + _WIDEST) * most


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text: marks and names to the left, figures to the right, the last as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    last = len(row) - 1
    return [
        cell.ljust(width) if place in (1, last) else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
