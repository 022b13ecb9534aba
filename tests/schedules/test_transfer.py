"""Numbers that are sent between host and device arrive."""

import pytest
import torch

from deepcache_patch.schedules.transfer import HostCopy, sent

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_host_copy_is_the_number(device):
    assert HostCopy(torch.tensor(0.25, device=device)).value() == 0.25


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_sent_arrives(device):
    values = torch.arange(6.0).reshape(2, 3)
    arrived = sent(values, torch.device(device))
    assert arrived.device.type == device
    assert torch.equal(arrived.cpu(), values)
