"""Draws the curves of the fidelity benchmark, PSNR against speed, a panel for each sampler.

Reads what `run` wrote and writes ``docs/fidelity.png``. Every contestant is a
dot; a family's line joins those that no other of it beats. Run from the project's root:
``python -m benchmarks.fidelity.plot``.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

from benchmarks.fidelity.curves import RESULTS, TITLES, envelope, points, results
from benchmarks.provenance import ROOT

mpl.use("Agg")  # before pyplot: no window is opened, none need be there
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

PLOT = ROOT / "docs" / "fidelity.png"
COLUMNS = 3

#: Colours that stay apart for colour-blind eyes (Okabe and Ito), and the marker of each family.
STYLES = {
    "fewer steps": ("#000000", "s"),
    "deepcache 0.1.1": ("#999999", "x"),
    "default": ("#0072b2", "^"),
    "auto": ("#56b4e9", "*"),
    "calibrated": ("#d55e00", "*"),
    "spectrum": ("#009e73", "D"),
    "zeus": ("#f0e442", "v"),
    "adaptivediffusion": ("#e69f00", "P"),
    "sada": ("#cc79a7", "X"),
    "easycache": ("#b8860b", "<"),
    "output reuse": ("#999999", "o"),
}
SPEEDS = (1, 1.5, 1.8, 2.2, 3, 4, 5, 7, 10)


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=PLOT)
    options = parser.parse_args()
    reports = results(options.results)
    if not reports:
        parser.error(f"--results: nothing was measured in {options.results}")
    draw(reports, options.output)


def draw(reports: dict[str, Any], output: Path) -> None:
    """Write one picture with a panel for each of the reports."""
    rows = -(-len(reports) // COLUMNS)
    with plt.rc_context({"font.size": 8, "axes.titlesize": 9}):
        figure, grid = plt.subplots(
            rows,
            COLUMNS,
            figsize=(9, 2.6 * rows + 0.7),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for axes in grid.flat[len(reports) :]:
            axes.set_visible(False)
        for axes, report in zip(grid.flat, reports.values(), strict=False):
            _panel(axes, report)
        figure.supxlabel("speed by the work of SD 1.5; small: another of its kind is better")
        figure.supylabel("PSNR against the plain pictures, dB")
        lines = {
            str(line.get_label()): line
            for axes in grid.flat
            for line in axes.get_lines()
            if line.get_label() in STYLES
        }
        families = [family for family in STYLES if family in lines]
        handles, names = [lines[each] for each in families], [TITLES[each] for each in families]
        figure.legend(handles, names, loc="outside upper center", ncols=5, frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=150)
        plt.close(figure)
    # A palette is enough for lines, and a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256).save(output, optimize=True)


def _panel(axes: Axes, report: dict[str, Any]) -> None:
    for family, (colour, marker) in STYLES.items():
        dots = points(report["rows"], family)
        if not dots:
            continue
        thick = family in ("default", "auto", "calibrated")
        axes.plot(
            *zip(*envelope(report["rows"], family), strict=True),
            color=colour,
            marker=marker,
            markersize=7 if thick else 4,
            linewidth=2.5 if thick else 1,
            zorder=3 if thick else 2,
            label=family,
        )
        speeds, decibels = zip(*dots, strict=True)
        axes.scatter(speeds, decibels, color=colour, marker=marker, s=9, alpha=0.5)
    axes.set_title(report["title"])
    axes.tick_params(labelbottom=True)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(SPEEDS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}×")
    axes.grid(alpha=0.3, linewidth=0.5)


if __name__ == "__main__":
    main()
