"""The papers' names for samplers, and the words for settings."""

from types import SimpleNamespace

import pytest
from builders.marks import mostly_slow
from diffusers import DDIMScheduler

from benchmarks.published.contestants import OURS, helper_settings
from benchmarks.published.samplers import ALIASES, require_sampler, use_sampler
from deepcache_patch import Adaptive, Auto, Uniform
from deepcache_patch.cli.names import SCHEDULERS


@pytest.mark.parametrize(
    "name", mostly_slow([*ALIASES, *SCHEDULERS, *SCHEDULERS.values()], ALIASES)
)
def test_every_name_is_a_scheduler(name):
    require_sampler(name, karras=False)


@pytest.mark.parametrize("name", ["dpmpp-2m", "DPMPP_2M"])
def test_a_sampler_of_a_paper_keeps_the_settings_of_the_model(name):
    own = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    pipe = SimpleNamespace(scheduler=own)
    use_sampler(pipe, name, karras=True)
    config = pipe.scheduler.config
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert (config.timestep_spacing, config.prediction_type) == ("trailing", "v_prediction")
    assert (config.algorithm_type, config.solver_order) == ("dpmsolver++", 2)
    assert config.use_karras_sigmas is True


def test_settings_are_written_with_commas():
    assert helper_settings("interval=3, replay=reuse") == {"interval": 3, "replay": "reuse"}
    assert helper_settings("schedule=uniform,branch=1,interval=2") == {"schedule": Uniform(2, 1)}
    adaptive = helper_settings("schedule=adaptive,tolerance=0.2,replay=reuse")
    assert adaptive["replay"] == "reuse"
    assert isinstance(adaptive["schedule"], Adaptive)
    assert adaptive["schedule"].tolerance == 0.2
    auto = helper_settings("interval=4,schedule=auto")["schedule"]
    assert isinstance(auto, Auto)
    assert auto.interval == 4


def test_the_default_settings_are_understood():
    assert len([helper_settings(text) for text in OURS]) == len(set(OURS))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write NAME=VALUE"),
        ("interval=3,interval=5", "each name once"),
        ("pipe=1", "'pipe' is none of"),
        ("schedule=uniform,power=2", "power is a setting of centred, not of uniform"),
        ("schedule=uniform,interval=1.5", "interval must be an integer"),
    ],
    ids=["empty", "twice", "pipe", "another's", "half"],
)
def test_settings_that_make_no_sense_are_refused(text, said):
    with pytest.raises(ValueError, match=said) as refused:
        helper_settings(text)
    assert str(refused.value).startswith(f"--ours {text!r}: ")
