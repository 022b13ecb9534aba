"""Lets a U-Net's cross-attention begin with each place looking at the tokens that describe it.

Where an image token is, and which cell a text token describes, can be told from their states by
one linear map each, which a ridge regression finds. These maps become part of the queries and keys.
The text encoder that describes cells is the business of ``train_emoji.py``, and so is the training.
"""

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from benchmarks.train.noise import noise_scheduler

#: Logit of a text token that certainly describes the place of the image token.
CERTAIN = 8.0
RIDGE = 0.01


def ridge(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The linear map ``(features, targets)`` that best gives targets from inputs, row by row."""
    square = inputs.T @ inputs / len(inputs)
    penalty = RIDGE * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square + penalty, inputs.T @ targets / len(inputs))


def cell_of_places(places: int, cells: int) -> torch.Tensor:
    """Which cell of a square grid each place of a finer square grid lies in, row by row."""
    side, cell_side = round(places**0.5), round(cells**0.5)
    along = torch.arange(side) * cell_side // side
    return (along[:, None] * cell_side + along).flatten()


@torch.no_grad()
def look_at_own_cell(
    unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, cells: int
) -> None:
    """Set some of the queries and keys of each cross-attention, from the first to the last.

    Args:
        unet: Changed in place.
        latents: Examples, ``(batch, 4, 16, 16)``.
        states: Of their prompts, ``(batch, tokens, width)``; the last tokens describe the cells.
        cells: How many there are; a square number.
    """
    scheduler = noise_scheduler()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    steps = torch.randint(1000, (len(latents),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, steps)
    described = torch.zeros(states.shape[1], cells)
    described[-cells:] = torch.eye(cells)
    keys = ridge(states.flatten(0, 1), described.repeat(len(states), 1))
    seen: list[torch.Tensor] = []
    for name, module in unet.named_modules():
        if not name.endswith("attn2") or not isinstance(module, Attention):
            continue
        hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        unet(noisy, steps, states)
        hook.remove()
        hidden = seen.pop()
        places = F.one_hot(cell_of_places(hidden.shape[1], cells), cells).float()
        queries = ridge(hidden.flatten(0, 1), places.repeat(len(hidden), 1))
        size = module.inner_dim // module.heads
        strength = (CERTAIN * size**0.5) ** 0.5  # attention divides by the root of the size
        for head in range(module.heads):
            rows = slice(head * size, head * size + cells)
            module.to_q.weight[rows] = strength * queries.T
            module.to_k.weight[rows] = strength * keys.T
