"""Which calls of a pipeline's U-Net ran in full, what they were called with, what was said."""

import inspect
import warnings
from contextlib import contextmanager

import torch
from conftest import assert_exact_at_every_branch
from zoo import CASES

from deepcache_patch import (
    DeepCacheHelper,
    DeepCacheWarning,
    Uniform,
)

#: Two steps at one timestep: a replay straight after the full step it was recorded in.
TWICE = torch.tensor([500, 500, 1])[:2]


@contextmanager
def kinds_of_calls(unet, deep=None):
    """Says of each call whether it ran `deep`, the middle block: "F", or "s" for a shallow one."""
    ran, kinds = [], []

    def deep_ran(*_):
        ran.append(1)

    def call_ended(*_):
        kinds.append("F" if ran else "s")
        ran.clear()

    handles = [
        (deep or unet.mid_block).register_forward_hook(deep_ran),
        unet.register_forward_hook(call_ended),
    ]
    try:
        yield kinds
    finally:
        for handle in handles:
            handle.remove()


def kinds_of(case, pipe, deep=None, **overrides):
    with kinds_of_calls(case.unet(pipe), deep) as kinds:
        case.run(pipe, **overrides)
    return "".join(kinds)


def calls_of(unet, run):
    """The arguments of each of the U-Net's calls in `run()`, by name, as copies."""
    calls = []
    names = tuple(inspect.signature(type(unet).forward).parameters)[1:]

    def before(_module, args, kwargs):
        arguments = dict(zip(names, args, strict=False)) | kwargs
        calls.append({name: copied(value) for name, value in arguments.items()})

    handle = unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return calls


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(copied(each) for each in value)
    return value


def assert_exact(case, pipe, **overrides):
    """With the arguments of a real call, a replay straight after a full call has its output."""
    unet = case.unet(pipe)
    first = calls_of(unet, lambda: case.run(pipe, **overrides))[0]
    with torch.no_grad():
        assert_exact_at_every_branch(unet, lambda: {name: copied(v) for name, v in first.items()})


def assert_as_fresh(name, *changes):
    """After another generation, and after each of the changed ones, all is as with fresh parts."""
    case = CASES[name]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        case.run(pipe)
        for change in changes:
            fresh = case.load()
            with DeepCacheHelper(fresh, schedule=Uniform()):
                expected = case.run(fresh, **change)
            assert torch.equal(case.run(pipe, **change), expected), change


def counted(helper):
    return helper.stats.full_calls, helper.stats.shallow_calls


@contextmanager
def told():
    """Collects this package's warnings, but that of few steps; without it they are errors."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepCacheWarning)
        yield said
    said += messages(caught)


def messages(caught):
    """The texts of what this package warns of, but for that of few steps, which tests have."""
    texts = [str(each.message) for each in caught if each.category is DeepCacheWarning]
    return [text for text in texts if "with 15 steps or fewer" not in text]


def scheduler_trace(scheduler):
    """Everything that a patch could leave on a scheduler or on its classes."""
    own = [(name, id(value)) for name, value in vars(scheduler).items()]
    classes = [
        (cls, [(name, id(value)) for name, value in vars(cls).items()])
        for cls in type(scheduler).__mro__[:-1]
        if not name_is_magic(cls)
    ]
    return own, classes


def name_is_magic(cls):
    return cls.__module__ == "builtins"
