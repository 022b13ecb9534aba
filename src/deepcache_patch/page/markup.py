"""What the page shows that is no component of gradio: the strip of a plan, the figures of a
try, and their style.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from ..compare.contestant import WHY_BEYOND
from ..compare.outcome import Comparison
from ..schedules.plans import FULL, OUTPUT, Plan
from .history import Try

CSS: Final = """
.gradio-container { max-width: min(1280px, 100%) !important; margin: 0 auto !important; }
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 8px !important; }
  .figures table { font-size: var(--text-sm); }
  .gradio-container button.lg { font-size: var(--text-md); padding-inline: 8px;
    white-space: nowrap; }
  #tries * { font-size: 11px; word-break: normal; }
  #tries :is(th, .body-cell, .cell-wrap) { padding: 2px !important; }
  #tries .cell-menu-button { display: none; }
}
.strip { display: flex; flex-wrap: wrap; gap: 2px; margin: 0 0 4px; }
.strip i { flex: 0 0 auto; min-width: 9px; height: 18px; border-radius: 2px; padding: 0 1px;
  background: var(--border-color-primary); font: 11px/18px monospace; text-align: center; }
.strip i.full { background: var(--primary-600); }
.figures table { width: 100%; margin: 0; border: 0 !important; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.figures table :is(tr, th, td) { border: 0 !important; padding: 4px 0 4px 8px !important;
  text-align: right !important; }
.figures table tr + tr { border-top: 1px solid var(--border-color-primary) !important; }
.figures table th:first-child { text-align: left !important; font-weight: normal;
  padding-left: 0 !important; }
#die { align-self: center; }
#difference .image-frame { width: 100%; }
#difference img { width: 100%; max-height: 500px; object-fit: contain !important; }
#plot svg { display: block; overflow: visible; width: calc(100% - 52px); height: 210px;
  margin: 8px 12px 24px 40px; }
#plot line { stroke: var(--border-color-primary); }
#plot text { fill: var(--body-text-color-subdued); font-size: 12px; text-anchor: middle;
  transform: translateY(18px); }
#plot text.y { text-anchor: end; transform: translate(-8px, 4px); }
#plot circle { fill: var(--primary-600); stroke: var(--background-fill-primary); }
#plot a:is(:hover, :focus-visible) circle { stroke: var(--body-text-color); stroke-width: 2; }
#plot svg + p { text-align: right; }
.wrong { color: var(--error-text-color); }
.faint, .figures caption { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
.figures caption { text-align: left; padding: 0; white-space: normal; }
"""

#: gradio's handle between two pictures knows the mouse only: the arrow keys become moves of it. Its
#: pictures have no words for those who do not see them.
KEYS: Final = """
new MutationObserver(() => {
  for (const handle of document.querySelectorAll("[data-testid=slider]:not([tabindex])")) {
    handle.tabIndex = 0;
    handle.role = "slider";
    handle.ariaLabel = "where the plain picture ends";
  }
  document.querySelectorAll("#pictures img").forEach((picture, second) => {
    const name = second ? "picture with the helper" : "plain picture";
    if (picture.alt !== name) picture.alt = name;
  });
}).observe(document.documentElement, {childList: true, subtree: true});
document.addEventListener("keydown", event => {
  const handle = event.target.closest("[data-testid=slider]");
  const side = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!handle || !side) return;
  event.preventDefault();
  const {left, width, top, height} = handle.getBoundingClientRect();
  let clientX = left + width / 2;
  const mouse = (kind, target) => target.dispatchEvent(
    new MouseEvent(kind, {view: window, bubbles: true, clientX, clientY: top + height / 2}));
  mouse("mousedown", handle);
  clientX += side * handle.parentElement.clientWidth / 20;
  mouse("mousemove", window);
  mouse("mouseup", window);
});
"""


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


def ran(comparison: Comparison) -> str:
    """The plan that ran, and what it cost."""
    plan = comparison.plan
    work = None if len(plan.full_steps) == len(plan) else comparison.work
    return strip(plan, "what ran") + _faint(f"Ran: {_described(plan, work)}")


def wrong(message: str) -> str:
    """What is wrong with the settings."""
    return f'<p class="wrong" role="alert">{escape(message)}</p>'


def figures(made: Try) -> str:
    """Times and likeness, as HTML."""
    comparison = made.comparison
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
        f'<div class="figures"><table><caption>{caption}.</caption>'
        f"<tr>{head}</tr>{body}</table></div>"
    )


def _described(plan: Plan, work: float | None) -> str:
    said = f"{len(plan.full_steps)} of {len(plan)} steps in full"
    return said if work is None else f"{said}; {work:.0%} of the U-Net's work"


def _faint(text: str) -> str:
    return f'<p class="faint">{escape(text)}</p>'
