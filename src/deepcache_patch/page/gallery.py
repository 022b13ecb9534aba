"""The memory on the page: a table with a row for each try, and a plot of speed against likeness.
Made of gradio.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from typing import Any, Final

from PIL import Image

from ..compare.against import times_text
from .memory import Memory, Try

_HEADERS: Final = ["try", "picture", "speed", "PSNR", "settings"]
_THUMBNAIL: Final = 56


class Gallery:
    """The components that show a memory.

    Args:
        gr: The module gradio.
        memory: What has been tried.

    Attributes:
        table: One row for each try, the last one first.
        plot: One point for each try that is not identical to its plain picture.
        all: Both, in the order of `of`.
    """

    def __init__(self, gr: Any, memory: Memory) -> None:
        self._gr, self._memory = gr, memory
        with gr.Row():
            with gr.Column(scale=6, min_width=280):
                self.table = gr.Dataframe(
                    rows(memory),
                    headers=_HEADERS,
                    datatype=["number", "html", "str", "str", "str"],
                    column_widths=["8%", "16%", "15%", "16%", "45%"],
                    label="What has been tried: select a row to bring it back",
                    interactive=False,
                    wrap=True,
                    visible=len(memory) > 0,
                    max_height=420,
                    elem_id="tries",
                )
            with gr.Column(scale=4, min_width=280):
                self.plot = gr.ScatterPlot(
                    frame(memory),
                    x="speed",
                    y="PSNR",
                    x_title="speed of the denoising loop (×)",
                    y_title="PSNR (dB)",
                    tooltip="all",
                    height=320,
                    visible=len(memory) > 0,
                    label="Speed against likeness: drag over a point to bring it back",
                    elem_id="plot",
                )
        self.all = [self.table, self.plot]

    def of(self) -> list[Any]:
        """The updates of `all` for what the memory holds now."""
        there_is = len(self._memory) > 0
        return [
            self._gr.update(value=value, visible=there_is)
            for value in (rows(self._memory), frame(self._memory))
        ]


def rows(memory: Memory) -> list[list[Any]]:
    """The table: number, thumbnail, speedup, PSNR, and settings; the last try first."""
    return [
        [
            made.number,
            _thumbnail(made),
            times_text(made.speedup),
            made.trial.comparison.measures[0].text(),
            made.text,
        ]
        for made in reversed(list(memory))
    ]


def frame(memory: Memory) -> Any:
    """The points of the plot, as pandas has them; identical pictures have no place on its axis."""
    import pandas as pd  # gradio brings it

    points = [
        (made.speedup, made.psnr, made.settings["schedule"], made.number)
        for made in memory
        if made.psnr is not None
    ]
    columns = {"speed": float, "PSNR": float, "schedule": str, "try": int}
    # With types, for a plot that begins without a point: its axes would be lists of words.
    return pd.DataFrame(points, columns=list(columns)).astype(columns)


def _thumbnail(made: Try) -> str:
    small = made.trial.cached.convert("RGB")
    small.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL), Image.Resampling.LANCZOS)
    file = BytesIO()
    small.save(file, format="WEBP", quality=85)
    source = f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"
    name = escape(f"picture of try {made.number}")
    return f'<img src="{source}" alt="{name}" width="{_THUMBNAIL}">'
