"""Who calls a U-Net is told by the running code: a pipeline's, a library's or somebody's."""

import _thread
import functools
import gc
import queue

import pytest
import torch

from deepcache_patch.running.pipeline.callers import Callers

UNET = Callers(torch.nn.Identity())


def told(callers, *modules):
    """What is said in a call by functions of these modules, of which each calls the next."""
    ask = callers.are_pipelines
    for module in reversed(modules):
        known = {"__name__": module, "ask": ask}
        exec("def call():\n    return ask()", known)
        ask = known["call"]
    return ask()


@pytest.mark.parametrize(
    "module",
    [
        *("diffusers.pipelines.flux", "diffusers.modular_pipelines.modular_pipeline"),
        *("diffusers.experimental.rl", "diffusers.models.unets", "diffusers.models"),
        *("diffusers_modules", "diffusers_modules.git.somebodys"),
    ],
)
def test_code_of_diffusers_that_runs_networks_is_a_pipelines(module):
    assert told(UNET, module)


@pytest.mark.parametrize(
    "module",
    [
        *("somebodys", "diffusers", "diffusers.schedulers.ddim", "diffusers_modulesque"),
        *("somebodys.diffusers.pipelines", "torchvision", None),
    ],
)
def test_any_other_code_is_somebodys(module):
    assert not told(UNET, module)
    assert not told(UNET, "diffusers.pipelines.flux", module)


@pytest.mark.parametrize(
    "module",
    [
        *("torch.nn.modules.module", "torch", "wrapt", "accelerate.hooks", "contextlib"),
        "deepcache_patch.running.unet",
    ],
)
def test_libraries_between_a_caller_and_the_unet_are_no_callers(module):
    assert told(UNET, "diffusers.pipelines.flux", module, "torch.utils")
    assert not told(UNET, "somebodys", module, "torch.utils")


def test_libraries_that_nobody_calls_are_no_pipeline():
    answers = queue.SimpleQueue()
    known = {"__name__": "torch", "ask": lambda: answers.put(UNET.are_pipelines())}
    exec("def call():\n    answers.put(ask())", known | {"answers": answers})
    known = {"__name__": "torch", "ask": UNET.are_pipelines, "put": answers.put}
    exec("def call():\n    put(ask())", known)
    _thread.start_new_thread(known["call"], ())  # the only frame of its own
    assert answers.get(timeout=60) is False


class Pipeline:
    def __call__(self, callers):
        return callers.are_pipelines()

    def other(self, callers):
        return callers.are_pipelines()


class Wrapped(Pipeline):
    @torch.no_grad()
    def __call__(self, callers):
        return super().__call__(callers), callers.are_pipelines()


class WithInner(Pipeline):
    def __call__(self, callers):
        def outer():
            return [callers.are_pipelines() for _ in range(1)], (lambda: callers.are_pipelines())()

        return outer()


class WithoutCode(Pipeline):
    __call__ = functools.partial(print)


class Uncallable(Pipeline):
    __call__ = None


def test_a_pipelines_own_call_is_a_pipelines_whoever_has_written_it():
    pipe = Pipeline()
    assert pipe(Callers(pipe))
    assert not pipe.other(Callers(pipe))
    assert not pipe(UNET)


def test_a_call_is_known_through_what_wraps_it_and_from_above():
    pipe = Wrapped()
    assert pipe(Callers(pipe)) == (True, True)
    assert pipe(Callers(Pipeline())) == (True, False)


def test_functions_within_a_call_are_of_it():
    pipe = WithInner()
    assert pipe(Callers(pipe)) == ([True], True)
    assert pipe(UNET) == ([False], False)


@pytest.mark.parametrize("kind", [WithoutCode, Uncallable])
def test_a_call_that_is_no_function_has_no_code(kind):
    pipe = kind()
    callers = Callers(pipe)
    assert Pipeline()(callers)  # that of the class above it
    assert not told(callers, "somebodys")


class Block(Pipeline):
    def __init__(self, sub_blocks=None):
        self.sub_blocks = sub_blocks


class Inner(Block):
    def __call__(self, callers):
        return callers.are_pipelines()


class Innermost(Block):
    def __call__(self, callers):
        return callers.are_pipelines()


class Modular:
    def __init__(self, blocks):
        self._blocks = blocks


def test_the_blocks_of_a_modular_pipeline_run_it():
    inner, innermost = Inner(), Innermost()
    callers = Callers(Modular(Block({"loop": Block({"first": innermost}), "second": inner})))
    assert [each(callers) for each in (inner, innermost, Block())] == [True] * 3
    assert not Innermost()(Callers(Modular(Block({"second": inner}))))
    assert not Inner()(Callers(Modular(Block([inner]))))  # not by name
    assert not Inner()(Callers(Modular(None)))


class Network(torch.nn.Module):
    __call__ = Pipeline.__call__


def test_a_bare_unet_is_no_pipeline():
    unet = Network()
    callers = Callers(unet)
    assert not unet(callers)
    assert not callers.gone
    del unet
    gc.collect()
    assert not callers.gone


def test_a_pipeline_is_gone_when_nobody_holds_it():
    pipe = Pipeline()
    callers = Callers(pipe)
    assert not callers.gone
    del pipe
    gc.collect()
    assert callers.gone
