"""The history on the page: a table with a row for each try, and a plot of speed against likeness
with a point for each. Both bring a try back. Made of gradio.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final

from ..compare.contestant import times_text
from ..compare.pages import picture_uri
from ..measuring.media import small
from ..sweep.curve import asides, beside, share, ticks
from ..sweep.knee import BY_WORK, MEASURED
from .history import History, Try

_HEADERS: Final = ["try", "picture", "speed", "PSNR", "verdict", "settings"]
_THUMBNAIL: Final = 56

#: Points nearer than these shares of the plot's width and height would cover each other's number.
_NEAR: Final = (0.07, 0.11)

#: A point is told as gradio tells of a row of its tables. Its own plots know no click.
_CHOOSE: Final = """
element.addEventListener("click", event => {
  const point = event.target.closest("[data-try]");
  if (!point) return;
  event.preventDefault();
  trigger("select", {index: null, value: null, row_value: [point.dataset.try]});
});
"""


class Gallery:
    """The components that show a history.

    Args:
        gr: The module gradio.
        history: What has been tried.

    Attributes:
        table: One row for each try, the last one first.
        plot: One point for each try that is not identical to its plain picture.
        all: Both, in the order of `of`.
    """

    def __init__(self, gr: Any, history: History) -> None:
        self._gr, self._history = gr, history
        with gr.Row():
            with gr.Column(scale=6, min_width=280):
                self.table = gr.Dataframe(
                    rows(history),
                    headers=_HEADERS,
                    datatype=["number", "html", "str", "str", "str", "str"],
                    column_widths=["7%", "16%", "16%", "15%", "18%", "28%"],
                    label="What has been tried: select a row to bring it back",
                    interactive=False,
                    wrap=True,
                    visible=len(history) > 0,
                    max_height=420,
                    elem_id="tries",
                )
            with gr.Column(scale=4, min_width=280):
                self.plot = gr.HTML(
                    plot(history),
                    js_on_load=_CHOOSE,
                    visible=len(history) > 0,
                    label="Speed against likeness: select a point to bring it back",
                    show_label=True,
                    container=True,
                    padding=True,
                    elem_id="plot",
                )
        self.all = [self.table, self.plot]

    def of(self) -> list[Any]:
        """The updates of `all` for what the history holds now."""
        there_is = len(self._history) > 0
        return [
            self._gr.update(value=value, visible=there_is)
            for value in (rows(self._history), plot(self._history))
        ]


def rows(history: History) -> list[list[Any]]:
    """The table: number, thumbnail, speed, PSNR, verdict, and settings; the last try first."""
    return [
        [
            made.number,
            _thumbnail(made),
            _speed(made),
            made.comparison.measures[0].text(),
            made.comparison.looks,
            made.text,
        ]
        for made in reversed(list(history))
    ]


def plot(history: History) -> str:
    """The points as HTML; identical pictures have no place on the axis.

    To the right is the speed by work, or the measured one where the work of a try is not known.
    """
    placed = [(made, made.psnr) for made in history if made.psnr is not None]
    works = [made.comparison.work_speedup for made, _ in placed]
    by_work = [most for most in works if most is not None]
    # As in the figure of a sweep: measured speeds vary from run to run.
    is_by_work = len(by_work) == len(placed)
    name = BY_WORK if is_by_work else MEASURED
    speeds = by_work if is_by_work else [made.speedup for made, _ in placed]
    points = [(made, speed, psnr) for (made, psnr), speed in zip(placed, speeds, strict=True)]
    speeds, likeness = speeds or [1.0], [psnr for _, psnr in placed] or [0.0]
    across, upwards = ticks(min(speeds), max(speeds)), ticks(min(likeness), max(likeness))

    def from_left(value: float) -> str:
        return f"{100 * share(value, across):.2f}%"

    def from_top(value: float) -> str:
        return f"{100 - 100 * share(value, upwards):.2f}%"

    drawn = ""
    for tick in across:
        x = from_left(tick)
        drawn += f'<line x1="{x}" x2="{x}" y2="100%"/><text x="{x}" y="100%">{tick:g}×</text>'
    for tick in upwards:
        y = from_top(tick)
        drawn += f'<line x2="100%" y1="{y}" y2="{y}"/><text class="y" y="{y}">{tick:g}</text>'
    latest_first = points[::-1]  # the latest keeps its place, and is drawn last
    places = [(share(speed, across), share(psnr, upwards)) for _, speed, psnr in latest_first]
    for (made, speed, psnr), aside in zip(points, asides(places, _NEAR)[::-1], strict=True):
        schedule = escape(made.settings["schedule"])
        said = f"try {made.number}: {name} {times_text(speed)}, {psnr:.2f} dB, {schedule}"
        x, y = f"{100 * beside(share(speed, across), aside):.2f}%", from_top(psnr)
        drawn += (
            f'<line x1="{from_left(speed)}" x2="{x}" y1="{y}" y2="{y}"/>'
            f'<a href="#plot" data-try="{made.number}" aria-label="{said}"><title>{said}</title>'
            f'<circle cx="{x}" cy="{y}" r="11"/><text x="{x}" y="{y}">{made.number}</text></a>'
        )
    return (
        f'<p class="faint">PSNR, dB</p><svg role="group" aria-label="a point for each try">{drawn}'
        f'</svg><p class="faint">{name}</p>'
    )


def _speed(made: Try) -> str:
    """As measured, and the most that the work allows."""
    most = made.comparison.work_speedup
    return times_text(made.speedup) + ("" if most is None else f" (at most {times_text(most)})")


def _thumbnail(made: Try) -> str:
    source = picture_uri(small(made.pictures[1], 2 * _THUMBNAIL), lossless=False)
    name = escape(f"picture of try {made.number}")
    return f'<img src="{source}" alt="{name}" width="{_THUMBNAIL}">'
