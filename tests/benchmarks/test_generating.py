"""What one generation of a benchmark gives, and what it refuses."""

import numpy as np
import pytest
import torch
import zoo
from builders.cases import CASES

from benchmarks.generating import generate
from deepcache_patch.measuring.generation import batched_call

CALL = {"prompt": "a fox", "num_inference_steps": 2}


def test_a_generation_has_the_pictures_of_its_seeds_and_the_calls_of_its_loop():
    pipe = CASES["sd"].load()
    made = generate(pipe, pipe.unet, batched_call(pipe, CALL, 2), [3, 4], label="two")
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (3, 4)]
    by_hand = pipe(**CALL, num_images_per_prompt=2, output_type="np", generator=generators).images
    assert made.pictures.dtype == np.float32
    assert np.array_equal(made.pictures, by_hand)
    assert (made.timing.calls, made.device) == (2, torch.device("cpu"))
    assert 0 < made.timing.loop_seconds < made.timing.call_seconds


def test_what_makes_no_pictures_is_refused():
    pipe = zoo.CASES["animatediff"].load()
    with pytest.raises(TypeError, match="makes videos: only pictures are measured here"):
        generate(pipe, pipe.unet, {**CALL, "num_frames": 2, "output_type": "np"}, [0], label="")
