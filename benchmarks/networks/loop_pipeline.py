"""A pipeline that is a denoising loop and nothing else: no text encoder, no decoder.

It runs the loop as the pipelines of diffusers do, all at once or step by step, on inputs that it
makes itself. `hand_cut` makes it shallow with no helper anywhere near. Which networks there are is
told in `catalogue` and `toys`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

from deepcache_patch.cutting.anatomy import dissect, dissect_controlnet
from deepcache_patch.cutting.features import Recorder, StandIn

#: Height and width of what is denoised, or the one number that both are.
Size = int | tuple[int, int]

_GUIDANCE_SCALE = 7.5


@dataclass(frozen=True)
class Network:
    """A U-Net, and what it is called with.

    Attributes:
        title: For people.
        parts: Makes the components of the pipeline, given the factor of all widths.
        shapes: Of the arguments of a call, given batch, height and width.
        size: The true height and width of what is denoised.
        guided: Whether every picture is in a call twice, for classifier-free guidance.
        parameters: Of the U-Net, in millions, as published.
        branches: Where it is cut in the benchmarks.
        smallest: The least height and width that it takes.
    """

    title: str
    parts: Callable[[float], dict[str, nn.Module]]
    shapes: Callable[[int, int, int], dict[str, Any]]
    size: tuple[int, int]
    parameters: float
    guided: bool = True
    branches: tuple[int, ...] = (0,)
    smallest: int = 8


class LoopPipeline(DiffusionPipeline):  # type: ignore[misc]
    """The denoising loop of one network and nothing else.

    Args:
        unet: Predicts the noise.
        scheduler: DDIM.
        controlnet: Runs before the U-Net, if there is one.
    """

    _optional_components = ("controlnet",)
    network: Network

    def __init__(
        self,
        unet: nn.Module,
        scheduler: DDIMScheduler,
        controlnet: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, controlnet=controlnet)

    @property
    def copies(self) -> int:
        """How often every picture is in a call of the U-Net: 2 with guidance, else 1."""
        return 2 if self.network.guided else 1

    def __call__(
        self, steps: int, *, batch: int = 1, size: Size | None = None, seed: int = 0
    ) -> torch.Tensor:
        """Return the latents (for DDPM the pictures) after all steps.

        Args:
            steps: 1 or more.
            batch: How many pictures or videos, 1 or more.
            size: Of what is denoised; the network's own by default.
            seed: Of the noise and of all other inputs.
        """
        for latents in self.loop(steps, batch=batch, size=size, seed=seed):
            last = latents
        return last

    def loop(
        self, steps: int, *, batch: int = 1, size: Size | None = None, seed: int = 0
    ) -> Iterator[torch.Tensor]:
        """Prepare the inputs, and return what runs one step at a time and gives the latents."""
        arguments = self.call_arguments(batch=batch * self.copies, size=size, seed=seed)
        sample, _ = arguments.pop("sample"), arguments.pop("timestep")
        self.scheduler.set_timesteps(steps, device=self.device)
        return self._steps(sample, arguments)

    @torch.no_grad()
    def _steps(self, sample: torch.Tensor, arguments: dict[str, Any]) -> Iterator[torch.Tensor]:
        # Image-to-video: what is denoised comes beside the picture's latents, along the channels.
        channels = self.unet.config.out_channels
        animates = self.unet.config.in_channels > channels
        first, *beside = torch.split(sample, channels, dim=2) if animates else (sample,)
        latents: torch.Tensor = first[: len(sample) // self.copies]
        for timestep in self.scheduler.timesteps:
            sample = torch.cat([latents] * self.copies)
            sample = self.scheduler.scale_model_input(sample, timestep)
            if beside:
                sample = torch.cat([sample, *beside], dim=2)
            noise = self.predict(sample, timestep, **arguments)
            if self.network.guided:
                without, with_it = noise.chunk(2)
                noise = without + _GUIDANCE_SCALE * (with_it - without)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
            yield latents

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        controlnet_cond: torch.Tensor | None = None,
        **conditioning: Any,
    ) -> torch.Tensor:
        """Call the U-Net, and before it the ControlNet if there is one."""
        if self.controlnet is not None:
            down, middle = self.controlnet(
                sample,
                timestep,
                controlnet_cond=controlnet_cond,
                return_dict=False,
                **conditioning,
            )
            conditioning["down_block_additional_residuals"] = down
            conditioning["mid_block_additional_residual"] = middle
        output: tuple[torch.Tensor] = self.unet(sample, timestep, return_dict=False, **conditioning)
        return output[0]

    def call_arguments(
        self, *, batch: int = 1, size: Size | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """The arguments of `predict` in one step; without a ControlNet they are the U-Net's own.

        Args:
            batch: Of the call, so twice the number of pictures where there is guidance.
            size: Of what is denoised; the network's own by default.
            seed: Of the values.
        """
        size = size or self.network.size
        height, width = (size, size) if isinstance(size, int) else size
        # From the CPU, so that every device gets the same.
        generator = torch.Generator().manual_seed(seed)

        def filled(shape: Any) -> Any:
            if isinstance(shape, dict):
                return {name: filled(each) for name, each in shape.items()}
            if self.device.type == "meta":
                return torch.empty(shape, dtype=self.unet.dtype, device="meta")
            return torch.randn(shape, generator=generator).to(self.device, self.unet.dtype)

        timestep = torch.tensor(500, device=self.device)
        return {"timestep": timestep, **filled(self.network.shapes(batch, height, width))}


def placed(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The module itself, for inference, on the device and in the dtype."""
    # Not the models' own `to`, which warns of any dtype.
    return nn.Module.to(module.eval(), device=device, dtype=dtype)


def loop_of(
    network: Network,
    parts: Mapping[str, nn.Module],
    scheduler: DDIMScheduler,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> LoopPipeline:
    """A pipeline of a network's parts, which are put on the device."""
    for module in parts.values():
        placed(module, device, dtype)
    pipe = LoopPipeline(**parts, scheduler=scheduler)
    pipe.network = network
    return pipe


def twin(pipe: LoopPipeline) -> LoopPipeline:
    """A pipeline of modules of its own that have the same weights, in the same memory."""
    memo: dict[int, Any] = {}
    for module in (pipe.unet, pipe.controlnet):
        if module is not None:
            memo |= {id(each): each for each in (*module.parameters(), *module.buffers())}
    twin: LoopPipeline = copy.deepcopy(pipe, memo)
    return twin


@contextmanager
def hand_cut(pipe: LoopPipeline, branch: int | None, arguments: dict[str, Any]) -> Iterator[None]:
    """Keep the networks cut for the length of a block.

    Args:
        pipe: Its U-Net is cut, and its ControlNet along with it.
        branch: Where; `None` leaves everything whole.
        arguments: Of a call; one in full with these records the deep feature.
    """
    if branch is None:
        yield
        return
    anatomy, stand_in, recorder = dissect(pipe.unet), StandIn(), Recorder()
    with torch.no_grad(), anatomy.cut(None, stand_in, {branch: recorder}).applied():
        pipe.predict(**arguments)
    stand_in.feature = recorder.take()
    with ExitStack() as cuts:
        if pipe.controlnet is not None:
            cuts.enter_context(dissect_controlnet(pipe.controlnet).cut(branch).applied())
        cuts.enter_context(anatomy.cut(branch, stand_in, {}).applied())
        yield
