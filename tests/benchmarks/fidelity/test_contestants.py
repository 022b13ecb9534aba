"""Who takes part in the fidelity benchmark."""

from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, PNDMScheduler

from benchmarks.fidelity.contestants import FAMILIES, SAMPLERS, contestants


def taking_part(name, scheduler=None):
    pipe = SimpleNamespace(scheduler=scheduler or DDIMScheduler())
    return contestants(pipe, SAMPLERS[name], FAMILIES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_two_have_the_same_name(name):
    names = [each.name for each in taking_part(name)]
    assert names[0] == "plain"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "count"), [("ddim-50", 12), ("dpm-25", 3), ("euler-30", 3)])
def test_deepcache_takes_part_in_full_on_the_main_samplers(name, count):
    assert sum(each.family == "deepcache 0.1.1" for each in taking_part(name)) == count


def test_fewer_steps_span_the_range():
    steps = [each.steps for each in taking_part("ddim-50") if each.family == "fewer steps"]
    assert steps == [30, 25, 19, 14]


@pytest.mark.parametrize(
    ("name", "scheduler", "full_steps"),
    [
        ("ddim-50", DDIMScheduler(), [25, 17, 10]),
        # Of 51 steps, for PNDM repeats one; and only at one interval.
        ("pndm-50", PNDMScheduler(skip_prk_steps=True), [17]),
    ],
)
def test_growing_has_as_many_full_steps_as_uniform(name, scheduler, full_steps):
    growing = [each for each in taking_part(name, scheduler) if each.family == "growing"]
    assert [each.settings["full_steps"] for each in growing] == full_steps


def test_the_plain_pipeline_is_always_there():
    pipe = SimpleNamespace(scheduler=DDIMScheduler())
    chosen = contestants(pipe, SAMPLERS["ddim-50"], ["centred"])
    assert [each.family for each in chosen] == ["plain", "centred"]
