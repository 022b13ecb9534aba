"""Traps of what writes, or adds, into the features: FreeU, ControlNets, T2I-Adapters.

Each was met by running a real pipeline. A ControlNet that is cut is tested in `test_controlnet`.
"""

import pytest
import torch
from builders.kinds_of_calls import (
    TWICE,
    assert_exact,
    calls_of,
    copied,
    counted,
    kinds_of,
    kinds_of_calls,
)
from builders.unets import inputs2d_condition
from zoo import CASES

from deepcache_patch import (
    DeepCacheHelper,
    Uniform,
)
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.errors import ChangedResidualsError

# --- what writes, or adds, into the features ----------------------------------------------------


@pytest.mark.parametrize("branch", [4, 5])
def test_trap_freeu(branch):
    # FreeU scales the hidden states in place: what was recorded would be scaled already, and what
    # is replayed again at each replay.
    pipe = CASES["sd"].load()
    arguments = inputs2d_condition()
    with torch.no_grad():
        without = pipe.unet(**arguments).sample
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
        with DeepCacheHelper(pipe, schedule=Uniform(3, branch=branch), replay="reuse") as helper:
            timesteps = torch.tensor([500, 500, 500, 1])[:3]
            outputs = [pipe.unet(**arguments | {"timestep": t}).sample for t in timesteps]
    assert counted(helper) == (1, 2)
    assert not torch.equal(outputs[0], without)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


