"""The networks of the catalogue have the published sizes."""

import pytest
import torch
from builders.marks import mostly_slow

from benchmarks.networks.catalogue import NETWORKS, build


@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_parameters_is_the_published_one(name):
    pipe = build(name, device="meta")
    count = sum(parameter.numel() for parameter in pipe.unet.parameters())
    assert round(count / 1e6, 1) == NETWORKS[name].parameters


def test_the_controlnet_is_the_published_one():
    controlnet = build("sd15-controlnet", device="meta").controlnet
    assert sum(parameter.numel() for parameter in controlnet.parameters()) == 361_279_120


@pytest.mark.parametrize(
    ("name", "shape"),
    mostly_slow(
        [
            ("sd15", (1, 4, 64, 64)),
            ("sd21", (1, 4, 96, 96)),
            ("sdxl", (1, 4, 128, 128)),
            ("svd", (1, 14, 4, 72, 128)),
            ("ldm4-imagenet", (1, 3, 64, 64)),
            ("ddpm-cifar10", (1, 3, 32, 32)),
            ("ddpm-lsun", (1, 3, 256, 256)),
            ("animatediff", (1, 4, 16, 64, 64)),
            ("sd15-controlnet", (1, 4, 64, 64)),
        ],
        [("sd15", (1, 4, 64, 64)), ("ddpm-cifar10", (1, 3, 32, 32))],
    ),
)
@torch.no_grad()
def test_a_call_has_the_true_size(name, shape):
    pipe = build(name, device="meta")
    assert tuple(pipe.predict(**pipe.call_arguments()).shape) == shape
