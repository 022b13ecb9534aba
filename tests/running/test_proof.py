"""A U-Net of code that is not diffusers' is cut only if a second run shows that it can be.

That run drew from everybody's random numbers, moved the counters of blocks, and raised into the
generation what a cut U-Net raised. It looked at the first tensor of what the U-Net returned alone.
A `forward` that was replaced on diffusers' own classes was not tried at all.
"""

import random
import types
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from builders.loops import loop
from builders.unets import inputs2d_condition, unet2d_condition
from diffusers import UNet2DConditionModel
from diffusers.utils import BaseOutput
from torch import nn

from deepcache_patch import OUTPUT, DeepCacheHelper, DeepCacheWarning, Uniform

STEPS = 7
BRANCHES = [0, OUTPUT]
FULL, SHALLOW = (STEPS, 0), (3, 4)


def small(kind=UNet2DConditionModel):
    unet = unet2d_condition(block_out_channels=(8, 16), layers_per_block=1)
    unet.__class__ = kind
    return unet


def run(unet, branch, arguments=dict, pick=lambda output: output[0]):
    """The helper's counts, what was warned of, and all outputs of a loop."""
    inputs, outputs = inputs2d_condition(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with DeepCacheHelper(unet, schedule=Uniform(3, branch)) as helper, torch.no_grad():
            for timestep in torch.arange(STEPS, 0, -1) * 100:
                output = unet(**(inputs | {"timestep": timestep} | arguments()))
                outputs.append(output)
                inputs["sample"] = inputs["sample"] - 0.1 * pick(output)
    told = [str(each.message) for each in caught if each.category is DeepCacheWarning]
    return (helper.stats.full_calls, helper.stats.shallow_calls), told, outputs


def plainly(unet, arguments=dict, pick=lambda output: output[0]):
    inputs, outputs = inputs2d_condition(), []
    with torch.no_grad():
        for timestep in torch.arange(STEPS, 0, -1) * 100:
            output = unet(**(inputs | {"timestep": timestep} | arguments()))
            outputs.append(output)
            inputs["sample"] = inputs["sample"] - 0.1 * pick(output)
    return outputs


class Own(UNet2DConditionModel):
    """An author's own, which does what diffusers' does."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


class Noisy(Own):
    def forward(self, *args, **kwargs):
        noise = torch.rand(()) + random.random() + np.random.rand()
        made = super().forward(*args, **kwargs)
        return type(made)(sample=made.sample + noise)


def test_a_proof_draws_no_random_numbers():
    unet, random_states = small(Noisy), []
    for with_helper in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        outputs = run(unet, 0)[2] if with_helper else plainly(unet)
        random_states.append(states())
        assert with_helper or len(outputs) == STEPS
    assert random_states[0] == random_states[1]


def test_a_proof_calls_no_hook_that_counts():
    seen, unet = [], small(Own)
    unet.conv_in.register_forward_hook(lambda *_: seen.append(1))
    unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda *_: seen.append(2))
    hooks = unet.conv_in._forward_hooks
    counted, told, _ = run(unet, 0)
    assert (counted, told) == (SHALLOW, [])
    assert sorted(seen) == [1] * STEPS + [2] * STEPS
    assert unet.conv_in._forward_hooks is hooks


def test_a_proof_leaves_buffers_as_they_are():
    unet = small(Own)
    unet.up_blocks[-1].resnets[-1].norm2 = nn.BatchNorm2d(8).train()
    with torch.no_grad():
        unet(**inputs2d_condition())
    expected, again = small(Own), unet.state_dict()
    expected.up_blocks[-1].resnets[-1].norm2 = nn.BatchNorm2d(8).train()
    for each in (expected, unet):
        each.load_state_dict(again)
        with torch.no_grad(), DeepCacheHelper(each, schedule=Uniform(3, 0)) as helper:
            if each is expected:
                helper.disable()
            each(**inputs2d_condition())
    norms = [each.up_blocks[-1].resnets[-1].norm2 for each in (expected, unet)]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert norms[0].num_batches_tracked == norms[1].num_batches_tracked


class Counting(Own):
    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_unet_that_counts_its_calls_counts_each_once(branch):
    unet = small(Counting)
    counted, told, _ = run(unet, branch)
    assert (counted, len(told)) == (FULL, 1)
    assert unet.calls == STEPS


class RaisesWhenCut(Own):
    error = IndexError

    def forward(self, *args, **kwargs):
        if len(self.down_blocks) < 2:
            raise self.error("of the author's own")
        return super().forward(*args, **kwargs)


def test_an_error_in_the_proof_does_not_reach_the_generation():
    unet = small(RaisesWhenCut)
    expected = plainly(unet)
    counted, told, outputs = run(unet, 0)
    assert (counted, len(told)) == (FULL, 1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(outputs, expected, strict=True))


def test_what_stops_the_program_is_no_error_of_the_proof(monkeypatch):
    monkeypatch.setattr(RaisesWhenCut, "error", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(small(RaisesWhenCut), 0)


# --- forward replaced on diffusers' own classes -------------------------------------------------


def features_of(unet, sample, timestep, encoder_hidden_states, added=None, kept=None):
    """A U-Net's forward written anew: gives its output and the skips; see those that use it."""
    embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
    hidden = unet.conv_in(sample)
    skips = (hidden,)
    for block in unet.down_blocks:
        more = {"encoder_hidden_states": encoder_hidden_states}
        if not getattr(block, "has_cross_attention", False):
            more = {}
        hidden, new = block(hidden_states=hidden, temb=embedding, **more)
        skips += new
    if added is not None:
        skips = tuple(skip + added.pop(0) for skip in skips)
    if kept is not None:
        skips = kept(skips)
    hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=encoder_hidden_states)
    for block in unet.up_blocks:
        count = len(block.resnets)
        mine, skips = skips[-count:], skips[:-count]
        more = {"encoder_hidden_states": encoder_hidden_states}
        if not getattr(block, "has_cross_attention", False):
            more = {}
        hidden = block(hidden_states=hidden, temb=embedding, res_hidden_states_tuple=mine, **more)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden))), skips, added


