"""What is learned of a generation is learned of one of the U-Net's calls, step after step."""

import pytest
import torch
from builders.kinds_of_calls import counted
from builders.learning import loaded

from deepcache_patch import DeepCacheHelper, DeepCacheWarning

STEPS = 10


def inputs(pipe, step):
    """The sample of a step, which does not depend on how the loop went."""
    generator = torch.Generator().manual_seed(step)
    size = pipe.unet.config.sample_size
    return torch.randn(1, pipe.unet.config.in_channels, size, size, generator=generator)


def prompts(pipe):
    """An unconditional and a conditional one."""
    generator = torch.Generator().manual_seed(99)
    width = pipe.unet.config.cross_attention_dim
    return {each: torch.randn(1, 7, width, generator=generator) for each in "uc"}


def learned(*steps, given=prompts):
    """The weights that are learned of a loop that calls the U-Net so in its steps."""
    pipe = loaded("sd")
    made, ran = given(pipe), []

    def run():
        pipe.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for step, (timestep, calls) in enumerate(
                zip(pipe.scheduler.timesteps, steps, strict=True)
            ):
                for each in calls:
                    pipe.unet(inputs(pipe, step), timestep, encoder_hidden_states=made[each])
        ran.append(counted(helper))

    with DeepCacheHelper(pipe) as helper:
        with pytest.warns(DeepCacheWarning, match="plans are not compared"):  # nothing is returned
            found = helper.calibrate(run, full_steps=5)
        assert ran[0] == (sum(map(len, steps)), 0)
    assert found.weights
    return dict(found.weights)


@pytest.fixture(scope="module")
def conditional():
    return learned(*["c"] * STEPS)


def test_guidance_that_begins_or_ends_midway_teaches_nothing_of_its_own(conditional):
    # From where the unconditional call came first it was the one that was studied, after steps of
    # the conditional one: what was learned was of no call.
    unconditional = learned(*["u"] * STEPS)
    assert unconditional != conditional
    for steps in (
        ["c"] * 4 + ["uc"] * 6,
        ["c"] * 4 + ["cu"] * 6,
        ["uc"] * 4 + ["c"] * 6,
        ["cu"] * 4 + ["c"] * 6,
        ["c"] * 2 + ["uc"] * 6 + ["c"] * 2,
        ["c", "uc"] * 5,
    ):
        assert learned(*steps) == conditional, steps
