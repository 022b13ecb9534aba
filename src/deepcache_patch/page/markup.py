"""What the page shows that is no component of gradio: the strip of a plan, the figures of a
trial, and their style.
"""

from __future__ import annotations

from html import escape
from math import isinf
from typing import Final

from ..schedules.plans import FULL, Plan
from .trial import Trial

CSS: Final = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 8px !important; }
  .figures table { font-size: var(--text-sm); }
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
.wrong { color: var(--error-text-color); }
.faint, .figures caption { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
.figures caption { text-align: left; padding: 0; }
"""

#: gradio's handle between two pictures knows the mouse only: the arrow keys become moves of it.
KEYS: Final = """
new MutationObserver(() => {
  for (const handle of document.querySelectorAll("[data-testid=slider]:not([tabindex])")) {
    handle.tabIndex = 0;
    handle.role = "slider";
    handle.ariaLabel = "where the plain picture ends";
  }
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


def strip(plan: Plan) -> str:
    """The plan as HTML: a mark for each step, dark where it runs in full."""
    several = len(plan.branches) > 1
    signs = (
        '<i class="full"></i>' if entry == FULL else f"<i>{entry if several else ''}</i>"
        for entry in plan
    )
    label = escape(f"plan: {plan}")
    return f'<div class="strip" role="img" aria-label="{label}">{"".join(signs)}</div>'


def figures(trial: Trial) -> str:
    """Times, likeness and the plan that ran, as HTML."""
    plain, cached = trial.plain_time, trial.cached_time
    call = plain.call_seconds / cached.call_seconds
    likeness = "identical" if isinf(trial.psnr) else f"{trial.psnr:.2f} dB"
    rows = [
        ("denoising loop", _seconds(plain.loop_seconds), _seconds(cached.loop_seconds),
         f"{trial.speedup:.2f}×"),
        ("whole call", _seconds(plain.call_seconds), _seconds(cached.call_seconds), f"{call:.2f}×"),
        ("full calls", str(plain.calls), str(trial.full_calls), ""),
        ("shallow calls", "0", str(trial.shallow_calls), ""),
        ("PSNR", "", likeness, ""),
        ("SSIM", "", f"{trial.ssim:.4f}", ""),
    ]  # fmt: skip
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    head = "<tr><th></th><th>plain</th><th>DeepCache</th><th>speedup</th></tr>"
    before = "<caption>The plain picture is the one from before.</caption>" if trial.kept else ""
    return f'{strip(trial.plan)}<div class="figures"><table>{before}{head}{body}</table></div>'


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
