"""One generation of which some U-Net calls are answered without the U-Net. Which, and with what, a
`Rival` says; the replaced `forward` is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput


class Rival(ABC):
    """Decides, for one generation, which calls run whole, and answers the others.

    Attributes:
        pipe: The pipeline; known from the first call on, as is `steps`.
        steps: U-Net calls of the generation, one for each of the scheduler's timesteps.
    """

    pipe: Any
    steps: int

    def begin(self, pipe: Any) -> None:
        """The first call is about to come; the scheduler has its timesteps."""
        self.pipe, self.steps = pipe, len(pipe.scheduler.timesteps)

    def watching(self, unet: Any) -> AbstractContextManager[Any]:
        """Entered before the generation, left after it."""
        return nullcontext()

    @abstractmethod
    def full(self, step: int, sample: torch.Tensor) -> bool:
        """Whether the call of this step runs whole, given its input; asked once for each step."""

    @abstractmethod
    def observe(self, step: int, sample: torch.Tensor, output: torch.Tensor) -> None:
        """A call ran whole."""

    @abstractmethod
    def forecast(self, step: int, sample: torch.Tensor) -> torch.Tensor:
        """The output of a call that does not run, of the shape and dtype of earlier ones."""


class Planned(Rival):
    """One whose full steps are known in advance.

    Args:
        plan: The steps that run whole, from 0.
    """

    def __init__(self, plan: Collection[int]) -> None:
        self.plan = frozenset(plan)

    def full(self, step: int, sample: torch.Tensor) -> bool:
        """As the plan says."""
        return step in self.plan


@contextmanager
def skipping(pipe: Any, rival: Rival) -> Iterator[Rival]:
    """Lets the rival answer for the pipeline's U-Net during one generation.

    Afterwards, and after an error, the U-Net is as it was.

    Args:
        pipe: A pipeline that calls its U-Net once for each timestep.
        rival: A new one for each generation.
    """
    unet, calls = pipe.unet, count()
    before, original = vars(unet).get("forward"), unet.forward

    def forward(sample: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        step = next(calls)
        if step == 0:
            rival.begin(pipe)
        if rival.full(step, sample):
            output = original(sample, *args, return_dict=False, **kwargs)[0]
            rival.observe(step, sample, output)
        else:
            output = rival.forecast(step, sample)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    with rival.watching(unet):
        unet.forward = forward
        try:
            yield rival
        finally:
            del unet.forward
            if before is not None:
                unet.forward = before