def rewritten(self, sample, timestep, encoder_hidden_states):
    return (features_of(self, sample, timestep, encoder_hidden_states)[0],)


def adding(self, sample, timestep, encoder_hidden_states, added):
    """One residual is popped for each layer, and those that are left belong to the middle."""
    made, _, added = features_of(self, sample, timestep, encoder_hidden_states, added)
    return (made + added.pop(0).mean(),)


def keeping(self, sample, timestep, encoder_hidden_states):
    """The skips of a key step are used by those after it."""

    def kept(skips):
        if int(timestep) % 200 == 0 or not hasattr(self, "kept"):
            self.kept = skips
        return self.kept

    return (features_of(self, sample, timestep, encoder_hidden_states, kept=kept)[0],)


def residuals():
    def residual(number):
        channels, size = [(8, 8), (8, 8), (8, 4), (16, 4), (16, 4)][number]
        generator = torch.Generator().manual_seed(number)
        return torch.randn(2, channels, size, size, generator=generator)

    return {"added": [*map(residual, range(4)), residual(4)]}


PLACES = {
    "method": lambda unet, forward, _: setattr(unet, "forward", types.MethodType(forward, unet)),
    "closure": lambda unet, forward, _: setattr(
        unet, "forward", lambda *args, **kwargs: forward(unet, *args, **kwargs)
    ),
    "class": lambda _, forward, monkeypatch: monkeypatch.setattr(
        UNet2DConditionModel, "forward", forward
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("forward", "arguments", "branch", "expected"),
    [
        (rewritten, dict, 0, SHALLOW),
        (rewritten, dict, OUTPUT, SHALLOW),
        (adding, residuals, 0, FULL),
        (adding, residuals, OUTPUT, SHALLOW),
        (keeping, dict, 0, FULL),
        (keeping, dict, OUTPUT, FULL),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_forward_written_anew_is_right_or_runs_in_full(
    place, forward, arguments, branch, expected, monkeypatch
):
    # Of residuals one was popped for each layer, and of a cut U-Net's fewer: either shapes did not
    # fit, or the picture was wrong.
    plain, unet = small(), small()
    for each in (plain, unet):
        PLACES[place](each, forward, monkeypatch)
    right = plainly(plain, arguments)
    counted, told, outputs = run(unet, branch, arguments)
    assert counted == expected
    assert len(told) == (expected == FULL)
    if expected == FULL:
        assert all(torch.equal(a[0], b[0]) for a, b in zip(outputs, right, strict=True))


def test_lists_of_the_call_are_what_one_call_leaves_of_them():
    given = []

    def arguments():
        given.append(residuals()["added"])
        return {"added": given[-1]}

    unet = small()
    unet.forward = types.MethodType(adding, unet)
    run(unet, 0, arguments)
    assert [len(each) for each in given] == [0] * STEPS


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_block_whose_forward_pops_one_residual_for_each_layer_runs_in_full(branch):
    def popping(block, added):
        old = block.forward

        def forward(*args, **kwargs):
            hidden, skips = old(*args, **kwargs)
            return hidden, tuple(skip + added.pop(0) for skip in skips)

        return forward

    outputs = []
    for with_helper in (False, True):
        unet, added = small(), [torch.tensor(float(number)) for number in range(100)]
        for block in unet.down_blocks:
            block.forward = popping(block, added)
        if with_helper:
            counted, told, made = run(unet, branch)
        else:
            made = plainly(unet)
        outputs.append(made)
    assert (counted, len(told)) == (FULL, 1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*outputs, strict=True))


def test_what_a_block_makes_of_its_own_output_is_part_of_the_feature():
    # The tap stands round the last layer of the block, and not round the block.
    unet = small()
    old = unet.up_blocks[0].forward
    unet.up_blocks[0].forward = lambda *args, **kwargs: old(*args, **kwargs) * 2
    expected = loop(unet, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with DeepCacheHelper(unet, schedule=Uniform(3, 1)) as helper:
            loop(unet, steps=2)
            assert helper.stats.shallow_calls == 0
    assert torch.equal(loop(unet, steps=2), expected)


# --- what is returned ---------------------------------------------------------------------------


@dataclass
class WithFeatures(BaseOutput):
    sample: torch.Tensor
    features: list


class Plain:
    def __init__(self, sample, features):
        self.sample, self.features = sample, features


STRUCTURES = {
    "tuple": (lambda sample, features: (sample, features), lambda output: output[0]),
    "nested": (
        lambda sample, features: {"out": {"sample": sample, "all": tuple(features)}},
        lambda output: output["out"]["sample"],
    ),
    "output": (lambda sample, features: WithFeatures(sample, features), lambda output: output[0]),
    "object": (lambda sample, features: Plain(sample, features), lambda output: output.sample),
    "list": (lambda sample, features: [sample, *features], lambda output: output[0]),
    "beside": (lambda sample, features: _beside(sample, features), lambda output: output.sample),
}


def _beside(sample, features):
    made = WithFeatures(sample, None)
    made.__dict__["more"] = features
    return made


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_unet_that_returns_features_beside_its_sample_returns_all_of_them(structure, branch):
    # The second U-Net of try-on gave 1 of 16 features on shallow steps.
    make, pick = STRUCTURES[structure]

    class Garment(UNet2DConditionModel):
        def forward(self, sample, timestep, encoder_hidden_states):
            features = []
            embedding = self.time_embedding(self.get_time_embed(sample, timestep))
            hidden = self.conv_in(sample)
            skips = [hidden]
            for block in self.down_blocks:
                more = {"encoder_hidden_states": encoder_hidden_states}
                more = more if getattr(block, "has_cross_attention", False) else {}
                hidden, new = block(hidden_states=hidden, temb=embedding, **more)
                skips.extend(new)
                features.append(hidden)
            hidden = self.mid_block(hidden, embedding, encoder_hidden_states=encoder_hidden_states)
            for block in self.up_blocks:
                count = len(block.resnets)
                mine, skips = skips[-count:], skips[:-count]
                more = {"encoder_hidden_states": encoder_hidden_states}
                more = more if getattr(block, "has_cross_attention", False) else {}
                hidden = block(
                    hidden_states=hidden,
                    temb=embedding,
                    res_hidden_states_tuple=tuple(mine),
                    **more,
                )
                features.append(hidden)
            return make(self.conv_out(self.conv_act(self.conv_norm_out(hidden))), features)

    right = plainly(small(Garment), pick=pick)
    counted, told, outputs = run(small(Garment), branch, pick=pick)
    assert (counted, len(told)) == (FULL, 1)
    assert all(torch.equal(pick(a), pick(b)) for a, b in zip(outputs, right, strict=True))
