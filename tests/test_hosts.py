"""Programs that were written for DeepCache 0.1.1, with `DeepCacheSDHelper` of this package in its
place. What they call, set and read is what SD.Next and Pruna do; the code is our own.
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from builders.schedulers import with_scheduler
from conftest import trace
from zoo import CASES

from benchmarks.deepcache import deepcache
from deepcache_patch import DeepCacheSDHelper

SD, IMAGE_TO_IMAGE = CASES["sd"], CASES["sd-img2img"]
STEPS = 8


def of_deepcache(pipe, interval, run=SD.run):
    with deepcache(pipe, interval, 0):
        return run(pipe, steps=STEPS)


# --- SD.Next: one helper for the program, switched on and off round each job ---------------------


class Studio:
    """Loads models, and makes pictures by one of them; its helper is made anew with the model."""

    def __init__(self) -> None:
        self.pipe: Any = None
        self.worker: Any = None
        self.log: list[str] = []

    def load(self, pipe: Any, interval: int) -> None:
        self.pipe = pipe
        self.switch(False)  # of the model before, which may never have been switched on
        self.worker = DeepCacheSDHelper(pipe=pipe)
        self.worker.set_params(cache_interval=interval, cache_branch_id=0)
        self.log.append(f"config={self.worker.params}")

    def switch(self, on: bool) -> None:
        if self.worker is not None:
            if on:
                self.worker.enable()
            else:
                self.worker.disable()

    def job(self, run: Callable[..., Any] = SD.run, pipe: Any = None) -> Any:
        self.switch(True)
        try:
            return run(pipe or self.pipe, steps=STEPS)
        except RuntimeError as error:
            self.log.append(str(error))
            return None
        finally:
            self.switch(False)


def test_sdnext_switches_its_helper_round_each_job_and_says_what_it_was_given():
    pipe = SD.load()
    plain, expected = SD.run(pipe, steps=STEPS), of_deepcache(pipe, 3)
    before, studio = trace(pipe.unet), Studio()
    studio.load(pipe, 3)
    assert studio.log == [
        "config={'cache_interval': 3, 'cache_layer_id': 0, 'cache_block_id': 0, "
        "'skip_mode': 'uniform'}"
    ]
    for _ in range(2):
        assert torch.equal(studio.job(), expected)
        assert trace(pipe.unet) == before
    assert torch.equal(SD.run(pipe, steps=STEPS), plain)


def test_sdnext_goes_on_after_a_job_that_failed():
    def fails(pipe, steps):
        def stop(_pipe, step, _timestep, kwargs):
            if step == 4:
                raise RuntimeError("stopped")
            return kwargs

        return SD.run(pipe, steps=steps, callback_on_step_end=stop)

    pipe = SD.load()
    expected, studio = of_deepcache(pipe, 3), Studio()
    before = trace(pipe.unet)
    studio.load(pipe, 3)
    assert studio.job(fails) is None
    assert studio.log[-1] == "stopped"
    assert trace(pipe.unet) == before
    assert torch.equal(studio.job(), expected)


def test_sdnext_loads_another_model_and_lets_the_first_one_go():
    studio = Studio()
    studio.load(SD.load(), 2)
    studio.job()
    gone = [weakref.ref(studio.pipe), weakref.ref(studio.pipe.unet)]
    studio.load(SD.load(), 4)
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert torch.equal(studio.job(), of_deepcache(SD.load(), 4))
    studio.load(studio.pipe, 2)  # the same one with other settings
    assert torch.equal(studio.job(), of_deepcache(SD.load(), 2))


def test_sdnext_switches_off_what_it_has_unloaded_already():
    studio = Studio()
    studio.load(SD.load(), 2)
    before = trace(studio.pipe.unet)
    studio.switch(True)
    unet, studio.pipe.unet = studio.pipe.unet, None
    studio.switch(False)
    assert trace(unet) == before
    studio.load(SD.load(), 2)
    assert torch.equal(studio.job(), of_deepcache(SD.load(), 2))


def test_sdnext_makes_another_pipeline_of_the_models_it_has():
    # The helper stays with the pipeline that was loaded; both have the same U-Net.
    studio, pipe = Studio(), SD.load()
    studio.load(pipe, 3)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    expected = of_deepcache(other, 3, IMAGE_TO_IMAGE.run)
    assert torch.equal(studio.job(IMAGE_TO_IMAGE.run, other), expected)
    assert torch.equal(studio.job(), of_deepcache(pipe, 3))


# --- Pruna: the pipeline carries its helper -------------------------------------------------------


def smashed(pipe: Any, interval: int) -> Any:
    """The pipeline with a helper, which is enabled from now on."""
    pipe.function_dict = {"call": type(pipe).__call__}
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    pipe.deepcache_unet_helper = helper
    pipe.deepcache_unet_helper.function_dicts = [pipe.deepcache_unet_helper.function_dict]
    return pipe


def compiled_layers(pipe: Any, compiled: Callable[[Any], Any]) -> int:
    """Puts a compiled function in the place of each that the helper has taken over of a layer."""
    functions, count = pipe.deepcache_unet_helper.function_dict, 0
    for name, function in functions.items():
        if name == "unet_forward":
            continue
        if name[1] != "block":
            functions[name] = compiled(function)
            count += 1
    return count


@pytest.mark.parametrize("scheduler", ["pndm", "ddim"])
def test_pruna_leaves_its_helper_enabled_on_the_pipeline(scheduler):
    pipe = with_scheduler(SD.load(), scheduler)
    expected = of_deepcache(pipe, 2)
    pipe = smashed(pipe, 2)
    for _ in range(2):
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)
    helper = pipe.deepcache_unet_helper
    assert helper.function_dicts == [helper.function_dict]
    assert set(helper.function_dict) == {"unet_forward"}


def test_pruna_compiles_what_the_helper_has_taken_over_of_layers_which_is_nothing():
    pipe = smashed(SD.load(), 2)
    expected = SD.run(pipe, steps=STEPS)
    assert compiled_layers(pipe, torch.compile) == 0
    assert torch.equal(SD.run(pipe, steps=STEPS), expected)


@pytest.mark.slow
def test_pruna_switches_the_helper_off_and_on_after_it_has_compiled_the_model():
    pipe = SD.load()
    plain = SD.run(pipe, steps=STEPS)
    pipe = smashed(pipe, 2)
    expected = SD.run(pipe, steps=STEPS)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    if hasattr(pipe, "deepcache_unet_helper"):
        pipe.deepcache_unet_helper.disable()
        assert torch.equal(SD.run(pipe, steps=STEPS), plain)
        pipe.deepcache_unet_helper.enable()
    assert torch.equal(SD.run(pipe, steps=STEPS), expected)
    pipe.deepcache_unet_helper.disable()


def test_pruna_applies_it_anew_to_what_was_saved(tmp_path):
    pipe = smashed(SD.load(), 2)
    expected = SD.run(pipe, steps=STEPS)
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert not hasattr(loaded, "deepcache_unet_helper")
    assert torch.equal(SD.run(smashed(loaded, 2), steps=STEPS), expected)


def test_pruna_drops_the_pipeline_and_the_helper_along_with_it():
    pipe = smashed(SD.load(), 2)
    SD.run(pipe, steps=STEPS)
    gone = [weakref.ref(each) for each in (pipe, pipe.unet, pipe.deepcache_unet_helper)]
    del pipe
    gc.collect()
    assert [each() for each in gone] == [None] * 3
