"""The copies that tests get are equal to what was built, and independent of each other."""

import pytest
import torch
from builders.cases import CASES
from builders.copies import kept
from builders.models import MODELS, load_pipeline
from builders.unets import unet2d_condition
from conftest import layout


def modules_of(pipe):
    return {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }


@pytest.mark.parametrize("name", ["sd", "ldm"])
def test_a_copy_of_a_pipeline_is_as_the_one_that_is_loaded(name):
    loaded, copied = load_pipeline(CASES[name].pipeline, MODELS[name]), CASES[name].load()
    assert vars(copied).keys() == vars(loaded).keys()
    assert dict(copied.config) == dict(loaded.config)
    assert copied.scheduler.config == loaded.scheduler.config
    assert modules_of(copied).keys() == modules_of(loaded).keys()
    for part, original in modules_of(loaded).items():
        its = modules_of(copied)[part]
        assert layout(its) == layout(original)
        assert str(its.config) == str(original.config)
        state = its.state_dict()
        assert list(state) == list(original.state_dict())
        for key, value in original.state_dict().items():
            assert torch.equal(state[key], value)
            assert state[key].dtype == value.dtype


def test_two_copies_of_a_pipeline_share_nothing_that_can_change():
    first, second = CASES["sd"].load(), CASES["sd"].load()
    assert first.scheduler is not second.scheduler
    assert first.config is not second.config
    for part, module in modules_of(first).items():
        other = modules_of(second)[part]
        pointers = {tensor.data_ptr() for tensor in module.state_dict().values()}
        assert pointers.isdisjoint(tensor.data_ptr() for tensor in other.state_dict().values())
        ours = {id(each) for each in module.modules()}
        assert ours.isdisjoint(id(each) for each in other.modules())
    assert torch.equal(CASES["sd"].run(first, steps=2), CASES["sd"].run(second, steps=2))


def test_what_happens_to_a_copy_does_not_reach_the_next():
    first = unet2d_condition()
    with torch.no_grad():
        first.conv_in.weight.zero_()
    first.conv_in.extra = first.register_forward_hook(lambda *_: None)
    first.half()
    second = unet2d_condition()
    assert second.dtype == torch.float32
    assert second.conv_in.weight.abs().sum() > 0
    assert not hasattr(second.conv_in, "extra")
    assert not second._forward_hooks


def test_tied_weights_stay_tied_in_a_copy():
    def tied():
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    fresh = kept(tied)
    copied = fresh()
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight is not fresh()[0].weight


def test_what_cannot_be_pickled_is_built_each_time():
    built = []

    def build():
        built.append(open(__file__))  # noqa: SIM115 - a file cannot be pickled
        return built[-1]

    fresh = kept(build)
    files = [fresh(), fresh()]
    for each in built:
        each.close()
    assert files[0] is not files[1]
