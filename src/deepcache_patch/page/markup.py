"""What the page shows that is no component of gradio: the strip of a plan, the figures of a
try. Their style is in app.css.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..compare.contestant import WHY_BEYOND
from ..compare.measures import RULE
from ..compare.outcome import Comparison
from ..schedules.plans import FULL, OUTPUT, Plan
from .history import Try


def strip(plan: Plan, name: str) -> str:
    """The plan as HTML: a mark for each step, dark where it runs in full."""
    several = len(plan.branches) > 1
    signs = (
        '<i class="full"></i>' if entry == FULL else f"<i>{entry if several else ''}</i>"
        for entry in plan
    )
    label = escape(f"{name}: {plan}")
    return f'<div class="strip" role="img" aria-label="{label}">{"".join(signs)}</div>'


def planned(plan: Plan | None, shares: Sequence[float | None], remarks: Sequence[str] = ()) -> str:
    """The plan of settings that have not run, and what it costs.

    Args:
        plan: `None` where it is made while the picture is.
        shares: For each branch the work of a shallow call, 0 to 1; `None` where it is not known.
        remarks: What else there is to say of it.
    """
    if plan is None:
        return _faint("The plan is made while the picture is.")
    share_of: dict[Any, float | None] = {FULL: 1.0, OUTPUT: 0.0, **dict(enumerate(shares))}
    known = [share_of[entry] for entry in plan]
    whole = len(plan.full_steps) == len(plan)
    work = None if whole or None in known else sum(filter(None, known)) / len(plan)
    return strip(plan, "plan") + _faint("; ".join([f"Planned: {_described(plan, work)}", *remarks]))


def ran(comparison: Comparison, remarks: Sequence[str] = ()) -> str:
    """The plan that ran, what it cost, and what else there is to say of it."""
    plan = comparison.plan
    work = None if len(plan.full_steps) == len(plan) else comparison.work
    return strip(plan, "what ran") + _faint("; ".join([f"Ran: {_described(plan, work)}", *remarks]))


def wrong(message: str) -> str:
    """What is wrong with the settings."""
    return f'<p class="wrong" role="alert">{escape(message)}</p>'


def figures(made: Try) -> str:
    """The verdict, times and likeness, as HTML."""
    comparison = made.comparison
    verdict = f'<p title="{escape(RULE)}">Verdict: <strong>{comparison.looks}</strong></p>'
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, *cells in comparison.rows()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", *comparison.columns))
    caption = f"Try {made.number}, timed once"
    if made.kept:
        caption += (
            "; the plain picture and its times are of an earlier run: another seed has new ones"
        )
    if comparison.speeds.is_beyond(comparison.work_speedup):
        caption += f"; faster than the work allows: {WHY_BEYOND}, so believe the work"
    return (
        f'<div class="figures" data-shown="{made.number}">{verdict}'
        f"<table><caption>{caption}.</caption><tr>{head}</tr>{body}</table></div>"
    )


def _described(plan: Plan, work: float | None) -> str:
    said = f"{len(plan.full_steps)} of {len(plan)} steps in full"
    return said if work is None else f"{said}; {work:.0%} of the U-Net's work"


def _faint(text: str) -> str:
    return f'<p class="faint">{escape(text)}</p>'
