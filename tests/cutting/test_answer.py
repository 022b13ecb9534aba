"""A forecast stands for what a U-Net returned only if that was one tensor and nothing else."""

from dataclasses import dataclass

import pytest
import torch
from diffusers.utils import BaseOutput

from deepcache_patch.cutting.answer import Answer


@dataclass
class Output(BaseOutput):
    sample: torch.Tensor
    features: list | None = None


TENSOR = torch.ones(1)


def with_more(thing):
    thing.__dict__["more"] = [TENSOR]
    return thing


@pytest.mark.parametrize(
    "output",
    [TENSOR, (TENSOR,), Output(TENSOR), {"sample": TENSOR}],
    ids=lambda x: type(x).__name__,
)
def test_one_tensor_is_an_answer(output):
    answer, tensor = Answer.of(output, {})
    assert tensor is TENSOR
    again = answer.with_tensor(torch.zeros(1))
    assert type(again) is type(output)


@pytest.mark.parametrize(
    "output",
    [
        (TENSOR, [TENSOR]),
        ((TENSOR,),),
        ([TENSOR],),
        [TENSOR],
        Output(TENSOR, [TENSOR]),
        {"sample": [TENSOR]},
        with_more(Output(TENSOR)),
        (with_more(torch.ones(1)),),
        None,
    ],
    ids=str,
)
def test_anything_beside_one_tensor_is_none(output):
    assert Answer.of(output, {}) is None
