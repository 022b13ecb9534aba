"""Figures of pictures that each have a plan of their own."""

import numpy as np
import pytest

from benchmarks.fidelity import per_picture


def test_what_each_picture_got_is_counted():
    plain = np.zeros((2, 4, 4, 3))
    plans = [["full", -1, -1, "full"], ["full", -1, 0, "full"]]
    found = per_picture.figures(plain, [plain[0] + 0.1, plain[1] + 0.01], plans)
    assert (found["full_steps"], found["full_steps_least"], found["full_steps_most"]) == (2, 2, 2)
    assert found["shallow"] == {"-1": 1.5, "0": 0.5}
    assert found["work"] == pytest.approx((2 + 2.079) / 8, abs=1e-3)
    assert found["psnr_of_each"] == pytest.approx([20, 40])
    assert (found["psnr"], found["worst_tenth"]) == pytest.approx((30, 20))


def test_a_picture_that_is_the_same_has_no_psnr():
    plain = np.zeros((2, 4, 4, 3))
    found = per_picture.figures(plain, list(plain), [["full"]] * 2)
    assert found["psnr_of_each"] == [None, None]
    assert (found["psnr"], found["worst_tenth"]) == (None, None)


def test_equal_work_lies_on_the_line_between_two_plans():
    rows = [{"full_steps": 11, "psnr": 46.0}, {"full_steps": 10, "psnr": 42.0}]
    assert per_picture._between(rows, 10.25, "psnr") == 43.0


def test_the_results_say_what_made_them():
    for report in per_picture.results().values():
        assert report["command"].startswith("python -m benchmarks.fidelity.per_picture --")
        assert " --sampler " in report["command"]
        assert report["images"] >= 16
