"""Who takes part in the fidelity benchmark."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from builders.cases import CASES
from diffusers import DDIMScheduler, PNDMScheduler

from benchmarks.fidelity import contestants as field
from benchmarks.fidelity.contestants import (
    BY_DEFAULT,
    FAMILIES,
    RIVALS,
    SAMPLERS,
    SPANNING,
    contestants,
    default_helper,
    on_model,
)
from deepcache_patch import FULL


def taking_part(name, scheduler=None, families=FAMILIES, **options):
    pipe = SimpleNamespace(scheduler=scheduler or DDIMScheduler())
    return contestants(pipe, SAMPLERS[name], families, **options)


@pytest.mark.parametrize("spanning", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_two_have_the_same_name(name, spanning):
    names = [each.name for each in taking_part(name, spanning=spanning)]
    assert names[0] == "plain"
    assert len(set(names)) == len(names)


def test_every_family_but_the_curves_takes_part_by_default():
    assert set(BY_DEFAULT) <= set(FAMILIES)
    assert set(RIVALS) <= set(BY_DEFAULT)
    assert set(SPANNING) <= set(FAMILIES)
    families = {each.family for each in taking_part("dpm-25", families=BY_DEFAULT)}
    assert families == set(BY_DEFAULT)


@pytest.mark.parametrize(("name", "count"), [("ddim-50", 12), ("dpm-25", 3), ("euler-30", 3)])
def test_deepcache_takes_part_in_full_where_curves_are_drawn(name, count):
    everyone = taking_part(name, spanning=True)
    assert sum(each.family == "deepcache 0.1.1" for each in everyone) == count
    intervals = [
        each.settings["interval"] for each in taking_part(name) if each.family == "deepcache 0.1.1"
    ]
    assert intervals == [2, 3]


@pytest.mark.parametrize(
    ("name", "scheduler", "expected"),
    [
        ("ddim-50", DDIMScheduler(), [28, 27, 23, 22]),  # 27.8 and 22.7
        ("dpm-25", DDIMScheduler(), [14, 13, 12, 11]),  # 13.9 and 11.4
        # 28.3 and 23.2 calls, of which it makes one more than it has steps.
        ("pndm-50", PNDMScheduler(skip_prk_steps=True), [28, 27, 23, 22]),
    ],
)
def test_fewer_steps_stand_on_both_sides_of_equal_work(name, scheduler, expected):
    everyone = taking_part(name, scheduler)
    assert [each.steps for each in everyone if each.family == "fewer steps"] == expected


def test_fewer_steps_span_the_range():
    everyone = taking_part("ddim-50", spanning=True)
    assert [each.steps for each in everyone if each.family == "fewer steps"] == [30, 25, 19, 14]


@pytest.mark.parametrize("family", [*RIVALS, "default", "auto"])
def test_a_budget_is_kept_at_both_speeds(family):
    own = [each for each in taking_part("dpm-25") if each.family == family]
    assert [each.settings["speed"] for each in own] == [1.8, 2.2]
    counts = [each.settings.get("full_steps") or len(each.settings["plan"]) for each in own]
    assert counts == [13, 11]


def test_the_default_has_as_many_full_steps_as_it_is_given():
    helper = default_helper(CASES["sd"].load(), 10, 25)
    assert helper.schedule.plan(25).count(FULL) == 10


def test_a_fitted_rival_runs_with_the_threshold_that_keeps_its_budget():
    case = CASES["sd"]
    pipe = case.load()
    easycache = next(
        each
        for each in contestants(pipe, SAMPLERS["ddim-20"], ["easycache"])
        if each.settings.get("speed") == 2.2
    )
    calls = []

    def run():
        case.run(pipe, steps=20)
        calls.append(1)

    easycache.fit(run)
    assert 1 <= len(calls) <= 9
    with easycache.around(), field.work.counting(pipe.unet) as deep:
        run()
    assert deep.calls <= easycache.settings["full_steps"] == 9
    assert easycache.settings["threshold"] > 0


@pytest.mark.parametrize("family", ["auto", "calibrated"])
def test_what_learns_has_as_many_full_steps_as_its_budget_allows(family):
    case = CASES["sd"]
    pipe = case.load()
    _, slower, faster = contestants(pipe, SAMPLERS["ddim-20"], [family])
    faster.fit(lambda: case.run(pipe, steps=20).numpy())
    with faster.around(), field.work.counting(pipe.unet) as deep:
        case.run(pipe, steps=20)
    assert deep.calls == faster.settings["full_steps"] == 9
    assert slower.settings["full_steps"] == 11


def test_the_plain_pipeline_is_always_there():
    pipe = SimpleNamespace(scheduler=DDIMScheduler())
    chosen = contestants(pipe, SAMPLERS["ddim-50"], ["centred"])
    assert [each.family for each in chosen] == ["plain", "centred"]


def test_a_sampler_has_its_own_model_unless_another_is_named():
    assert on_model(None, None) == SAMPLERS
    assert on_model(["ddpm-100", "dpm-25"], None) == {
        "ddpm-100": SAMPLERS["ddpm-100"],
        "dpm-25": SAMPLERS["dpm-25"],
    }
    assert on_model(["dpm-25"], "emoji") == {"dpm-25": replace(SAMPLERS["dpm-25"], model="emoji")}


def test_a_model_goes_with_all_samplers_of_models_with_prompts():
    assert list(on_model(None, "emoji")) == [name for name in SAMPLERS if name != "ddpm-100"]
    assert {sampler.model for sampler in on_model(None, "emoji").values()} == {"emoji"}
    assert list(on_model(None, "shapes-ddpm")) == ["ddpm-100"]


@pytest.mark.parametrize(("name", "model"), [("ddpm-100", "emoji"), ("dpm-25", "shapes-ddpm")])
def test_a_model_without_prompts_and_one_with_them_do_not_stand_for_each_other(name, model):
    with pytest.raises(ValueError, match=f"--sampler {name} --model {model}: .* takes no prompt"):
        on_model([name], model)
