"""What the page remembers, without a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from deepcache_patch import Plan
from deepcache_patch.compare.outcome import Comparison
from deepcache_patch.measuring.generation import Timing
from deepcache_patch.page.history import MOST, History


def comparison(*, seconds: float = 4.0, psnr: float = 31.0) -> Comparison:
    """One whose plain half took ten seconds."""
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    about = {
        "steps": 6,
        "scheduler": "DDIM",
        "schedule": "Uniform(interval=3, branch=0)",
        "interval": 3,
        "branch": 0,
        "replay": "Extrapolate()",
        "model": "a model",
        "call": {},
        "seeds": [0],
    }
    return Comparison(
        plain=(picture,),
        cached=(picture,),
        plain_times=(Timing(10.0, 11.0, 6),),
        times=(Timing(seconds, seconds + 1, 6),),
        psnr=(psnr,),
        ssim=(1.0,),
        full_calls=2,
        shallow_calls=4,
        cache_nbytes=0,
        about=about,
        plans={"unet": Plan(["full", 0, 0] * 2)},
    )


def settings(**changed: Any) -> dict[str, Any]:
    return {"prompt": "a fox", "seed": 7, "interval": 3, **changed}


def test_tries_are_counted_from_one_and_found_by_their_number() -> None:
    history = History()
    assert (len(history), list(history), history.find(1), history.find(None)) == (0, [], None, None)
    first, second = (
        history.add(settings(interval=each), comparison(), kept=False) for each in (3, 5)
    )
    assert [each.number for each in history] == [1, 2]
    assert history.find(1) is first
    assert history.find(2) is second
    assert second.settings == settings(interval=5)


def test_a_try_says_its_settings_prompt_seed_speed_and_likeness() -> None:
    history = History()
    made = history.add(settings(), comparison(seconds=3.0, psnr=31.2345), kept=False)
    assert made.text == "6 steps · DDIM · interval 3, branch 0 · seed 7 · a fox"
    assert (made.speedup, made.psnr) == (3.33, 31.23)
    assert history.add(settings(), comparison(psnr=float("inf")), kept=False).psnr is None
    without = history.add({"seed": 7}, comparison(), kept=False)
    assert without.text == "6 steps · DDIM · interval 3, branch 0 · seed 7"


def test_the_oldest_are_forgotten_and_numbers_go_on() -> None:
    history = History()
    for _ in range(MOST + 1):
        history.add(settings(), comparison(), kept=False)
    assert [each.number for each in history] == [*range(2, MOST + 2)]
    assert history.find(1) is None


def test_settings_are_a_copy() -> None:
    given = settings()
    made = History().add(given, comparison(), kept=False)
    given["interval"] = 9
    assert made.settings["interval"] == 3


def test_a_try_knows_the_settings_that_it_was_made_with() -> None:
    made = History().add(settings(), comparison(), kept=False)
    assert made.was_made_with(settings())
    assert made.was_made_with(settings(seed=-1))  # it was drawn
    assert not made.was_made_with(settings(seed=8))
    assert not made.was_made_with(settings(interval=5))
    assert not made.was_made_with(settings(seed=-1, interval=5))