class Controlled:
    """A call of the ControlNet, then one of the U-Net, by hand; each with its own prompt."""

    def __init__(self, pipe):
        self.pipe = pipe

    def residuals(self, timestep, *, seed=0, **options):
        arguments = self.inputs(timestep, seed)
        hint = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        return self.pipe.controlnet(**arguments, controlnet_cond=hint, return_dict=False, **options)

    def step(self, timestep, residuals, *, seed=0):
        down, mid = residuals
        return self.pipe.unet(
            **self.inputs(timestep, seed),
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    def inputs(self, timestep, seed):
        # The very same tensors each time: whose call it is, is told from the prompt's memory.
        made = vars(self).setdefault(f"_made_{seed}", inputs2d_condition(seed=seed))
        return made | {"timestep": timestep}


@pytest.mark.parametrize("branch", range(9))
def test_trap_controlnet(branch):
    # The residual for the middle is added behind the middle block. There the replayed feature
    # stands, which has it already: shapes clash, or agree by accident.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        whole = by_hand.residuals(TWICE[0])
        plain = by_hand.step(TWICE[0], whole)
    # First of a ControlNet that is cut along, then of one that is not.
    for residuals in (by_hand.residuals, lambda _timestep: whole):
        with DeepCacheHelper(pipe, schedule=Uniform(branch=branch)) as helper, torch.no_grad():
            full, shallow = (by_hand.step(t, residuals(t)) for t in TWICE)
        assert counted(helper) == (1, 1)
        assert torch.equal(full, plain)
        assert torch.equal(shallow, plain)


def test_trap_controlnet_guess_mode():
    # There the scale of a residual depends on how many there are: a cut ControlNet would give
    # others. It runs whole.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        plain = by_hand.residuals(TWICE[0], guess_mode=True)
    with DeepCacheHelper(pipe, schedule=Uniform(branch=2)) as helper, torch.no_grad():
        by_hand.step(TWICE[0], by_hand.residuals(TWICE[0], guess_mode=True))
        down, mid = by_hand.residuals(TWICE[1], guess_mode=True)
        assert all(torch.equal(*pair) for pair in zip(down, plain[0], strict=True))
        assert torch.equal(mid, plain[1])
        by_hand.step(TWICE[1], (down, mid))
    assert counted(helper) == (1, 1)
    with DeepCacheHelper(pipe, schedule=Uniform()), kinds_of_calls(pipe.controlnet) as kinds:
        assert kinds_of(case, pipe, guess_mode=True) == "FssFs"
    assert "".join(kinds) == "FFFFF"
    with (
        DeepCacheHelper(pipe, schedule=Uniform()),
        kinds_of_calls(pipe.controlnet) as kinds,
    ):  # without, it is cut
        assert kinds_of(case, pipe) == "FssFs"
    assert "".join(kinds) == "FssFs"


def test_trap_controlnet_cut_unet_full():
    # The U-Net zips its skips with the residuals it is given: missing ones are never missed. Here
    # the first of two calls of a step is left out, so the second is foreseen as the first, shallow,
    # and turns out to be one that has to run in full.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        plain = by_hand.step(TWICE[1], by_hand.residuals(TWICE[1], seed=1), seed=1)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper, torch.no_grad():
        for seed in (0, 1):
            by_hand.step(TWICE[0], by_hand.residuals(TWICE[0], seed=seed), seed=seed)
        down, mid = by_hand.residuals(TWICE[1], seed=1)
        assert len(down) == 1
        assert torch.equal(by_hand.step(TWICE[1], (down, mid), seed=1), plain)
    assert counted(helper) == (3, 0)


@pytest.mark.parametrize("counts", [(2, 1, 2, 1, 2), (1, 1, 1, 1, 2)])
def test_trap_controlnet_cut_unet_full_in_the_last_step(counts):
    # After as many calls as the step before had, the last step let go of everything. One more ran
    # in full, with the few residuals that a cut ControlNet had given: shapes clashed in diffusers.
    pipe = CASES["sd-controlnet"].load()
    by_hand, timesteps = Controlled(pipe), torch.arange(len(counts), 0, -1) * 100
    with torch.no_grad():
        plain = by_hand.step(timesteps[-1], by_hand.residuals(timesteps[-1]), seed=1)
    with DeepCacheHelper(pipe, schedule=Uniform(10)) as helper, torch.no_grad():
        for timestep, count in zip(timesteps, counts, strict=True):
            residuals = by_hand.residuals(timestep)
            outputs = [by_hand.step(timestep, residuals, seed=seed) for seed in range(count)]
    assert torch.equal(outputs[1], plain)
    assert helper.stats.shallow_calls >= len(counts) - 1


def test_trap_controlnet_cut_unet_full_with_changed_residuals():
    # As above, but what was done to the residuals cannot be done to new ones.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform()), torch.no_grad():
        for seed in (0, 1):
            by_hand.step(TWICE[0], by_hand.residuals(TWICE[0], seed=seed), seed=seed)
        down, mid = by_hand.residuals(TWICE[1], seed=1)
        with pytest.raises(ChangedResidualsError, match="ControlNetModel"):
            by_hand.step(TWICE[1], ([0.5 * each for each in down], mid), seed=1)


@pytest.mark.parametrize("between", ["paused", "reset", "set"])
def test_trap_controlnet_cut_unet_full_by_order(between):
    # As above, but it is the caller who wants a full call, after the ControlNet was cut.
    pipe = CASES["sd-controlnet"].load()
    by_hand = Controlled(pipe)
    with torch.no_grad():
        plain = by_hand.step(TWICE[1], by_hand.residuals(TWICE[1]))
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper, torch.no_grad():
        by_hand.step(TWICE[0], by_hand.residuals(TWICE[0]))
        down, mid = by_hand.residuals(TWICE[1])
        assert len(down) == 1
        if between == "paused":
            with helper.paused():
                output = by_hand.step(TWICE[1], (down, mid))
        else:
            getattr(helper, between)(**{"interval": 2} if between == "set" else {})
            output = by_hand.step(TWICE[1], (down, mid))
    assert torch.equal(output, plain)


@pytest.mark.parametrize("name", ["sd-adapter", "sdxl-adapter"])
def test_trap_t2i_adapter(name):
    # The U-Net pops the adapter's features off a list as its down blocks run. One that a skipped
    # block leaves there could be added to the replayed feature, in place.
    case = CASES[name]
    pipe = case.load()
    first = calls_of(pipe.unet, lambda: case.run(pipe, steps=1))[0]
    features = first["down_intrablock_additional_residuals"]
    assert len(features) == {"sd-adapter": 3, "sdxl-adapter": 4}[name]
    for branch in dissect(pipe.unet).branches:
        with DeepCacheHelper(pipe, schedule=Uniform(branch=branch)) as helper, torch.no_grad():
            outputs = []
            for timestep in TWICE:
                arguments = {key: copied(value) for key, value in first.items()}
                outputs.append(pipe.unet(**arguments | {"timestep": timestep})[0])
        assert counted(helper) == (1, 1)
        assert torch.equal(*outputs), branch
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert kinds_of(case, pipe) == "FssFs"


# --- what else looks at, or changes, the parts of a pipeline ------------------------------------


def test_trap_hunyuan_controlnet():
    # Its blocks pop the residuals off their list, and what is left at the end raises.
    case = CASES["hunyuandit-controlnet"]
    pipe = case.load()
    first = calls_of(pipe.transformer, lambda: case.run(pipe, steps=1))[0]
    assert len(first["controlnet_block_samples"]) == dissect(pipe.transformer).num_skips == 4
    assert_exact(case, pipe, steps=1)
    for branch in range(4):
        with DeepCacheHelper(pipe, schedule=Uniform(branch=branch)) as helper:
            case.run(pipe)
        assert counted(helper) == (2, 3)
