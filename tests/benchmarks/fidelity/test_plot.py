"""The plot: every family of a budget has a style, and the file is small enough for the README."""

import pytest
from builders.marks import mostly_slow
from PIL import Image

from benchmarks.fidelity.contestants import BY_DEFAULT, SAMPLERS

pytest.importorskip("matplotlib")

from benchmarks.fidelity import plot


def test_every_family_of_a_budget_has_a_style_of_its_own():
    assert list(plot.STYLES) == [family for family in BY_DEFAULT if family != "plain"]
    assert len(set(plot.STYLES.values())) == len(plot.STYLES)


@pytest.mark.parametrize("count", mostly_slow([1, len(SAMPLERS)], 1))
def test_all_panels_make_a_small_picture(tmp_path, count):
    rows = [
        {"family": family, "work_sd15": 1 / speed, "psnr": 50.0 / speed + place}
        for place, family in enumerate(plot.STYLES)
        for speed in (1.5, 2.0, 3.0, 5.0)
    ]
    rows.append({"family": "plain", "work_sd15": 1.0, "psnr": None})
    names = list(SAMPLERS)[:count]
    reports = {name: {"title": SAMPLERS[name].title, "rows": rows} for name in names}
    plot.draw(reports, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == 1350
    assert (tmp_path / "plot.png").stat().st_size < 300_000
