"""What came of a try, on the page: both pictures, their difference, the figures, the settings as
Python, and files to download. Made of gradio.
"""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock
from typing import Any, Final

from ..compare.grid import DIFFERENCE_FACTOR, difference
from ..compare.script import python_of
from .history import Try
from .markup import figures

#: Of so many tries the files are kept, those that were shown last.
_MOST_FILES: Final = 8


class ResultView:
    """The components that show a try.

    Args:
        gr: The module gradio.

    Attributes:
        pictures: The plain picture and the one with the helper, under a slider.
        all: The components, in the order of `of`.
    """

    def __init__(self, gr: Any) -> None:
        self._gr = gr
        self._folder = TemporaryDirectory(prefix="deepcache-patch-")
        self._kept: list[Path] = []  # the one that was shown last at the end
        self._saving = Lock()  # several tabs may show tries at once
        with gr.Tab("Both pictures"):
            self.pictures = gr.ImageSlider(
                label="plain (left) and helper (right)",
                format="png",
                type="pil",
                interactive=False,
                elem_id="pictures",
            )
        with gr.Tab("Difference"):
            self.residue = gr.Image(
                label="difference, amplified",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="difference",
            )
            self.factor = gr.Slider(1, 64, value=DIFFERENCE_FACTOR, step=1, label="Amplified by")
        self._told = gr.HTML(elem_id="figures")
        with gr.Row():
            names = ("Plain picture", "Helper picture", "Report")
            self._files = [
                gr.DownloadButton(f"⬇ {name}", size="sm", min_width=100, interactive=False)
                for name in names
            ]
        with gr.Accordion("These settings as Python", open=False):
            self._code = gr.Code(
                language="python", interactive=False, show_label=False, elem_id="python"
            )
        self.all = [
            *(self.pictures, self.residue, self.factor, self._told, self._code),
            *self._files,
        ]

    def of(self, made: Try) -> list[Any]:
        """The updates of `all` for a try."""
        comparison = made.comparison
        files = [self._gr.update(value=str(file), interactive=True) for file in self._saved(made)]
        return [
            made.pictures,
            difference(*made.pictures),
            DIFFERENCE_FACTOR,
            figures(made),
            python_of(comparison.about, plan=comparison.plan),
            *files,
        ]

    def close(self) -> None:
        """Deletes the files."""
        self._folder.cleanup()

    def _saved(self, made: Try) -> list[Path]:
        """The files of a try: written beside, then renamed, and older ones are deleted."""
        folder, (plain, cached) = Path(self._folder.name) / str(made.number), made.pictures
        contents = {"plain.png": plain, "helper.png": cached, "comparison.html": made.comparison}
        with self._saving:
            if folder not in self._kept:
                beside = Path(mkdtemp(dir=self._folder.name))
                for name, content in contents.items():
                    content.save(beside / name)
                beside.rename(folder)
            self._kept = [*(each for each in self._kept if each != folder), folder]
            for old in self._kept[:-_MOST_FILES]:
                rmtree(old)
            del self._kept[:-_MOST_FILES]
        return [folder / name for name in contents]
